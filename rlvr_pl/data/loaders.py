"""Loaders of prompts: endless rollouts for training, every question once for evaluation.

They are plain iterables, so that Lightning neither shuffles nor pads them: which prompts a rank gets is decided here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np

from rlvr_pl.randomness import prompt_order
from rlvr_pl.types import PromptBatch, Question


class RolloutLoader:
    """The prompts of ``max_rollouts`` rollouts, this rank's share of each.

    The training questions are served in epochs, one after the other without a gap, so the prompts of rollout r are a
    function of (seed, r) alone, and where to go on is the loader's whole state. Rank k of W takes every W-th prompt
    from the k-th on: each minibatch of a rollout then has the same prompts whatever W is.

    Args:
        questions: the training questions.
        prompts_per_rollout: over all ranks.
        max_rollouts: the length of the run.
        seed: of the run.
        rank, world_size: this process among all.
    """

    def __init__(
        self,
        questions: Sequence[Question],
        prompts_per_rollout: int,
        max_rollouts: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.questions = questions
        self.prompts_per_rollout = prompts_per_rollout
        self.max_rollouts = max_rollouts
        self.rank = rank
        self.world_size = world_size
        self._next_rollout = 0

        @lru_cache(maxsize=2)  # a rollout may straddle two epochs
        def order(epoch: int) -> np.ndarray:
            return prompt_order(seed, epoch, len(questions))

        self._order = order

    def __len__(self) -> int:
        return self.max_rollouts

    def __iter__(self) -> Iterator[PromptBatch]:
        start = self._next_rollout
        for rollout in range(start, self.max_rollouts):
            self._next_rollout = rollout + 1
            yield self.prompts(rollout)
        self._next_rollout = 0

    def prompts(self, rollout: int) -> PromptBatch:
        """Return this rank's prompts of one rollout."""
        indices = range(self.rank, self.prompts_per_rollout, self.world_size)
        first = rollout * self.prompts_per_rollout
        questions = []
        for index in indices:
            epoch, place = divmod(first + index, len(self.questions))
            questions.append(self.questions[self._order(epoch)[place]])
        return PromptBatch(questions, indices, rollout, epoch=first // len(self.questions))

    def state_dict(self) -> dict[str, int]:
        return {"next_rollout": self._next_rollout}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._next_rollout = state["next_rollout"]


class EvaluationLoader:
    """Every question once, in batches; rank k of W takes every W-th question from the k-th on, and none is repeated."""

    def __init__(self, questions: Sequence[Question], batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        # Neighbours of like length leave few pads, and the longest, begun first, do not keep the others waiting at the
        # end. Else the order does not matter: each question's noise is its own.
        self.questions = sorted(questions[rank::world_size], key=lambda q: -len(q.prompt_ids))
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.questions) // self.batch_size)

    def __iter__(self) -> Iterator[PromptBatch]:
        for start in range(0, len(self.questions), self.batch_size):
            questions = self.questions[start : start + self.batch_size]
            yield PromptBatch(questions, indices=[q.index for q in questions])
