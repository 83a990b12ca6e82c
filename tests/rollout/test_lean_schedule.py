"""The lean engine's schedule: what is read and decoded when, and what is told of it."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from itertools import count, pairwise

import pytest
import torch
from torch import Tensor

from rlvr_pl.rollout import LeanEngine, Progress, lean
from rlvr_pl.rollout.cache import KVCache
from rlvr_pl.rollout.decoder import Decoder, Prefilled
from tests.helpers.engines import (
    PROMPTS,
    STOP_IDS,
    assert_same,
    sample,
    sample_again,
)
from tests.helpers.policies import tiny_model

torch.set_num_threads(1)

SLOTS = [1, 2, 3, 7, 64]


# The schedule


def record_prefills(monkeypatch: pytest.MonkeyPatch) -> list[list[list[int]]]:
    """The prompts of each prefill from now on."""
    prefill, calls = Decoder.prefill, []

    def recorded(self: Decoder, tokens: Tensor, lengths: Tensor) -> Prefilled:
        calls.append([row[:n].tolist() for row, n in zip(tokens, lengths, strict=True)])
        return prefill(self, tokens, lengths)

    monkeypatch.setattr(Decoder, "prefill", recorded)
    return calls


def record_steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Rows and columns of each decode step from now on."""
    step, calls = Decoder.step, []

    def recorded(
        self: Decoder, tokens: Tensor, positions: Tensor, cache: KVCache, columns: int, even: bool = False
    ) -> Tensor:
        assert (positions < columns).all()
        assert even == bool((positions == columns - 1).all())
        calls.append((len(tokens), columns))
        return step(self, tokens, positions, cache, columns, even)

    monkeypatch.setattr(Decoder, "step", recorded)
    return calls


@pytest.mark.parametrize("group_size", [1, 5, 11])
@pytest.mark.parametrize("slots", SLOTS)
def test_each_prompt_is_read_once(slots: int, group_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many refills its group is admitted in: 11 members on one slot are 11 of them."""
    calls = record_prefills(monkeypatch)
    sample(tiny_model(), slots, group_size=group_size)
    assert sorted(prompt for call in calls for prompt in call) == sorted(PROMPTS)


def test_prompts_are_read_in_parts_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    expected = sample(model)
    calls = record_prefills(monkeypatch)
    monkeypatch.setattr(lean, "PREFILL_TOKENS", 7)
    assert_same(sample(model), expected)
    assert [[len(prompt) for prompt in call] for call in calls] == [[6], [3, 2], [1]]


def scheduled(lengths: Sequence[int], slots: int) -> list[int]:
    """Rows of each step, from the lengths of the completions: one token at the admission, then one a step.

    A refill waits until an eighth of the slots is free, or as many as there are sequences waiting.
    """
    waiting, live, steps = list(lengths), [], []
    while waiting or live:
        free = min(slots - len(live), len(waiting))
        if not live or free >= min(len(waiting), math.ceil(slots / 8)):
            live += [max(1, length - 1) for length in waiting[:free]]
            del waiting[:free]
        steps.append(len(live))
        live = [left - 1 for left in live if left > 1]
    return steps


@pytest.mark.parametrize("slots", [1, 2, 4, 9, 16, 40, 64])
def test_ended_rows_make_room_for_waiting_ones_and_then_the_batch_shrinks(
    slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = record_steps(monkeypatch)
    lengths = sample(tiny_model(seed=2), slots, group_size=12, tokens=14).lengths.tolist()
    assert len(set(lengths)) > 5
    assert [rows for rows, _ in steps] == scheduled(lengths, slots)
    assert max(rows for rows, _ in steps) == min(slots, 48)
    assert sum(rows for rows, _ in steps) < 1.1 * sum(lengths)  # no row is decoded after its end


def test_a_step_looks_at_no_more_columns_than_the_longest_row_has(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = record_steps(monkeypatch)
    sample(tiny_model(), prompts=[[5, 6, 7], [8]], group_size=1, tokens=5, stop_ids=[63], temperature=0.0)
    assert steps == [(2, 4), (2, 5), (2, 6), (2, 7)]


# Progress


def test_progress_tells_the_rate_and_the_time_left() -> None:
    progress = Progress(ended=4, sequences=16, tokens=100, seconds=2.0)
    assert progress.tokens_per_s == 50
    assert progress.seconds_left == 6
    assert Progress(0, 16, 100, 2.0).seconds_left == math.inf
    assert Progress(16, 16, 100, 2.0).seconds_left == 0


@pytest.mark.parametrize("slots", [3, 64])
def test_progress_counts_what_has_ended_and_every_token(slots: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lean, "_SECONDS_BETWEEN_REPORTS", 0.0)
    steps = record_steps(monkeypatch)
    engine = LeanEngine(tiny_model(seed=2), STOP_IDS, 0, slots)
    reports: list[Progress] = []
    engine.on_progress = reports.append
    rollout = sample_again(engine, group_size=5, tokens=14)
    assert len(reports) == len(steps)
    assert {r.sequences for r in reports} == {20}
    ended, tokens = [r.ended for r in reports], [r.tokens for r in reports]
    assert ended == sorted(ended)
    assert (ended[-1], tokens[-1]) == (20, int(rollout.lengths.sum()))
    rows = [rows for rows, _ in steps]
    grown = [b - a for a, b in pairwise(tokens)]
    assert all(0 < more <= 2 * n for more, n in zip(grown, rows[1:], strict=True))  # a step, and first tokens
    if slots == 64:
        lengths = rollout.lengths.tolist()
        assert ended == [sum(length <= t + 2 for length in lengths) for t in range(len(reports))]
        assert tokens == [sum(min(length, t + 2) for length in lengths) for t in range(len(reports))]


def test_progress_is_told_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = LeanEngine(tiny_model(), [], 0)
    reports: list[Progress] = []
    engine.on_progress = reports.append
    sample_again(engine)
    assert [(r.ended, r.tokens) for r in reports] == [(8, 64)]  # it was over before the first was due
    reports.clear()
    clock = count(time.perf_counter(), 0.3)  # every look at the clock is 0.3 s after the last one
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    sample_again(engine, tokens=10)
    assert [round(r.seconds, 1) for r in reports] == [0.6, 1.2, 1.8, 2.4, 2.7]  # the last one whenever it ends
    assert [r.tokens for r in reports] == [8 * 3, 8 * 5, 8 * 7, 8 * 9, 8 * 10]
