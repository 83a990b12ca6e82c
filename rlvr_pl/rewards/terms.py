"""The reward of a run: a weighted sum of reward functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rlvr_pl.rewards.call import asked_columns, check_form, score
from rlvr_pl.rewards.completion import Completion
from rlvr_pl.rewards.functions import RewardFunction
from rlvr_pl.types import ConfigError


@dataclass(frozen=True)
class RewardTerm:
    """A reward function and its weight in the sum."""

    function: RewardFunction
    weight: float = 1.0

    @property
    def name(self) -> str:
        """The function's name, or the class name of a callable object; metrics are logged under it."""
        return str(getattr(self.function, "__name__", type(self.function).__name__))


@dataclass(frozen=True, eq=False)
class Rewards:
    """The rewards of N completions.

    Attributes:
        completions: N, what was scored.
        total: (N,) float32, the weighted sum.
        parts: for each term's name, in the terms' order, its (N,) float32 unweighted values.
    """

    completions: Sequence[Completion]
    total: torch.Tensor
    parts: dict[str, torch.Tensor]


class RewardSum:
    """Scores completions by every term and adds the scores up.

    Args:
        terms: the reward functions and their weights, as configured under ``model.rewards``.
        timeout: seconds that a call may take, in the main thread; None waits for ever.

    Raises:
        ConfigError: there is no term, two terms share a name, a weight is not finite, or a function does not take one
            completion.
    """

    def __init__(self, terms: list[RewardTerm], timeout: float | None = None) -> None:
        names = [term.name for term in terms]
        if not terms:
            raise ConfigError("model.rewards is empty; name at least one reward function.")
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(f"model.rewards names a reward function more than once: {', '.join(repeated)}.")
        for term in terms:
            if not math.isfinite(term.weight):
                raise ConfigError(f"model.rewards gives {term.name} the weight {term.weight}, which is not finite.")
            check_form(term.name, term.function)
        self.terms = list(terms)
        self.asked = {term.name: asked_columns(term.function) for term in terms}
        self.timeout = timeout

    @property
    def columns(self) -> dict[str, str]:
        """The columns of a row that terms ask for, each with their names."""
        who: dict[str, list[str]] = {}
        for name, columns in self.asked.items():
            for column in columns:
                who.setdefault(column, []).append(name)
        return {column: " and ".join(names) for column, names in who.items()}

    def __call__(self, completions: Sequence[Completion]) -> Rewards:
        """Score N completions, in order.

        The sum is taken in float64 and rounded once.

        Raises:
            RewardError: naming a reward function that failed, took too long, or returned no finite number.
        """
        rows = [
            [score(term.name, term.function, c, self.timeout, self.asked[term.name]) for c in completions]
            for term in self.terms
        ]
        scores = torch.tensor(rows, dtype=torch.float64)
        weights = torch.tensor([term.weight for term in self.terms], dtype=torch.float64)
        return Rewards(
            completions,
            total=(weights[:, None] * scores).sum(dim=0).float(),
            parts={term.name: row.float() for term, row in zip(self.terms, scores, strict=True)},
        )
