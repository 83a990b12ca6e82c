"""What every rollout engine offers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from rlvr_pl.rollout.sampling import Sampling
from rlvr_pl.types import Rollout


@dataclass(frozen=True)
class Progress:
    """How far a call of ``generate`` has come."""

    ended: int  # completions
    sequences: int  # completions asked for
    tokens: int  # sampled so far
    seconds: float

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds

    @property
    def seconds_left(self) -> float:
        """At the rate at which completions have ended so far; infinite before the first has."""
        return self.seconds * (self.sequences - self.ended) / self.ended if self.ended else math.inf


class RolloutEngine(Protocol):
    """Samples groups of completions with the policy's current weights.

    Tokens and log-probabilities depend only on the weights, the prompt and the noise, up to rounding.

    Attributes:
        on_progress: told now and then while completions end.
    """

    on_progress: Callable[[Progress], None] | None

    def generate(
        self, prompts: Sequence[Sequence[int]], group_size: int, sampling: Sampling, noise: Tensor | None
    ) -> Rollout:
        """Sample ``group_size`` completions of each prompt.

        Args:
            prompts: B prompts as token ids, unpadded, none empty.
            group_size: G.
            sampling: token budget and temperature.
            noise: uniforms in [0, 1), (B · G, max_completion_tokens) float32; None at temperature 0.
        """
