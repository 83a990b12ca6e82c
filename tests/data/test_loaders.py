"""Loaders: the prompt order, the same rollouts whatever the number of ranks, resuming, and every question once."""

from __future__ import annotations

from itertools import islice

import pytest

from rlvr_pl.data.loaders import EvaluationLoader, RolloutLoader
from rlvr_pl.randomness import prompt_order
from rlvr_pl.types import PromptBatch, Question


def make_questions(count: int) -> list[Question]:
    """Row i is 100 + i, so that a row is not mistaken for a place; lengths vary."""
    return [Question(100 + i, f"q{i}", str(i), f"p{i}", tuple(range(1 + i * 7 % 5))) for i in range(count)]


def rollouts(
    count: int = 10, per_rollout: int = 4, length: int = 10, seed: int = 0, rank: int = 0, world_size: int = 1
) -> RolloutLoader:
    return RolloutLoader(make_questions(count), per_rollout, length, seed, rank, world_size)


def served(batches: list[PromptBatch]) -> list[int]:
    return [question.index for batch in batches for question in batch.questions]


def summary(batches: list[PromptBatch]) -> list[tuple[int, int, list[int], list[int]]]:
    return [(b.rollout, b.epoch, list(b.indices), [q.index for q in b.questions]) for b in batches]


# The order.


def test_each_epoch_serves_each_question_once_in_its_own_order() -> None:
    """10 questions, 4 a rollout: every third rollout straddles two epochs."""
    indices = served(list(rollouts(count=10, per_rollout=4, length=10, seed=5)))
    assert len(indices) == 40
    for epoch in range(4):
        expected = [100 + int(place) for place in prompt_order(5, epoch, 10)]
        assert indices[10 * epoch : 10 * epoch + 10] == expected
        assert sorted(expected) == list(range(100, 110))


def test_a_rollout_larger_than_the_data_takes_several_epochs() -> None:
    (batch,) = rollouts(count=3, per_rollout=8, length=1)
    orders = [100 + int(place) for epoch in range(3) for place in prompt_order(0, epoch, 3)]
    assert [question.index for question in batch.questions] == orders[:8]


def test_rollouts_indices_and_epochs_are_numbered_from_0() -> None:
    batches = list(rollouts(count=10, per_rollout=4, length=6))
    assert [batch.rollout for batch in batches] == [0, 1, 2, 3, 4, 5]
    assert [batch.epoch for batch in batches] == [0, 0, 0, 1, 1, 2]  # of the first prompt
    assert [list(batch.indices) for batch in batches] == [[0, 1, 2, 3]] * 6


def test_the_length_is_the_budget() -> None:
    for length in (1, 7):
        assert len(rollouts(length=length)) == len(list(rollouts(length=length))) == length


def test_the_order_depends_on_the_seed_alone() -> None:
    once = summary(list(rollouts(seed=3)))
    assert summary(list(rollouts(seed=3))) == once
    assert summary(list(rollouts(seed=4))) != once
    assert summary(list(rollouts(seed=3, length=4))) == once[:4]  # a smaller budget is a prefix
    loader = rollouts(seed=3)
    assert summary([loader.prompts(r) for r in (9, 0, 4, 0)]) == [once[r] for r in (9, 0, 4, 0)]  # in any order


