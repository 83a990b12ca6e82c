"""Simulated studies whose truth is known: what the statistics are tested on.

A question has a difficulty, spread so widely that most questions are nearly always or nearly never answered; a run (a
seed of an arm) is better or worse by a draw of its own and by one that both arms' runs of that seed share; an arm may
suit single questions better than the other arm does; and which of the doubtful questions a run gets right is chance.
The answer is right where the sum of these normal draws is positive, so the true accuracy is known exactly, and all arms
have the same one unless a difference is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

Shares = NDArray[np.float64]
STUDIES = 2000


@dataclass(frozen=True)
class Regime:
    """How studies are drawn; standard deviations of runs in accuracy, of questions in units of a run's own chance."""

    accuracy: float = 0.7
    difference: float = 0.0  # of the first arm's true accuracy from the others'
    questions: int = 512
    seed_sd: float = 0.01  # of a run
    first_seed_sd: float | None = None  # of the first arm's runs, where theirs is another
    shared_sd: float = 0.01  # of the runs of one seed, in all arms
    difficulty_sd: float = 3.0  # at 3, 64 % of the questions are right in under 5 or over 95 runs of 100
    arm_sd: float = 0.0  # of an arm's advantage on single questions
    samples: int = 1  # of a question
    together: int = 1  # questions that share their difficulty and what suits an arm: a cluster

    @property
    def clusters(self) -> list[int]:
        """(Q,)"""
        return [question // self.together for question in range(self.questions)]

    def studies(self, S: int, studies: int = STUDIES, seed: int = 0, arms: int = 2) -> Iterator[tuple[Shares, ...]]:
        """The arms' shares of right samples, (S, Q) each; the first one's accuracy is apart by ``difference``."""
        rng = np.random.default_rng([S, seed])
        spread = math.sqrt(self.difficulty_sd**2 + self.arm_sd**2 + 1)
        points = spread / stats.norm.pdf(special.ndtri(self.accuracy))  # latent units per unit of accuracy

        def normal(sd: float, *shape: int) -> NDArray[np.float32]:
            draws = rng.standard_normal(shape, dtype=np.float32)
            draws *= np.float32(sd)
            return draws

        def by_question(sd: float, studies: int) -> NDArray[np.float32]:
            return normal(sd, studies, 1, -(-self.questions // self.together)).repeat(self.together, axis=2)[
                :, :, : self.questions
            ]

        at_a_time = min(studies, 100)
        for _ in range(studies // at_a_time):
            difficulty = by_question(self.difficulty_sd, at_a_time)
            shared = normal(self.shared_sd * points, at_a_time, S, 1)
            answers = []
            for arm in range(arms):
                accuracy = self.accuracy + (self.difference if arm == 0 else 0)
                own = self.first_seed_sd if arm == 0 and self.first_seed_sd is not None else self.seed_sd
                total = math.hypot(spread, own * points, self.shared_sd * points)
                chance = [normal(1, at_a_time, S, self.questions) for _ in range(self.samples)]
                level = difficulty + by_question(self.arm_sd, at_a_time)
                run = shared + normal(own * points, at_a_time, S, 1) + np.float32(total * special.ndtri(accuracy))
                answers.append(np.mean([draw + level + run > 0 for draw in chance], axis=0))
            yield from zip(*answers, strict=True)
