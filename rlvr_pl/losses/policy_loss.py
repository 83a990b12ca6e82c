"""The policy loss: from log-ratios and advantages to a loss per token or per sequence."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlvr_pl.types import ConfigError


@dataclass(frozen=True)
class PolicyLoss:
    """Per-element loss and diagnostics, all of the log-ratio's shape."""

    loss: Tensor
    ratio: Tensor  # without gradient
    clipped_low: Tensor  # bool
    clipped_high: Tensor  # bool


@dataclass(frozen=True)
class PPOClip:
    """ℓ = −min(wA, clip(w, 1 − low, 1 + high) · A) (PPO, arXiv 1707.06347, eq. 7).

    The minimum is the clipped term exactly where (A > 0, w > 1 + high) or (A < 0, w < 1 − low); there the loss is
    constant and the gradient exactly 0.

    Args:
        low: ε_low, in [0, 1].
        high: ε_high, at least 0.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 <= self.low <= 1:
            raise ConfigError(f"model.loss.clip_low is {self.low}; it must lie in [0, 1]")
        if not self.high >= 0:
            raise ConfigError(f"model.loss.clip_high is {self.high}; it must be at least 0")

    def __call__(self, log_ratio: Tensor, advantages: Tensor) -> PolicyLoss:
        """Compute losses for log-ratios (N, T) or (N, 1) and advantages (N, 1)."""
        ratio = log_ratio.detach().exp()
        clipped_low = (advantages < 0) & (ratio < 1 - self.low)
        clipped_high = (advantages > 0) & (ratio > 1 + self.high)
        # Where the loss is constant, the exponential is not taken at all: should it overflow, 0 · inf would be NaN.
        moving = log_ratio.masked_fill(clipped_low | clipped_high | (advantages == 0), 0.0).exp()
        bounded = torch.where(clipped_low, 1 - self.low, torch.where(clipped_high, 1 + self.high, moving))
        return PolicyLoss(-bounded * advantages, ratio, clipped_low, clipped_high)
