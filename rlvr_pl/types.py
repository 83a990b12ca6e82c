"""The records that the parts hand to each other, the words that the project uses, and the one legend of shapes.

Words, everywhere in this project:
    prompt        what the policy continues: a question in the chat template
    completion    what the policy writes, up to its stop token or the token budget
    group         the G completions of one prompt, which are compared with each other
    rollout       one iteration's whole batch of groups (as in Stable-Baselines3; elsewhere often a single completion)
    minibatch     whole groups of a rollout: what one optimizer step learns from
    micro-batch   the sequences of a minibatch that go through the policy together: a question of memory alone
    grade         what is right and wrong about one completion
    arm           one method of a comparison: settings that are run with several seeds
    run           one call of ``fit`` and the folder that it fills; in a comparison, one arm with one seed
    slot          a place in the rollout engine's cache, which one completion after another takes

Shapes, everywhere in this project:
    B  prompts in a rollout (on this rank)
    G  completions per prompt (the group)
    N  sequences, N = B · G, the members of a group side by side
    P  prompt tokens
    T  completion tokens, the stop token included
    V  vocabulary
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")


class ConfigError(ValueError):
    """The user's configuration or data cannot be used; the message names the key and the remedy."""


class RunError(Exception):
    """A run cannot go on, through no fault of the program; the message says in one line why, and what to do."""


class Diverged(RunError, FloatingPointError):
    """Weights, probabilities or gradients are not finite: the learning rate is too high, most of the time."""


def check_at_least(minimum: int, section: str, **settings: int) -> None:
    """Refuse settings that are too small.

    Args:
        minimum: the least that is allowed.
        section: of the configuration, such as ``model``.
        settings: values by their keys in that section.

    Raises:
        ConfigError: naming the first of them that is below ``minimum``.
    """
    for key, value in settings.items():
        if value < minimum:
            raise ConfigError(f"{section}.{key} is {value}; it must be at least {minimum}")


def check_finite(section: str, **settings: float | None) -> None:
    """Refuse settings that are no number, or infinite; comparisons with NaN let it pass everywhere.

    Args:
        section: of the configuration, such as ``model``.
        settings: values by their keys in that section; None is left alone.

    Raises:
        ConfigError: naming the first of them.
    """
    for key, value in settings.items():
        if value is not None and not math.isfinite(value):
            raise ConfigError(f"{section}.{key} is {value}; it must be a finite number")


@dataclass(frozen=True)
class Question:
    """One problem, formatted and tokenized."""

    index: int  # row in its split: identifies the question in records and in its sampling noise
    question: str
    gold: str | None  # the gold answer, as text; where several are accepted, the first; None where the row has none
    prompt: str  # what the policy continues
    prompt_ids: tuple[int, ...]  # P tokens
    cluster: str = ""  # what it belongs to together with others, such as their passage; empty where it stands alone
    alternatives: tuple[str, ...] = ()  # other answers that are accepted
    columns: Mapping[str, object] = field(default_factory=dict, hash=False)  # of its row, those that rewards ask for


class PromptBatch:
    """The prompts of one rollout on this rank, or one batch of an evaluation.

    No dataclass: Lightning would take one apart to convert the tensors in it, of which there are none.

    Attributes:
        questions: B of them.
        indices: B; each prompt's number in the whole rollout over all ranks, or the question's in its split where it is
            evaluated: its noise depends on it.
        rollout: how many rollouts came before this one.
        epoch: how many times the training questions have all been served.
    """

    def __init__(self, questions: Sequence[Question], indices: Sequence[int], rollout: int = 0, epoch: int = 0) -> None:
        self.questions = questions
        self.indices = indices
        self.rollout = rollout
        self.epoch = epoch


@dataclass(frozen=True)
class Rollout:
    """Sampled completions, N = B · G of them; row i · G + j is member j of prompt i's group."""

    prompt_ids: Sequence[Sequence[int]]  # B prompts, unpadded
    group_size: int  # G
    completion_ids: Tensor  # (N, T) int64, padded on the right
    mask: Tensor  # (N, T) bool, True on completion tokens, the stop token included
    sampling_logprobs: Tensor  # (N, T) float32, of the sampled tokens; 0 on pads
    truncated: Tensor  # (N,) bool, True where the token budget ended the completion

    @property
    def lengths(self) -> Tensor:
        """Completion tokens of each sequence, (N,) int64."""
        return self.mask.sum(dim=1)

    def place(self, row: int) -> tuple[int, int]:
        """Return the prompt that a row belongs to, and which member of its group it is."""
        return divmod(row, self.group_size)

    def by_row(self, per_prompt: Sequence[Item]) -> list[Item]:
        """Turn B things, one a prompt, into N, one a row."""
        return [item for item in per_prompt for _ in range(self.group_size)]

    def by_group(self, per_row: Tensor) -> Tensor:
        """Turn a tensor (N,), one number a row, into (B, G), a row a group."""
        return per_row.view(-1, self.group_size)


@dataclass(frozen=True)
class LossInputs:
    """What every loss strategy sees. Pads may hold anything, NaN included."""

    logprobs: Tensor  # (N, T) float32, log π_θ of the sampled tokens, with gradient
    old_logprobs: Tensor  # (N, T) float32, log π_old, without gradient
    advantages: Tensor  # (N,) float32
    mask: Tensor  # (N, T) bool
    ref_logprobs: Tensor | None = None  # (N, T) float32, log π_ref; only where a KL term asks for it
    weights: Tensor | None = None  # (N, T) float32, of each token's policy loss; none where all are 1

    def __getitem__(self, rows: slice | Tensor) -> LossInputs:
        """Return the same inputs for some of the sequences."""
        return LossInputs(
            self.logprobs[rows],
            self.old_logprobs[rows],
            self.advantages[rows],
            self.mask[rows],
            None if self.ref_logprobs is None else self.ref_logprobs[rows],
            None if self.weights is None else self.weights[rows],
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
    """Put 0 wherever ``mask`` is False, whatever stood there: ``NaN · 0`` is NaN, ``where`` is not."""
    return torch.where(mask, values, torch.zeros((), dtype=values.dtype, device=values.device))
