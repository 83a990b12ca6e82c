"""From rewards to advantages: hand-computed groups, and identities 6, 7 and 8 of the objectives."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rlvr_pl.losses import GRPO, GSPO, DrGRPO, GSPOToken
from rlvr_pl.losses.advantage import AdvantageEstimator, GroupStatistic, group_mean, group_std, leave_one_out

torch.set_num_threads(1)

Standardised = type[GRPO] | type[GSPO] | type[GSPOToken]
STANDARDISED: list[Standardised] = [GRPO, GSPO, GSPOToken]
STATISTICS = [(group_mean, group_std), (group_mean, None), (leave_one_out, None), (leave_one_out, group_std)]


def float64(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def random_rewards(groups: int = 5, size: int = 8) -> Tensor:
    return torch.randn(groups, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def population_std(rewards: Tensor) -> Tensor:
    return rewards.std(dim=1, keepdim=True, correction=0)


def assert_exact(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("objective", STANDARDISED)
def test_standardised_advantages_divide_by_the_unbiased_std_plus_eps(objective: Standardised) -> None:
    # r̄ = 1/2, σ = √(4 · ¼ / 3) = 0.577350269189625…, and 0.5 / (σ + 1e-4) = 0.865875428…
    a = 0.5 / 0.5774502691896258
    assert a == pytest.approx(0.8658754, abs=1e-7)
    assert_close(objective().advantages(float64([1, 0, 0, 1])), float64([a, -a, -a, a]))


@pytest.mark.parametrize("objective", STANDARDISED)
def test_advantage_eps_is_the_one_given(objective: Standardised) -> None:
    half_root_3 = 0.8660254037844386
    exact = objective(advantage_eps=0).advantages(float64([1, 0, 0, 1]))
    assert_close(exact, float64([half_root_3, -half_root_3, -half_root_3, half_root_3]))
    # r̄ = 1/4, σ = √((9 + 3) / 16 / 3) = 1/2: halved by an eps that equals σ.
    assert_close(objective(advantage_eps=0.5).advantages(float64([1, 0, 0, 0])), float64([0.75, -0.25, -0.25, -0.25]))


def test_dr_grpo_only_subtracts_the_mean() -> None:
    rewards = float64([1, 0, 0, 1], [1, 0, 0, 0])
    assert_exact(DrGRPO().advantages(rewards), float64([0.5, -0.5, -0.5, 0.5], [0.75, -0.25, -0.25, -0.25]))


@pytest.mark.parametrize(("baseline", "scale"), STATISTICS)
def test_each_group_stands_alone(baseline: GroupStatistic, scale: GroupStatistic | None) -> None:
    estimator = AdvantageEstimator(baseline, scale)
    rewards = random_rewards()
    assert_close(estimator(rewards), torch.cat([estimator(group.unsqueeze(0)) for group in rewards]))


@pytest.mark.parametrize(("baseline", "scale"), STATISTICS)
def test_advantages_keep_the_rewards_precision(baseline: GroupStatistic, scale: GroupStatistic | None) -> None:
    assert AdvantageEstimator(baseline, scale)(torch.tensor([[1.0, 0.0, 0.5]])).dtype == torch.float32


def test_leave_one_out_baseline_is_the_mean_of_the_others() -> None:
    # [1, 0, 0, 1]: the others of a 1 sum to 1, those of a 0 to 2. [6, 3, 0, 0]: 3, 6, 9, 9.
    rewards = float64([1, 0, 0, 1], [6, 3, 0, 0])
    assert_close(leave_one_out(rewards), float64([1 / 3, 2 / 3, 2 / 3, 1 / 3], [1, 2, 3, 3]))


@pytest.mark.parametrize("size", [2, 3, 8])
def test_6_leave_one_out_is_the_group_mean_times_g_over_g_minus_1(size: int) -> None:
    rewards = random_rewards(size=size)
    advantages = AdvantageEstimator(leave_one_out, scale=None)(rewards)
    assert_close(advantages, size / (size - 1) * (rewards - rewards.mean(dim=1, keepdim=True)))
    assert advantages.abs().min() > 1e-3  # nothing here is 0 = 0


@pytest.mark.parametrize("size", [2, 3, 8])
def test_6_unbiased_scaling_is_population_scaling_times_root_g_minus_1_over_g(size: int) -> None:
    rewards = random_rewards(size=size)
    unbiased = AdvantageEstimator(group_mean, group_std, eps=0)(rewards)
    population = AdvantageEstimator(group_mean, population_std, eps=0)(rewards)
    assert_close(unbiased, population * math.sqrt((size - 1) / size))


@pytest.mark.parametrize(("baseline", "scale"), STATISTICS)
def test_7_advantages_of_a_group_sum_to_zero(baseline: GroupStatistic, scale: GroupStatistic | None) -> None:
    advantages = AdvantageEstimator(baseline, scale)(random_rewards())
    assert_close(advantages.sum(dim=1), torch.zeros(5, dtype=torch.float64))
    assert advantages.abs().amax(dim=1).min() > 0.5


@pytest.mark.parametrize("objective", STANDARDISED)
@pytest.mark.parametrize(("a", "b"), [(3.0, 0.0), (1.0, -2.0), (0.25, 7.0)])
def test_7_standardised_advantages_are_invariant_to_affine_rewards(objective: Standardised, a: float, b: float) -> None:
    strategy, rewards = objective(advantage_eps=0), random_rewards()
    assert_close(strategy.advantages(a * rewards + b), strategy.advantages(rewards))


@pytest.mark.parametrize(("a", "b"), [(3.0, 0.0), (1.0, -2.0), (0.25, 7.0)])
def test_7_dr_grpo_advantages_scale_with_the_rewards(a: float, b: float) -> None:
    rewards = random_rewards()
    assert_close(DrGRPO().advantages(a * rewards + b), a * DrGRPO().advantages(rewards))


@pytest.mark.parametrize(("baseline", "scale"), STATISTICS)
@pytest.mark.parametrize("eps", [0.0, 1e-4])
@pytest.mark.parametrize("size", [2, 3, 7, 8, 11])
def test_8_a_group_without_variance_has_advantages_of_exactly_zero(
    baseline: GroupStatistic, scale: GroupStatistic | None, eps: float, size: int
) -> None:
    # In float32 the mean of eight 1.7s is not 1.7, and with eps = 0 the residue over its own std would be about 1.
    equal = torch.tensor([1.7, 0.1, 0.3, 1.1, 2.3, 0.0]).unsqueeze(1).expand(-1, size)
    unequal = torch.arange(size).eq(0).float().unsqueeze(0)
    advantages = AdvantageEstimator(baseline, scale, eps)(torch.cat([equal, unequal]))
    assert_exact(advantages[:-1], torch.zeros(6, size))
    assert advantages[-1].ne(0).all()


@pytest.mark.parametrize("objective", [*STANDARDISED, DrGRPO])
def test_a_group_of_one_is_an_error(objective: Standardised | type[DrGRPO]) -> None:
    with pytest.raises(ValueError, match="needs a group of at least 2"):
        objective().advantages(torch.ones(4, 1))
