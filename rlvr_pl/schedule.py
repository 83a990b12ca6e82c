"""The learning rate over a run, by shares of its budget: nobody counts optimizer steps by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from rlvr_pl.types import ConfigError


@dataclass(frozen=True)
class LRSchedule:
    """A warm-up and a decay, which ends with the last of ``data.max_rollouts``.

    Attributes:
        warmup: share of the run's optimizer steps over which the rate rises in equal steps to the optimizer's.
        decay: how it falls afterwards: ``cosine``, ``linear``, or ``constant``, which does not.
        final: share of the optimizer's rate at which the decay would be one step after the last.
    """

    warmup: float = 0.0
    decay: Literal["cosine", "linear", "constant"] = "cosine"
    final: float = 0.0

    def check(self) -> None:
        """Refuse shares that are none.

        Raises:
            ConfigError: naming the key.
        """
        if not 0 <= self.warmup < 1:
            raise ConfigError(f"model.lr_schedule.warmup is {self.warmup}; it is a share of the run, from 0 to below 1")
        if not 0 <= self.final <= 1:
            raise ConfigError(f"model.lr_schedule.final is {self.final}; it is a share of the rate, from 0 to 1")

    def factor(self, step: int, steps: int) -> float:
        """Compute by what the optimizer's rate is multiplied in one of ``steps`` optimizer steps, counted from 0."""
        warmup = round(self.warmup * steps)
        if step < warmup:
            return (step + 1) / warmup
        done = min(1.0, (step - warmup) / max(1, steps - warmup))
        left = {"cosine": (1 + math.cos(math.pi * done)) / 2, "linear": 1 - done, "constant": 1.0}[self.decay]
        return self.final + (1 - self.final) * left

    def scheduler(self, optimizer: Optimizer, steps: int) -> LambdaLR:
        """Make the scheduler of a run of so many optimizer steps."""
        return LambdaLR(optimizer, lambda step: self.factor(step, steps))
