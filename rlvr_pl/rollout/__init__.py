"""In-loop generation: the engine's interface and its implementations."""

from rlvr_pl.rollout.engine import RolloutEngine
from rlvr_pl.rollout.generate import GenerateEngine
from rlvr_pl.rollout.sampling import Sampling

__all__ = ["GenerateEngine", "RolloutEngine", "Sampling"]