# Ranks.


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_all_ranks_together_serve_the_same_rollouts(world_size: int) -> None:
    alone = list(rollouts(count=11, per_rollout=8, length=9, seed=2))
    ranks = [list(rollouts(11, 8, 9, 2, rank, world_size)) for rank in range(world_size)]
    for r, whole in enumerate(alone):
        shares = [batches[r] for batches in ranks]
        assert {(share.rollout, share.epoch) for share in shares} == {(whole.rollout, whole.epoch)}
        assert {len(share.questions) for share in shares} == {8 // world_size}
        pairs = [pair for share in shares for pair in zip(share.indices, share.questions, strict=True)]
        assert sorted(pairs, key=lambda pair: pair[0]) == list(enumerate(whole.questions))


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("minibatches", [1, 2, 4])
def test_each_minibatch_has_the_same_prompts_whatever_the_number_of_ranks(world_size: int, minibatches: int) -> None:
    """A rank cuts its prompts into contiguous parts; part m of all ranks is part m of a lone rank."""
    per_rollout = 16
    alone = list(rollouts(count=11, per_rollout=per_rollout, length=5, seed=2))
    ranks = [list(rollouts(11, per_rollout, 5, 2, rank, world_size)) for rank in range(world_size)]
    size, share = per_rollout // minibatches, per_rollout // minibatches // world_size
    for r, whole in enumerate(alone):
        for m in range(minibatches):
            part = [
                pair
                for batches in ranks
                for pair in list(zip(batches[r].indices, batches[r].questions, strict=True))[
                    m * share : (m + 1) * share
                ]
            ]
            indices = range(m * size, (m + 1) * size)
            assert dict(part) == {index: whole.questions[index] for index in indices}
            assert len(part) == size


# Resuming.


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("done", [0, 1, 2, 3, 4, 7, 9])
def test_a_resumed_loader_serves_what_the_other_one_would_have(done: int, world_size: int) -> None:
    """Within an epoch, between two, inside a rollout that straddles them, and in later ones."""
    for rank in range(world_size):
        uninterrupted = list(rollouts(count=10, per_rollout=4, length=10, rank=rank, world_size=world_size))
        interrupted = rollouts(count=10, per_rollout=4, length=10, rank=rank, world_size=world_size)
        before = list(islice(interrupted, done))
        state = interrupted.state_dict()
        assert state == {"next_rollout": done}
        resumed = rollouts(count=10, per_rollout=4, length=10, rank=rank, world_size=world_size)
        resumed.load_state_dict(state)
        after = list(resumed)
        assert summary(before + after) == summary(uninterrupted)
        assert after[0].rollout == done


def test_the_state_is_that_of_the_rollout_in_hand() -> None:
    """Lightning saves inside the loop's body: a rollout that is being learned from is not served again."""
    loader = rollouts(length=3)
    states = []
    for batch in loader:
        states.append((batch.rollout, loader.state_dict()["next_rollout"]))
    assert states == [(0, 1), (1, 2), (2, 3)]


def test_a_finished_run_goes_on_with_a_larger_budget() -> None:
    loader = rollouts(length=3)
    batches = iter(loader)
    first = [next(batches) for _ in range(3)]
    longer = rollouts(length=5)
    longer.load_state_dict(loader.state_dict())
    assert summary(first + list(longer)) == summary(list(rollouts(length=5)))


def test_an_exhausted_loader_starts_anew() -> None:
    loader = rollouts(length=3)
    first = summary(list(loader))
    assert loader.state_dict() == {"next_rollout": 0}
    assert summary(list(loader)) == first
    resumed = rollouts(length=3)
    resumed.load_state_dict({"next_rollout": 2})
    assert summary(list(resumed)) == first[2:]
    assert summary(list(resumed)) == first


def test_the_state_does_not_hold_the_order() -> None:
    """It is a function of the seed: the state of one seed only says where another one goes on."""
    loader = rollouts(seed=8)
    loader.load_state_dict({"next_rollout": 6})
    assert summary(list(loader)) == summary(list(rollouts(seed=8)))[6:]


# Evaluation.


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 3, 4, 11, 100])
@pytest.mark.parametrize("count", [1, 2, 11])
def test_every_question_is_evaluated_exactly_once(count: int, batch_size: int, world_size: int) -> None:
    questions = make_questions(count)
    indices: list[int] = []
    for rank in range(world_size):
        loader = EvaluationLoader(questions, batch_size, rank, world_size)
        batches = list(loader)
        assert len(batches) == len(loader)
        assert all(1 <= len(batch.questions) <= batch_size for batch in batches)
        assert all(len(batch.questions) == batch_size for batch in batches[:-1])
        assert all(list(batch.indices) == [q.index for q in batch.questions] for batch in batches)
        share = served(batches)
        assert sorted(share) == list(range(100 + rank, 100 + count, world_size))
        assert summary(list(loader)) == summary(batches)  # and again, the same
        indices += share
    assert sorted(indices) == list(range(100, 100 + count))


def test_the_longest_come_first_and_neighbours_are_of_like_length() -> None:
    loader = EvaluationLoader(make_questions(11), batch_size=4)
    lengths = [len(question.prompt_ids) for batch in loader for question in batch.questions]
    assert lengths == sorted((len(question.prompt_ids) for question in make_questions(11)), reverse=True)
    assert lengths == [5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 1]


def test_evaluation_leaves_the_questions_as_they_are() -> None:
    questions = make_questions(11)
    list(EvaluationLoader(questions, 4))
    assert questions == make_questions(11)
