"""Batches filled by tokens: every sequence once, and never over the budget."""

from __future__ import annotations

import random

import pytest

from rlvr_pl.batching import batches_by_tokens


@pytest.mark.parametrize("seed", range(30))
def test_every_sequence_once_and_never_over_the_budget(seed: int) -> None:
    generator = random.Random(seed)
    lengths = [generator.randint(1, 60) for _ in range(generator.randint(1, 40))]
    budget = generator.randint(20, 300)
    batches = list(batches_by_tokens(lengths, budget))
    assert sorted(i for rows in batches for i in rows) == list(range(len(lengths)))
    for rows in batches:
        assert len(rows) * max(lengths[i] for i in rows) <= budget or len(rows) == 1
    assert list(batches_by_tokens(lengths, budget)) == batches


def test_the_batches_are_exactly_these() -> None:
    # From long to short, equal lengths in their order; a batch is as wide as its first row.
    assert list(batches_by_tokens([4, 9, 4, 6, 5, 1], 12)) == [[1], [3, 4], [0, 2, 5]]
    assert list(batches_by_tokens([4, 9, 4, 6, 5, 1], 18)) == [[1, 3], [4, 0, 2], [5]]
    assert list(batches_by_tokens([3, 3, 3, 3], 6)) == [[0, 1], [2, 3]]
    assert list(batches_by_tokens([3, 3, 3, 3], 12)) == [[0, 1, 2, 3]]
    assert list(batches_by_tokens([3, 3, 3, 3], 11)) == [[0, 1, 2], [3]]


def test_a_sequence_over_the_budget_is_alone() -> None:
    assert list(batches_by_tokens([2, 100, 2, 50], 10)) == [[1], [3], [0, 2]]
    assert list(batches_by_tokens([7, 7], 1)) == [[0], [1]]


def test_nothing_gives_no_batch() -> None:
    assert list(batches_by_tokens([], 10)) == []
