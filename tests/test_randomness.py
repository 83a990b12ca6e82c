"""Randomness as a function: known numbers, no dependence on the batch, uniform, and no two keys alike."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rlvr_pl.randomness import evaluation_noise, hold_out, prompt_order, rollout_noise

# Known numbers. Should they change, then every run of the past can no longer be repeated.


def test_rollout_noise_stays_what_it_is() -> None:
    noise = rollout_noise(seed=7, rollout=3, prompts=[5, 0], group_size=2, tokens=3)
    assert noise.dtype == torch.float32
    assert noise.tolist() == [
        [0.2552446722984314, 0.25286924839019775, 0.8752532601356506],
        [0.47563743591308594, 0.444436252117157, 0.5350835919380188],
        [0.42289429903030396, 0.7232912182807922, 0.795434296131134],
        [0.20064228773117065, 0.24076640605926514, 0.46539783477783203],
    ]


def test_evaluation_noise_stays_what_it_is() -> None:
    noise = evaluation_noise(seed=7, questions=[12, 4], samples=1, tokens=3)
    assert noise.dtype == torch.float32
    assert noise.tolist() == [
        [0.974670946598053, 0.4963870644569397, 0.38004428148269653],
        [0.48094600439071655, 0.14870452880859375, 0.9069728255271912],
    ]


def test_prompt_order_and_hold_out_stay_what_they_are() -> None:
    assert prompt_order(seed=7, epoch=2, size=10).tolist() == [3, 7, 6, 9, 0, 1, 2, 4, 8, 5]
    assert hold_out(seed=7, size=30, count=6) == {2, 10, 11, 16, 20, 27}


# A function of the key alone.


def test_a_row_does_not_depend_on_the_others() -> None:
    whole = rollout_noise(1, 2, range(6), group_size=3, tokens=8).view(6, 3, 8)
    for prompts in ([0], [5, 1], [4, 0, 2], [3, 3]):
        assert torch.equal(rollout_noise(1, 2, prompts, 3, 8).view(-1, 3, 8), whole[prompts])
    assert torch.equal(rollout_noise(1, 2, range(6), group_size=2, tokens=8).view(6, 2, 8), whole[:, :2])
    whole = evaluation_noise(1, range(6), samples=3, tokens=8).view(6, 3, 8)
    for questions in ([0], [5, 1], [4, 0, 2], [3, 3]):
        assert torch.equal(evaluation_noise(1, questions, 3, 8).view(-1, 3, 8), whole[questions])


def test_a_longer_budget_only_adds_numbers() -> None:
    """A token's noise does not depend on how many tokens may follow it."""
    for tokens in (1, 2, 7, 63):
        assert torch.equal(rollout_noise(0, 0, [3], 2, tokens), rollout_noise(0, 0, [3], 2, 64)[:, :tokens])
        assert torch.equal(evaluation_noise(0, [3], 2, tokens), evaluation_noise(0, [3], 2, 64)[:, :tokens])


def test_nothing_is_carried_from_call_to_call() -> None:
    first = rollout_noise(0, 4, [1], 2, 5)
    torch.manual_seed(99)
    np.random.seed(99)
    rollout_noise(0, 5, [1], 2, 5)
    state = torch.get_rng_state()
    assert torch.equal(rollout_noise(0, 4, [1], 2, 5), first)
    prompt_order(0, 0, 10)
    hold_out(0, 10, 3)
    assert torch.equal(torch.get_rng_state(), state)


# Different keys, different numbers.


def test_no_two_rows_of_any_seed_rollout_prompt_and_member_are_alike() -> None:
    seeds, rollouts = (0, 1, 2**32 - 1), (0, 1, 255)
    rows = torch.cat([rollout_noise(s, r, range(5), 4, 4) for s in seeds for r in rollouts])
    rows = torch.cat([rows, *(evaluation_noise(s, range(7), 4, 4) for s in seeds)])
    assert len(rows) == 3 * 3 * 5 * 4 + 3 * 7 * 4
    assert len({tuple(row) for row in rows.tolist()}) == len(rows)


