"""Batches filled by tokens: every sequence once, and never over the budget."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlvr_pl.batching import batches_by_tokens, even_batches


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


# Even batches


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 120), st.integers(1, 4))
def test_even_batches_hold_everything_once_and_keep_the_budget(sizes: list[int], budget: int, multiple: int) -> None:
    batches = even_batches(sizes, budget, multiple)
    assert sorted(i for batch in batches for i in batch) == list(range(len(sizes)))
    assert len(batches) % multiple == 0
    assert len(batches) >= multiple
    fill = [sum(sizes[i] for i in batch) for batch in batches]
    assert fill == sorted(fill, reverse=True)
    assert all(full <= budget or len(batch) == 1 for full, batch in zip(fill, batches, strict=True))
    if sizes:  # longest processing time first: the fullest is ahead of the emptiest by one item at most
        assert fill[0] - fill[-1] <= max(sizes)


def test_even_batches_are_few_and_of_about_the_same_size() -> None:
    assert even_batches([8, 11, 9, 14], 22, 1) == [[3, 0], [1, 2]]
    assert even_batches([8, 11, 9, 14], 21, 1) == [[2, 0], [3], [1]]
    assert even_batches([8, 11, 9, 14], 100, 2) == [[3, 0], [1, 2]]
    assert even_batches([5], 100, 3) == [[0], [], []]
    assert even_batches([], 100, 2) == [[], []]
    assert even_batches([500, 1, 1], 100, 1) == [[0], [1, 2]]
