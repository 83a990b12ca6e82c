"""The records that the parts hand to each other, and the one legend of shapes.

Shapes, everywhere in this project:
    B  prompts in a rollout (on this rank)
    G  completions per prompt (the group)
    N  sequences, N = B · G, the members of a group side by side
    P  prompt tokens
    T  completion tokens, the stop token included
    V  vocabulary
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


class ConfigError(ValueError):
    """The user's configuration or data cannot be used; the message names the key and the remedy."""


@dataclass(frozen=True)
class Question:
    """One problem, formatted and tokenized."""

    index: int  # row in its split: identifies the question in records and in its sampling noise
    question: str
    gold: str  # the gold answer's number, as text
    prompt: str  # what the policy continues
    prompt_ids: tuple[int, ...]  # P tokens


class PromptBatch:
    """The prompts of one rollout on this rank, or one batch of an evaluation.

    No dataclass: Lightning would take one apart to convert the tensors in it, of which there are none.

    Attributes:
        questions: B of them.
        slots: B; each prompt's place in the whole rollout over all ranks, which its noise depends on.
        rollout: how many rollouts came before this one.
        epoch: how many times the training questions have all been served.
    """

    def __init__(self, questions: Sequence[Question], slots: Sequence[int], rollout: int = 0, epoch: int = 0) -> None:
        self.questions = questions
        self.slots = slots
        self.rollout = rollout
        self.epoch = epoch


@dataclass(frozen=True)
class Rollout:
    """Sampled completions; row i · G + j is member j of prompt i's group."""

    prompt_ids: Sequence[Sequence[int]]  # N prompts, unpadded
    completion_ids: Tensor  # (N, T) int64, padded on the right
    mask: Tensor  # (N, T) bool, True on completion tokens, the stop token included
    sampling_logprobs: Tensor  # (N, T) float32, of the sampled tokens; 0 on pads
    truncated: Tensor  # (N,) bool, True where the token budget ended the completion

    @property
    def lengths(self) -> Tensor:
        """Completion tokens of each sequence, (N,) int64."""
        return self.mask.sum(dim=1)


@dataclass(frozen=True)
class LossInputs:
    """What every loss strategy sees. Pads may hold anything, NaN included."""

    logprobs: Tensor  # (N, T) float32, log π_θ of the sampled tokens, with gradient
    old_logprobs: Tensor  # (N, T) float32, log π_old, without gradient
    advantages: Tensor  # (N,) float32
    mask: Tensor  # (N, T) bool
    ref_logprobs: Tensor | None = None  # (N, T) float32, log π_ref; only where a KL term asks for it

    def __getitem__(self, rows: slice | Tensor) -> LossInputs:
        """The same inputs for some of the sequences."""
        return LossInputs(
            self.logprobs[rows],
            self.old_logprobs[rows],
            self.advantages[rows],
            self.mask[rows],
            None if self.ref_logprobs is None else self.ref_logprobs[rows],
        )


@dataclass(frozen=True)
class LossOutput:
    """A loss in two parts: the caller divides once the denominator of the whole optimizer step is known.

    The diagnostics carry no gradient; their shape is that of the strategy's ratio, (N, T) or (N, 1).
    """

    numerator: Tensor  # scalar, with gradient
    ratio: Tensor
    clipped_low: Tensor  # bool: A < 0 and the ratio under its lower bound, so no gradient flows
    clipped_high: Tensor  # bool: A > 0 and the ratio over its upper bound
    kl_ref: Tensor | None  # (N, T), the KL term's per-token estimate; None without a reference


def masked(values: Tensor, mask: Tensor) -> Tensor:
    """``values`` with 0 wherever ``mask`` is False, whatever stood there: ``NaN · 0`` is NaN, ``where`` is not."""
    return torch.where(mask, values, torch.zeros((), dtype=values.dtype, device=values.device))
