"""In-loop generation: the engine's interface, the engine, and ``generate()`` for what it does not cover."""

from __future__ import annotations

from collections.abc import Sequence

from lightning.pytorch.utilities import rank_zero_info
from transformers import PreTrainedModel

from rlvr_pl.rollout.engine import Progress, RolloutEngine
from rlvr_pl.rollout.generate import GenerateEngine
from rlvr_pl.rollout.lean import LeanEngine
from rlvr_pl.rollout.sampling import Sampling
from rlvr_pl.rollout.weights import why_not_covered

__all__ = ["GenerateEngine", "LeanEngine", "Progress", "RolloutEngine", "Sampling", "choose_engine", "why_not_covered"]


def choose_engine(policy: PreTrainedModel, stop_ids: Sequence[int], pad_id: int, slots: int) -> RolloutEngine:
    """Choose the engine for a policy, and say so where it is the slow one."""
    reason = why_not_covered(policy)
    if reason is None:
        return LeanEngine(policy, stop_ids, pad_id, slots)
    rank_zero_info(f"The decoder does not cover this policy: {reason}. Rollouts use generate(), which is slower.")
    return GenerateEngine(policy, stop_ids, pad_id, slots)
