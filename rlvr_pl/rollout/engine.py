"""What every rollout engine offers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from rlvr_pl.rollout.sampling import Sampling
from rlvr_pl.types import Rollout


class RolloutEngine(Protocol):
    """Samples groups of completions with the policy's current weights.

    Tokens and log-probabilities depend only on the weights, the prompt and the noise, up to rounding.
    """

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
