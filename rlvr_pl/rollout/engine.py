"""What every rollout engine offers."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlvr_pl.rollout.sampling import Sampling
from rlvr_pl.types import Diverged, Rollout, masked


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


class RolloutEngine(ABC):
    """Samples groups of completions with the policy's current weights.

    Tokens and log-probabilities depend only on the weights, the prompt and the noise, up to rounding.

    Args:
        policy: its own weights are read.
        stop_ids: every token id that ends a completion.
        pad_id: any id; pads are told by the mask, never by their id.
        slots: completions that are generated at a time, at most.

    Attributes:
        on_progress: told now and then while completions end.
        on_tokens: told the tokens of a lone completion so far, each time that there are more; not where a call has
            several sequences.
    """

    def __init__(self, policy: PreTrainedModel, stop_ids: Sequence[int], pad_id: int, slots: int = 256) -> None:
        self.policy = policy
        self.stop_ids = tuple(stop_ids)
        self.pad_id = pad_id
        self.slots = slots
        self.on_progress: Callable[[Progress], None] | None = None
        self.on_tokens: Callable[[list[int]], None] | None = None

    @abstractmethod
    def generate(
        self, prompts: Sequence[Sequence[int]], group_size: int, sampling: Sampling, noise: Tensor | None
    ) -> Rollout:
        """Sample ``group_size`` completions of each prompt.

        Args:
            prompts: B prompts as token ids, unpadded, none empty.
            group_size: G.
            sampling: token budget and temperature.
            noise: uniforms in [0, 1), (B · G, max_completion_tokens) float32; None at temperature 0.

        Raises:
            Diverged: if a sampled token's log-probability is not finite.
        """

    def gather(self) -> None:  # noqa: B027  # most policies are whole already
        """Gather a sharded policy's present weights from all ranks, for the calls that follow.

        A collective, so that every rank must ask: before each rollout, and before an evaluation, in which ranks make
        unequally many calls.
        """

    def release(self) -> None:  # noqa: B027  # most engines have nothing to give back
        """Give back the memory that is kept from one call to the next, if any."""

    def _rollout(
        self, prompts: Sequence[Sequence[int]], group_size: int, tokens: Tensor, mask: Tensor, logprobs: Tensor
    ) -> Rollout:
        """Make the rollout of B prompts and what was sampled, (N, T), anything on pads."""
        if not (logprobs.isfinite() | ~mask).all():
            raise Diverged("the policy's probabilities are not finite: its weights have diverged")
        stops = torch.tensor(self.stop_ids, dtype=torch.int64, device=tokens.device)
        return Rollout(
            prompt_ids=prompts,
            group_size=group_size,
            completion_ids=torch.where(mask, tokens, self.pad_id),
            mask=mask,
            sampling_logprobs=masked(logprobs, mask),
            truncated=~(torch.isin(tokens, stops) & mask).any(dim=1),
        )