def test_swapped_keys_are_not_alike() -> None:
    """Seed, rollout, prompt and member are places of a key, not terms of a sum."""
    one = rollout_noise(seed=1, rollout=2, prompts=[3], group_size=1, tokens=4)
    assert not torch.equal(one, rollout_noise(seed=2, rollout=1, prompts=[3], group_size=1, tokens=4))
    assert not torch.equal(one, rollout_noise(seed=1, rollout=3, prompts=[2], group_size=1, tokens=4))
    members = rollout_noise(seed=1, rollout=2, prompts=[0, 3], group_size=4, tokens=4).view(2, 4, 4)
    assert not torch.equal(members[0, 3], members[1, 0])


def test_orders_differ_by_seed_and_by_epoch() -> None:
    orders = {tuple(prompt_order(seed, epoch, 20).tolist()) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25
    assert {tuple(sorted(order)) for order in orders} == {tuple(range(20))}


# Uniform.


def ks_statistic(sample: np.ndarray) -> float:
    """√n · sup |F_n - F| against the uniform distribution; above 1.95 in one sample of a thousand."""
    n = len(sample)
    ordered = np.sort(sample.astype(np.float64))
    steps = np.arange(n + 1) / n
    return math.sqrt(n) * max(float(np.max(steps[1:] - ordered)), float(np.max(ordered - steps[:-1])))


def test_the_statistic_sees_what_is_not_uniform() -> None:
    uniform = np.random.default_rng(0).random(4000)
    assert ks_statistic(uniform) < 1.95
    assert ks_statistic(uniform**1.1) > 1.95
    assert ks_statistic(0.94 * uniform) > 1.95


@pytest.mark.parametrize("vary", ["token", "member", "prompt", "rollout", "seed", "question"])
def test_uniform_along_every_part_of_the_key(vary: str) -> None:
    n = 4000
    noise = {
        "token": lambda: rollout_noise(0, 0, [0], 1, n),
        "member": lambda: rollout_noise(0, 0, [0], n, 1),
        "prompt": lambda: rollout_noise(0, 0, range(n), 1, 1),
        "rollout": lambda: torch.cat([rollout_noise(0, rollout, [0], 1, 1) for rollout in range(n)]),
        "seed": lambda: torch.cat([rollout_noise(seed, 0, [0], 1, 1) for seed in range(n)]),
        "question": lambda: evaluation_noise(0, range(n), 1, 1),
    }[vary]()
    sample = noise.flatten().numpy()
    assert len(sample) == n
    assert ks_statistic(sample) < 1.95
    assert abs(float(np.corrcoef(sample[1:], sample[:-1])[0, 1])) < 3.3 / math.sqrt(n)  # neighbours are independent


def test_the_numbers_lie_in_the_half_open_unit_interval() -> None:
    """1 itself would pick no token of an inverse CDF."""
    noise = rollout_noise(0, 0, range(4), 4, 100_000)
    assert noise.shape == (16, 100_000)
    assert 0.0 <= float(noise.min()) < 1e-5
    assert 1 - 1e-5 < float(noise.max()) < 1.0


# The order and the hold-out.


@pytest.mark.parametrize("size", [1, 2, 7473])
def test_an_order_is_a_permutation(size: int) -> None:
    assert sorted(prompt_order(3, 1, size).tolist()) == list(range(size))


def test_every_question_comes_first_equally_often() -> None:
    counts = np.bincount([int(prompt_order(seed, 0, 8)[0]) for seed in range(4000)], minlength=8)
    chi_square = float(((counts - 500) ** 2 / 500).sum())
    assert chi_square < 24.3  # 7 degrees of freedom; more in one sample of a thousand


@pytest.mark.parametrize(("size", "count"), [(10, 0), (10, 1), (10, 10), (7473, 256)])
def test_a_hold_out_has_its_count(size: int, count: int) -> None:
    chosen = hold_out(0, size, count)
    assert len(chosen) == count
    assert chosen <= set(range(size))
    assert all(type(row) is int for row in chosen)


def test_a_larger_hold_out_contains_the_smaller_one() -> None:
    assert hold_out(3, 100, 10) < hold_out(3, 100, 20)
    assert hold_out(3, 100, 10) != hold_out(4, 100, 10)
