"""From a group's rewards to its advantages: a baseline to subtract and a scale to divide by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rlvr_pl.types import ConfigError, check_finite

GroupStatistic = Callable[[Tensor], Tensor]
"""From rewards (B, G) to a tensor that broadcasts against them."""


def group_mean(rewards: Tensor) -> Tensor:
    """Average each group: r̄, (B, 1)."""
    return rewards.mean(dim=1, keepdim=True)


def leave_one_out(rewards: Tensor) -> Tensor:
    """Average the others of each member's group, (B, G) (RLOO, arXiv 2402.14740)."""
    return (rewards.sum(dim=1, keepdim=True) - rewards) / (rewards.shape[1] - 1)


def group_std(rewards: Tensor) -> Tensor:
    """Take the standard deviation σ of each group, (B, 1), with the unbiased n − 1, as TRL, verl and OAT agree."""
    return rewards.std(dim=1, keepdim=True)


@dataclass(frozen=True)
class AdvantageEstimator:
    """A = (r − baseline) / (scale + eps), or r − baseline where ``scale`` is None.

    Args:
        baseline: what a reward is measured against.
        scale: what the difference is divided by.
        eps: keeps the division finite; 1e-4 as in TRL and OAT.
    """

    baseline: GroupStatistic = group_mean
    scale: GroupStatistic | None = group_std
    eps: float = 1e-4

    def __post_init__(self) -> None:
        check_finite("model.loss", advantage_eps=self.eps)
        if self.eps < 0:
            raise ConfigError(f"model.loss.advantage_eps is {self.eps}; it must be at least 0")

    def __call__(self, rewards: Tensor) -> Tensor:
        """Compute advantages (B, G) from rewards (B, G).

        Raises:
            ValueError: for groups of one, which have no baseline.
        """
        if rewards.shape[1] < 2:
            raise ValueError("a group-relative advantage needs a group of at least 2")
        advantages = rewards - self.baseline(rewards)
        if self.scale is not None:
            advantages = advantages / (self.scale(rewards) + self.eps)
        # Equal rewards can differ from their rounded mean; the advantage of such a group is exactly 0.
        no_variance = rewards.amax(dim=1, keepdim=True) == rewards.amin(dim=1, keepdim=True)
        return torch.where(no_variance, torch.zeros_like(advantages), advantages)
