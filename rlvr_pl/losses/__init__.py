"""Loss strategies: plain tensors in, a loss and its diagnostics out. Nothing here knows Lightning."""

from rlvr_pl.losses.objectives import GRPO, GSPO, DrGRPO, GSPOToken
from rlvr_pl.losses.strategy import LossStrategy

__all__ = ["GRPO", "GSPO", "DrGRPO", "GSPOToken", "LossStrategy"]
