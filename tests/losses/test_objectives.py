"""The objectives on plain tensors: hand-computed losses, and identities 1–4 and 8–11 of the objectives.

Identities 6 and 7 are in ``test_advantages.py``, 12 in ``test_aggregation.py``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from rlvr_pl.losses import GRPO, GSPO, DrGRPO, GSPOToken, LossStrategy, ratio
from rlvr_pl.losses.advantage import AdvantageEstimator, group_mean, group_std
from rlvr_pl.losses.aggregation import (
    Aggregation,
    SeqMeanTokenMean,
    SeqMeanTokenSum,
    SeqMeanTokenSumNorm,
    TokenMean,
)
from rlvr_pl.losses.kl import KLEstimator, k1, k2, k3
from rlvr_pl.losses.policy_loss import PPOClip
from rlvr_pl.losses.ratio import LogRatio
from rlvr_pl.types import LossInputs, LossOutput

torch.set_num_threads(1)

Objective = type[GRPO] | type[DrGRPO] | type[GSPO] | type[GSPOToken]
OBJECTIVES: list[Objective] = [GRPO, DrGRPO, GSPO, GSPOToken]
SEQUENCE_MEAN: list[Objective] = [GRPO, GSPO, GSPOToken]  # the mean over tokens, then over sequences
T_MAX = 10

K3_LN2 = 0.3068528194400547  # k3(ln 2) = 2 − 1 − ln 2
K3_MINUS_LN2 = 0.1931471805599453  # k3(−ln 2) = ½ − 1 + ln 2


def float64(*values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def assert_exact(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@dataclass(frozen=True)
class Evaluated:
    output: LossOutput
    gradient: Tensor  # of the numerator, with respect to the log-probabilities


def evaluate(strategy: LossStrategy, inputs: LossInputs) -> Evaluated:
    logprobs = inputs.logprobs.clone().requires_grad_()
    output = strategy(replace(inputs, logprobs=logprobs))
    (gradient,) = torch.autograd.grad(output.numerator, logprobs)
    return Evaluated(output, gradient)


def loss_of(strategy: LossStrategy, inputs: LossInputs) -> Tensor:
    return strategy(inputs).numerator / strategy.denominator(inputs.mask, T_MAX)


def mask_of(lengths: list[int]) -> Tensor:
    return torch.arange(max(lengths)).unsqueeze(0) < torch.tensor(lengths).unsqueeze(1)


def random_inputs(lengths: list[int], drift: float, reference: bool = False) -> LossInputs:
    """One group; ``drift`` is the scale of log π_θ − log π_old, 0 for on-policy."""
    generator = torch.Generator().manual_seed(0)
    mask = mask_of(lengths)
    noise = torch.randn(3, *mask.shape, dtype=torch.float64, generator=generator)
    rewards = torch.randn(1, len(lengths), dtype=torch.float64, generator=generator)
    logprobs = -2 * noise[0].abs()
    return LossInputs(
        logprobs=logprobs,
        old_logprobs=logprobs - drift * noise[1],
        advantages=AdvantageEstimator(eps=0)(rewards).flatten(),
        mask=mask,
        ref_logprobs=logprobs + 0.5 * noise[2] if reference else None,
    )


LENGTHS = [7, 1, 3, 5, 2, 6, 4, 7]


# Hand-computed examples: lengths 3 and 2, advantages 1 and −1, w = (1, 1.5, 0.5 | 0.5, 1.1),
# π_ref / π_θ = (2, 1, ½ | 2, 2). The pad holds what would be seen if it counted.


def hand_inputs() -> LossInputs:
    logprobs = float64([-1.0, -2.0, -3.0], [-0.5, -1.5, -2.5])
    weights = float64([1.0, 1.5, 0.5], [0.5, 1.1, 5.0])
    ref_weights = float64([2.0, 1.0, 0.5], [2.0, 2.0, 9.0])
    return LossInputs(
        logprobs=logprobs,
        old_logprobs=logprobs - weights.log(),
        advantages=float64(1.0, -1.0),
        mask=mask_of([3, 2]),
        ref_logprobs=logprobs + ref_weights.log(),
    )


def test_grpo_by_hand() -> None:
    strategy, inputs = GRPO(beta=0), hand_inputs()
    # Row 0, A = 1: −(1 + 1.2 + 0.5) / 3 = −0.9. Row 1, A = −1: (0.8 + 1.1) / 2 = 0.95. Mean: 0.025.
    assert_close(loss_of(strategy, inputs), torch.tensor(0.025, dtype=torch.float64))
    result = evaluate(strategy, inputs)
    assert_close(result.gradient, float64([-1 / 3, 0, -0.5 / 3], [0, 0.55, 0]))
    assert_exact(result.output.clipped_high, torch.tensor([[False, True, False], [False, False, False]]))
    assert_exact(result.output.clipped_low, torch.tensor([[False, False, False], [True, False, False]]))
    assert_close(result.output.ratio[inputs.mask], float64(1, 1.5, 0.5, 0.5, 1.1))


def test_grpo_with_kl_by_hand() -> None:
    strategy, inputs = GRPO(beta=0.04), hand_inputs()
    # Row means of k3: (k3(ln 2) + 0 + k3(−ln 2)) / 3 = 0.5 / 3, and k3(ln 2).
    assert_close(loss_of(strategy, inputs), 0.025 + 0.04 * (float64(0.5 / 3 + K3_LN2).squeeze() / 2))
    result = evaluate(strategy, inputs)
    # ∂k3 / ∂logπ_θ = 1 − π_ref / π_θ = (−1, 0, ½ | −1, −1).
    of_policy, of_kl = float64([-1 / 3, 0, -0.5 / 3], [0, 0.55, 0]), float64([-1 / 3, 0, 0.5 / 3], [-0.5, -0.5, 0])
    assert_close(result.gradient, of_policy + 0.04 * of_kl)
    assert result.output.kl_ref is not None
    assert_close(result.output.kl_ref, float64([K3_LN2, 0, K3_MINUS_LN2], [K3_LN2, K3_LN2, 0]))


def test_dr_grpo_by_hand() -> None:
    strategy, inputs = DrGRPO(), hand_inputs()
    # (−2.7 + 1.9) / (2 sequences · T_max 10)
    assert_close(loss_of(strategy, inputs), torch.tensor(-0.04, dtype=torch.float64))
    assert_exact(strategy.denominator(inputs.mask, T_MAX), torch.tensor(20))
    assert_exact(strategy.denominator(inputs.mask, 400), torch.tensor(800))
    assert_close(evaluate(strategy, inputs).gradient, float64([-1, 0, -0.5], [0, 1.1, 0]))


def test_dr_grpo_with_kl_by_hand() -> None:
    # Token sums of k3: 0.5, and 2 k3(ln 2).
    expected = -0.04 + 0.3 * float64(0.5 + 2 * K3_LN2).squeeze() / 20
    assert_close(loss_of(DrGRPO(beta=0.3), hand_inputs()), expected)


S_0 = 0.9085602964160698  # (1 · 1.5 · 0.5)^⅓
S_1 = 0.7416198487095663  # (0.5 · 1.1)^½


def test_gspo_by_hand() -> None:
    strategy, inputs = GSPO(), hand_inputs()
    result = evaluate(strategy, inputs)
    assert_close(result.output.ratio, float64([S_0], [S_1]))
    # Row 0, A = 1 and s under the band: −s_0, not clipped. Row 1, A = −1 and s under the band: 1 − 3e-4, clipped.
    assert_close(loss_of(strategy, inputs), float64(-S_0 + 0.9997).squeeze() / 2)
    assert_close(result.gradient, float64([-S_0 / 3] * 3, [0, 0, 0]))
    assert_exact(result.output.clipped_low, torch.tensor([[False], [True]]))
    assert_exact(result.output.clipped_high, torch.tensor([[False], [False]]))


def test_gspo_in_a_wide_band_by_hand() -> None:
    result = evaluate(GSPO(clip_low=0.3, clip_high=0.3), hand_inputs())
    assert_close(result.output.numerator, torch.tensor(-S_0 + S_1, dtype=torch.float64))
    assert_close(result.gradient, float64([-S_0 / 3] * 3, [S_1 / 2, S_1 / 2, 0]))


def test_gspo_token_by_hand() -> None:
    inputs = hand_inputs()
    result = evaluate(GSPOToken(), inputs)
    assert_close(result.output.ratio[inputs.mask], float64(S_0, S_0, S_0, S_1, S_1))
    assert_close(result.output.numerator, torch.tensor(-S_0 + 0.9997, dtype=torch.float64))
    assert_close(result.gradient, float64([-S_0 / 3] * 3, [0, 0, 0]))


@pytest.mark.parametrize("objective", [GSPO, GSPOToken])
def test_gspo_aggregates_a_kl_term_by_tokens(objective: Objective) -> None:
    expected = float64(-S_0 + 0.9997 + 0.04 * (0.5 / 3 + K3_LN2)).squeeze() / 2
    assert_close(loss_of(objective(beta=0.04), hand_inputs()), expected)


# KL


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        (k1, [-math.log(2), 0, math.log(2), -1, 3]),
        (k2, [0.2402265069591007, 0, 0.2402265069591007, 0.5, 4.5]),  # (ln 2)² / 2
        (k3, [K3_LN2, 0, K3_MINUS_LN2, math.e - 2, math.exp(-3) + 2]),
    ],
)
def test_kl_estimators(estimator: KLEstimator, expected: list[float]) -> None:
    assert_close(estimator(float64(math.log(2), 0, -math.log(2), 1, -3)), float64(*expected))


def test_9_k3_is_positive_except_where_equal() -> None:
    size = torch.logspace(-7, 1.5, 2001, dtype=torch.float64)
    d = torch.cat([-size.flip(0), float64(0), size])
    assert_exact(k3(d) > 0, d != 0)
    assert_exact(k3(float64(0.0)), float64(0.0))
    assert (k3(d.float()) >= 0).all()
    # Near 0 it is d² / 2 + d³ / 6, which exp(d) − 1 − d would lose in rounding.
    torch.testing.assert_close(k3(float64(1e-7, -1e-7)), float64(5e-15, 5e-15), rtol=1e-7, atol=0)


AGGREGATED_K3: list[tuple[Aggregation, float]] = [
    (SeqMeanTokenMean(), (0.5 / 3 + K3_LN2) / 2),
    (SeqMeanTokenSum(), (0.5 + 2 * K3_LN2) / 2),
    (SeqMeanTokenSumNorm(), (0.5 + 2 * K3_LN2) / 20),
    (TokenMean(), (0.5 + 2 * K3_LN2) / 5),
]


@pytest.mark.parametrize(("aggregation", "expected"), AGGREGATED_K3)
@pytest.mark.parametrize("log_ratio", [ratio.token, ratio.sequence_geometric, ratio.sequence_geometric_stopgrad])
def test_the_kl_term_is_beta_times_k3_under_the_policy_terms_aggregation(
    aggregation: Aggregation, expected: float, log_ratio: LogRatio
) -> None:
    losses = [
        loss_of(LossStrategy(AdvantageEstimator(), log_ratio, PPOClip(0.2, 0.2), aggregation, beta), hand_inputs())
        for beta in (0.0, 0.7)
    ]
    assert_close(losses[1] - losses[0], torch.tensor(0.7 * expected, dtype=torch.float64))


@pytest.mark.parametrize(
    ("kl", "row_0", "row_1"),
    [(k1, 0, -math.log(2)), (k2, math.log(2) ** 2 / 3, math.log(2) ** 2 / 2), (k3, 0.5 / 3, K3_LN2)],
)
def test_the_kl_estimator_is_a_choice(kl: KLEstimator, row_0: float, row_1: float) -> None:
    strategy = LossStrategy(AdvantageEstimator(), ratio.token, PPOClip(0.2, 0.2), SeqMeanTokenMean(), 0.5, kl)
    assert_close(loss_of(strategy, hand_inputs()), float64(0.025 + 0.5 * (row_0 + row_1) / 2).squeeze())


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_beta_0_needs_no_reference(objective: Objective) -> None:
    strategy, inputs = objective(beta=0), hand_inputs()
    without = strategy(replace(inputs, ref_logprobs=None))
    assert not strategy.needs_reference
    assert without.kl_ref is None
    assert_exact(without.numerator, strategy(inputs).numerator)
    assert without.numerator.isfinite()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_beta_above_0_needs_a_reference(objective: Objective) -> None:
    strategy = objective(beta=0.04)
    assert strategy.needs_reference
    with pytest.raises(AssertionError, match="needs ref_logprobs"):
        strategy(replace(hand_inputs(), ref_logprobs=None))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_only_the_numerator_carries_a_gradient(objective: Objective) -> None:
    inputs = hand_inputs()
    output = objective(beta=0.04)(replace(inputs, logprobs=inputs.logprobs.requires_grad_()))
    assert output.numerator.requires_grad
    assert output.kl_ref is not None
    assert not output.ratio.requires_grad
    assert not output.kl_ref.requires_grad


@pytest.mark.parametrize("pad", [9.0, math.inf, math.nan])
def test_weights_multiply_each_token_s_policy_loss_and_leave_the_kl_term_alone(pad: float) -> None:
    inputs = replace(hand_inputs(), weights=float64([2.0, 1.0, 0.5], [1.0, 2.0, pad]))
    # Row 0: w is 1, 1.5 (clipped to 1.2) and 0.5. Row 1: 0.5 (clipped to 0.8) and 1.1.
    policy = -(2 * 1 + 1.2 + 0.5 * 0.5) / 3 + (0.8 + 2 * 1.1) / 2
    assert_close(loss_of(GRPO(beta=0), inputs), float64(policy)[0] / 2)
    kl = loss_of(GRPO(beta=0.5), hand_inputs()) - loss_of(GRPO(beta=0), hand_inputs())
    assert_close(loss_of(GRPO(beta=0.5), inputs), float64(policy)[0] / 2 + kl)
    ratios = [(1 * 1.5 * 0.5) ** (1 / 3), (0.5 * 1.1) ** (1 / 2)]
    expected = (-ratios[0] * (2 + 1 + 0.5) / 3 + ratios[1] * (1 + 2) / 2) / 2
    assert_close(loss_of(GSPO(clip_low=0.9, clip_high=9.0), inputs), float64(expected)[0])


# Identities


@pytest.mark.parametrize("objective", SEQUENCE_MEAN)
def test_1_on_policy_the_gradient_is_minus_a_over_l_and_nothing_is_clipped(objective: Objective) -> None:
    inputs = random_inputs(LENGTHS, drift=0)
    result = evaluate(objective(beta=0), inputs)
    per_token = -inputs.advantages / torch.tensor(LENGTHS)
    assert_close(result.gradient, per_token.unsqueeze(1) * inputs.mask)
    assert_exact(result.output.ratio, torch.ones_like(result.output.ratio))
    assert not result.output.clipped_low.any()
    assert not result.output.clipped_high.any()


@pytest.mark.parametrize("objective", [GSPO, GSPOToken])
def test_1_on_policy_gradients_equal_those_of_grpo_and_off_policy_they_do_not(objective: Objective) -> None:
    strategies = [GRPO(beta=0), objective(beta=0)]
    on_policy, off_policy = random_inputs(LENGTHS, drift=0), random_inputs(LENGTHS, drift=0.3)
    assert_close(*[evaluate(strategy, on_policy).gradient for strategy in strategies])
    grpo, other = [evaluate(strategy, off_policy).gradient for strategy in strategies]
    assert (grpo - other).abs().max() > 0.1


@pytest.mark.parametrize("objective", SEQUENCE_MEAN)
def test_2_on_policy_the_loss_is_beta_times_the_kl(objective: Objective) -> None:
    inputs = random_inputs(LENGTHS, drift=0, reference=True)
    assert inputs.ref_logprobs is not None
    d = inputs.ref_logprobs - inputs.logprobs
    kl = torch.stack([(row.exp() - 1 - row)[:length].mean() for row, length in zip(d, LENGTHS, strict=True)]).mean()
    assert kl > 0.05
    assert_close(loss_of(objective(beta=0.04), inputs), 0.04 * kl)
    assert_close(loss_of(objective(beta=0), inputs), torch.zeros((), dtype=torch.float64))


def sequences_around_the_band(dtype: torch.dtype) -> LossInputs:
    """log s_i = ±1e-3 (outside GSPO's band) and ±1e-4 (inside it), each with A = ½ and A = −1; token ratios vary."""
    inputs = random_inputs(LENGTHS, drift=0.01)
    targets = float64(1e-3, 1e-3, -1e-3, -1e-3, 1e-4, 1e-4, -1e-4, -1e-4).unsqueeze(1)
    delta = inputs.logprobs - inputs.old_logprobs
    mean = (delta * inputs.mask).sum(dim=1, keepdim=True) / inputs.mask.sum(dim=1, keepdim=True)
    return LossInputs(
        logprobs=inputs.logprobs.to(dtype),
        old_logprobs=(inputs.logprobs - (delta - mean + targets)).to(dtype),
        advantages=torch.tensor([0.5, -1.0] * 4, dtype=dtype),
        mask=inputs.mask,
    )


def test_3_gspo_token_equals_gspo_off_policy_clipped_rows_included() -> None:
    inputs = sequences_around_the_band(torch.float64)
    gspo, gspo_token = evaluate(GSPO(), inputs), evaluate(GSPOToken(), inputs)
    assert_close(gspo_token.output.numerator, gspo.output.numerator)
    assert_close(gspo_token.gradient, gspo.gradient)
    assert_close(gspo_token.output.ratio[inputs.mask], gspo.output.ratio.expand(inputs.mask.shape)[inputs.mask])
    for result in (gspo, gspo_token):
        # Row 0 has A > 0 and s above the band, row 3 has A < 0 and s below it.
        rows = torch.arange(8).unsqueeze(1)
        assert_exact(inputs.mask & result.output.clipped_high, inputs.mask & (rows == 0))
        assert_exact(inputs.mask & result.output.clipped_low, inputs.mask & (rows == 3))
        assert_exact(result.gradient != 0, inputs.mask & (rows != 0) & (rows != 3))


def test_3_gspo_token_has_gspos_ratio_to_the_bit_in_float32() -> None:
    """GSPO's band is 3e-4 wide, so a ratio must not pick up the rounding of the log-probability itself."""
    inputs = sequences_around_the_band(torch.float32)
    gspo, gspo_token = GSPO()(inputs), GSPOToken()(inputs)
    assert_exact(gspo_token.ratio[inputs.mask], gspo.ratio.expand(inputs.mask.shape)[inputs.mask])


@pytest.mark.parametrize("length", [1, 5])
def test_4_dr_grpo_is_grpo_times_std_and_length_over_the_budget(length: int) -> None:
    rewards = float64([1, 0, 0, 1, 0, 0, 0, 0.2])
    on_policy = random_inputs([length] * 8, drift=0)
    gradients = []
    for strategy in (DrGRPO(), GRPO(beta=0)):
        inputs = replace(on_policy, advantages=strategy.advantages(rewards).flatten())
        gradients.append(evaluate(strategy, inputs).gradient / strategy.denominator(inputs.mask, T_MAX))
    assert_close(gradients[0], length / T_MAX * (rewards.std() + 1e-4) * gradients[1])
    assert gradients[0].abs().min() > 1e-4


def zero_variance_inputs(strategy: LossStrategy, reference: bool) -> LossInputs:
    """Two groups of 8, off-policy; the rewards of the first are all 1.7, in float32."""
    rewards = torch.tensor([[1.7] * 8, [1.0, 0, 0, 1, 0, 0, 1, 1]])
    inputs = random_inputs(LENGTHS + LENGTHS[::-1], drift=0.3, reference=reference)
    return replace(inputs, advantages=strategy.advantages(rewards).flatten().double())


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_8_a_zero_variance_group_has_no_gradient_and_skipping_it_changes_nothing(objective: Objective) -> None:
    strategy = objective(beta=0)
    inputs = zero_variance_inputs(strategy, reference=False)
    whole, kept = evaluate(strategy, inputs), evaluate(strategy, inputs[8:])
    assert strategy.zero_advantage_is_inert
    assert_exact(whole.gradient[:8], torch.zeros_like(whole.gradient[:8]))
    assert whole.gradient[8:].ne(0).any()
    assert not (whole.output.clipped_low | whole.output.clipped_high)[:8].any()
    # The denominator stays that of all 16 sequences, so equal numerators are equal losses.
    assert_close(kept.output.numerator, whole.output.numerator)
    assert_exact(kept.gradient, whole.gradient[8:])
    assert strategy.denominator(inputs.mask, T_MAX) > strategy.denominator(inputs[8:].mask, T_MAX)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_8_a_kl_term_keeps_a_zero_variance_group_in_play(objective: Objective) -> None:
    strategy = objective(beta=0.04)
    inputs = zero_variance_inputs(strategy, reference=True)
    assert not strategy.zero_advantage_is_inert
    assert_exact(evaluate(strategy, inputs).gradient[:8] != 0, inputs.mask[:8])


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_10_the_gradient_is_zero_exactly_beyond_the_bound_of_the_advantages_sign(objective: Objective) -> None:
    low, high, near = 0.1, 0.3, 1e-9
    weights = [0.5, 1 - low - near, 1 - low + near, 1, 1 + high - near, 1 + high + near, 2]
    w, a = (grid.flatten() for grid in torch.meshgrid(float64(*weights), float64(-2, 3), indexing="ij"))
    logprobs = -torch.ones(14, 1, dtype=torch.float64)
    inputs = LossInputs(logprobs, logprobs - w.log().unsqueeze(1), a, torch.ones(14, 1, dtype=torch.bool))
    result = evaluate(objective(clip_low=low, clip_high=high, beta=0), inputs)
    above, below = (a > 0) & (w > 1 + high), (a < 0) & (w < 1 - low)
    assert above.sum() == 2
    assert below.sum() == 2
    clipped = above | below
    assert_exact(result.gradient.squeeze(1) == 0, clipped)
    assert_close(result.gradient.squeeze(1), torch.where(clipped, 0, -a * w))
    assert_exact(result.output.clipped_high.squeeze(1), above)
    assert_exact(result.output.clipped_low.squeeze(1), below)
    bounded = torch.where(above, 1 + high, torch.where(below, 1 - low, w))
    assert_close(result.output.numerator, (-bounded * a).sum())


@pytest.mark.parametrize("objective", SEQUENCE_MEAN)
def test_10_a_ratio_on_the_bound_is_not_clipped(objective: Objective) -> None:
    inputs = random_inputs(LENGTHS, drift=0)
    closed = evaluate(objective(clip_low=0, clip_high=0, beta=0), inputs).gradient
    assert_close(closed, -(inputs.advantages / torch.tensor(LENGTHS)).unsqueeze(1) * inputs.mask)


def poisoned(inputs: LossInputs, names: list[str], value: float, columns: int) -> LossInputs:
    """``inputs`` with ``columns`` more pads, and ``value`` on every pad of the named tensors."""

    def widen(tensor: Tensor) -> Tensor:
        return torch.nn.functional.pad(tensor, (0, columns))

    mask = widen(inputs.mask)
    for name in ("logprobs", "old_logprobs", "ref_logprobs"):
        pad = value if name in names else 0.0
        inputs = replace(inputs, **{name: torch.where(mask, widen(getattr(inputs, name)), pad)})
    return replace(inputs, mask=mask)


POISONED_TENSORS = [["logprobs"], ["old_logprobs"], ["ref_logprobs"], ["logprobs", "old_logprobs", "ref_logprobs"]]


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("names", POISONED_TENSORS, ids="+".join)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_11_padding_changes_nothing_whatever_it_holds(objective: Objective, names: list[str], value: float) -> None:
    strategy, inputs = objective(beta=0.04), random_inputs(LENGTHS, drift=0.3, reference=True)
    padded = poisoned(inputs, names, value, columns=3)
    result = evaluate(strategy, padded)
    total = torch.zeros((), dtype=torch.float64)
    for row, length in enumerate(LENGTHS):  # each sequence alone, with no pad at all
        alone = LossInputs(
            logprobs=inputs.logprobs[row : row + 1, :length],
            old_logprobs=inputs.old_logprobs[row : row + 1, :length],
            advantages=inputs.advantages[row : row + 1],
            mask=inputs.mask[row : row + 1, :length],
            ref_logprobs=None if inputs.ref_logprobs is None else inputs.ref_logprobs[row : row + 1, :length],
        )
        unpadded = evaluate(strategy, alone)
        total += unpadded.output.numerator.detach()
        assert_close(result.gradient[row, :length], unpadded.gradient.squeeze(0))
        assert_exact(result.gradient[row, length:], torch.zeros(10 - length, dtype=torch.float64))
        assert_close(result.output.ratio[row, :length], unpadded.output.ratio.squeeze(0))
        assert result.output.kl_ref is not None
        assert unpadded.output.kl_ref is not None
        assert_close(result.output.kl_ref[row, :length], unpadded.output.kl_ref.squeeze(0))
    assert_close(result.output.numerator.detach(), total)
    assert_exact(strategy.denominator(padded.mask, T_MAX), strategy.denominator(inputs.mask, T_MAX))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_11_permuting_a_group_with_its_rewards_permutes_the_gradient(objective: Objective) -> None:
    strategy, inputs = objective(beta=0.04), random_inputs(LENGTHS, drift=0.3, reference=True)
    rewards, order = float64([1, 0, 0.5, 1, 0, 0, 0.2, 0]), torch.tensor([3, 7, 0, 6, 1, 4, 2, 5])
    original = evaluate(strategy, replace(inputs, advantages=strategy.advantages(rewards).flatten()))
    permuted_advantages = strategy.advantages(rewards[:, order]).flatten()
    permuted = evaluate(strategy, replace(inputs[order], advantages=permuted_advantages))
    assert_close(permuted.output.numerator, original.output.numerator)
    assert_close(permuted.gradient, original.gradient[order])
    assert (permuted.gradient - original.gradient).abs().max() > 1e-2


# The papers' constants, and errors


@dataclass(frozen=True)
class Paper:
    objective: Objective
    advantage: AdvantageEstimator
    log_ratio: LogRatio
    clip: PPOClip
    aggregation: type[Aggregation]
    beta: float


STANDARDISED = AdvantageEstimator(group_mean, group_std, 1e-4)
CENTRED = AdvantageEstimator(group_mean, None)
GSPO_CLIP = PPOClip(3e-4, 4e-4)
PAPERS = [
    Paper(GRPO, STANDARDISED, ratio.token, PPOClip(0.2, 0.2), SeqMeanTokenMean, 0.04),
    Paper(DrGRPO, CENTRED, ratio.token, PPOClip(0.2, 0.2), SeqMeanTokenSumNorm, 0),
    Paper(GSPO, STANDARDISED, ratio.sequence_geometric, GSPO_CLIP, SeqMeanTokenMean, 0),
    Paper(GSPOToken, STANDARDISED, ratio.sequence_geometric_stopgrad, GSPO_CLIP, SeqMeanTokenMean, 0),
]


@pytest.mark.parametrize("paper", PAPERS, ids=lambda paper: paper.objective.__name__)
def test_the_defaults_are_the_papers(paper: Paper) -> None:
    strategy = paper.objective()
    assert strategy.advantage == paper.advantage
    assert strategy.log_ratio is paper.log_ratio
    assert strategy.policy_loss == paper.clip
    assert type(strategy.aggregation) is paper.aggregation
    assert strategy.beta == paper.beta
    assert strategy.kl is k3


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"clip_low": -0.1}, r"clip_low is -0\.1; it must lie in \[0, 1\]"),
        ({"clip_low": 1.5}, r"clip_low is 1\.5; it must lie in \[0, 1\]"),
        ({"clip_low": math.nan}, r"clip_low is nan"),
        ({"clip_high": -0.1}, r"clip_high is -0\.1; it must be at least 0"),
        ({"clip_high": math.nan}, r"clip_high is nan"),
        ({"beta": -0.04}, r"beta is -0\.04; the weight of the KL term must be at least 0"),
        ({"beta": math.nan}, r"beta is nan"),
    ],
)
def test_constants_out_of_range_are_errors(objective: Objective, arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        objective(**arguments)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_constants_at_the_ends_of_their_ranges_are_not(objective: Objective) -> None:
    strategy = objective(clip_low=0, clip_high=0, beta=0)
    assert strategy.policy_loss == PPOClip(0, 0)
    assert objective(clip_low=1, clip_high=math.inf).policy_loss == PPOClip(1, math.inf)


def test_8_10_an_overflowing_ratio_leaves_no_nan_where_the_gradient_is_zero() -> None:
    """exp(99) is inf in float32: clipped for A = 1, and multiplied by 0 for A = 0."""
    for advantage in (1.0, 0.0):
        logprobs = torch.tensor([[-1.0, -1.0]], requires_grad=True)
        old = torch.tensor([[-100.0, -1.0]])
        inputs = LossInputs(logprobs, old, torch.tensor([advantage]), torch.ones(1, 2, dtype=torch.bool))
        output = GRPO(beta=0.0)(inputs)
        (gradient,) = torch.autograd.grad(output.numerator, logprobs)
        assert gradient.tolist() == [[0.0, -advantage / 2]]
        assert output.numerator.item() == pytest.approx(-advantage * (1.2 + 1.0) / 2)
