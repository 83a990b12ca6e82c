"""How a rollout is cut up, and the diagnostics of an update, on hand-made rollouts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor

from rlvr_pl import update as update_module
from rlvr_pl.losses import GRPO, GSPO, DrGRPO, GSPOToken, LossStrategy
from rlvr_pl.losses.advantage import AdvantageEstimator
from rlvr_pl.losses.aggregation import TokenMean
from rlvr_pl.losses.policy_loss import PPOClip
from rlvr_pl.losses.ratio import token
from rlvr_pl.scoring import PackedGroups, Sequences, TokenScores
from rlvr_pl.types import LossInputs, LossOutput, Rollout
from rlvr_pl.update import (
    MicroBatch,
    Minibatch,
    OldPolicy,
    Update,
    UpdateStats,
    cut_into_minibatches,
    empty_micro_batch,
)

torch.set_num_threads(1)

CPU = torch.device("cpu")
T_MAX = 10
# Four groups of two; completion_ids[i, t] is 100 i + t, and prompt i // 2 has i // 2 + 1 tokens.
LENGTHS = [5, 2, 8, 1, 3, 3, 6, 4]
ADVANTAGES = torch.tensor([1.0, -1.0, 0.0, 0.0, 0.5, -0.5, 0.0, 2.0])


def mask_of(lengths: Sequence[int]) -> Tensor:
    return torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)


def hand_rollout() -> Rollout:
    mask = mask_of(LENGTHS)
    return Rollout(
        prompt_ids=[[7] * (i + 1) for i in range(4)],
        group_size=2,
        completion_ids=(torch.arange(8).unsqueeze(1) * 100 + torch.arange(8)).masked_fill(~mask, -1),
        mask=mask,
        sampling_logprobs=torch.zeros(8, 8),
        truncated=torch.zeros(8, dtype=torch.bool),
    )


def token_mean() -> LossStrategy:
    return LossStrategy(AdvantageEstimator(), token, PPOClip(0.2, 0.2), TokenMean())


def minibatches_of(
    loss: LossStrategy, minibatches: int, token_budget: int = 10_000, rank: int = 0, ranks: int = 1
) -> list[Minibatch]:
    return cut_into_minibatches(
        hand_rollout(), ADVANTAGES, loss, PackedGroups(), minibatches, token_budget, T_MAX, rank, ranks
    )


def completion_starts(micro_batch: MicroBatch) -> Tensor:
    lengths = micro_batch.mask.sum(dim=1)
    return lengths.cumsum(dim=0) - lengths


def rows_of(micro_batch: MicroBatch) -> list[int]:
    if not micro_batch.mask.any():
        return []
    return (micro_batch.sequences.targets[completion_starts(micro_batch)] // 100).tolist()


def row_lists(minibatches: list[Minibatch]) -> list[list[list[int]]]:
    return [[rows_of(micro_batch) for micro_batch in minibatch.micro_batches] for minibatch in minibatches]


# The cut


@pytest.mark.parametrize("minibatches", [1, 2, 4])
def test_minibatches_hold_whole_neighbouring_groups(minibatches: int) -> None:
    cut = row_lists(minibatches_of(GRPO(beta=0.04), minibatches))
    size = 8 // minibatches
    assert [sorted(i for rows in minibatch for i in rows) for minibatch in cut] == [
        list(range(start, start + size)) for start in range(0, 8, size)
    ]


def test_micro_batches_hold_whole_groups_each_prompt_once() -> None:
    # Groups, their prompt counted once: 1 + 5 + 2 = 8, 2 + 8 + 1 = 11, 3 + 3 + 3 = 9 and 4 + 6 + 4 = 14.
    assert row_lists(minibatches_of(GRPO(beta=0.04), 1, token_budget=22)) == [[[0, 1, 6, 7], [2, 3, 4, 5]]]
    assert row_lists(minibatches_of(GRPO(beta=0.04), 2, token_budget=22)) == [[[0, 1, 2, 3]], [[6, 7], [4, 5]]]
    assert row_lists(minibatches_of(GRPO(beta=0.04), 2, token_budget=23)) == [[[0, 1, 2, 3]], [[4, 5, 6, 7]]]


def test_a_group_that_exceeds_the_budget_is_cut_and_its_prompt_repeated() -> None:
    (minibatch,) = minibatches_of(GRPO(beta=0.04), 1, token_budget=10)
    parts = [rows_of(micro_batch) for micro_batch in minibatch.micro_batches]
    assert parts == [[2], [6], [4, 5], [0, 1], [7], [3]]
    ids = [micro_batch.sequences.input_ids.tolist()[0] for micro_batch in minibatch.micro_batches]
    assert ids[1] == [7, 7, 7, 7, *range(600, 606)]
    assert ids[4] == [7, 7, 7, 7, *range(700, 704)]
    singles = row_lists(minibatches_of(GRPO(beta=0.04), 2, token_budget=1))
    assert [sorted(minibatch) for minibatch in singles] == [[[0], [1], [2], [3]], [[4], [5], [6], [7]]]


def test_ranks_share_a_minibatch_evenly_and_run_as_often() -> None:
    def of_ranks(ranks: int, **settings: int) -> list[list[list[list[int]]]]:
        return [row_lists(minibatches_of(GSPO(), rank=r, ranks=ranks, **settings)) for r in range(ranks)]

    # What teaches something: group 0 (8 tokens), group 2 (9) and member 7 of group 3 (4 + 4).
    assert of_ranks(2, minibatches=1) == [[[[0, 1, 7]]], [[[4, 5]]]]
    assert of_ranks(2, minibatches=1, token_budget=9) == [[[[4, 5], [7]]], [[[0, 1], []]]]
    assert of_ranks(2, minibatches=2) == [[[[0, 1]], [[4, 5]]], [[[]], [[7]]]]


def test_every_rank_knows_the_denominator_of_all() -> None:
    for rank in range(4):
        cut = minibatches_of(DrGRPO(), 1, rank=rank, ranks=4)
        assert [minibatch.denominator.item() for minibatch in cut] == [80]


@pytest.mark.parametrize("loss", [GRPO(beta=0.0), DrGRPO(), GSPO(), GSPOToken(), token_mean()])
def test_without_a_kl_term_zero_advantages_are_left_out(loss: LossStrategy) -> None:
    assert row_lists(minibatches_of(loss, 1)) == [[[0, 1, 4, 5, 7]]]
    assert row_lists(minibatches_of(loss, 4)) == [[[0, 1]], [[]], [[4, 5]], [[7]]]


@pytest.mark.parametrize("loss", [GRPO(beta=0.04), DrGRPO(beta=0.1), GSPO(beta=1.0), GSPOToken(beta=1e-9)])
def test_with_a_kl_term_they_are_kept(loss: LossStrategy) -> None:
    assert row_lists(minibatches_of(loss, 1)) == [[[0, 1, 2, 3, 4, 5, 6, 7]]]
    assert row_lists(minibatches_of(loss, 4)) == [[[0, 1]], [[2, 3]], [[4, 5]], [[6, 7]]]


@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize(
    ("objective", "whole", "halves", "quarters"),
    [
        (GRPO, 8, [4, 4], [2, 2, 2, 2]),
        (GSPO, 8, [4, 4], [2, 2, 2, 2]),
        (GSPOToken, 8, [4, 4], [2, 2, 2, 2]),
        (DrGRPO, 80, [40, 40], [20, 20, 20, 20]),
    ],
)
def test_denominators_keep_what_is_left_out(
    objective: type[GRPO], whole: int, halves: list[int], quarters: list[int], beta: float
) -> None:
    for minibatches, expected in {1: [whole], 2: halves, 4: quarters}.items():
        cut = minibatches_of(objective(beta=beta), minibatches, token_budget=6)
        assert [m.denominator.item() for m in cut] == expected


def test_a_token_denominator_keeps_the_tokens_of_what_is_left_out() -> None:
    assert [m.denominator.item() for m in minibatches_of(token_mean(), 1)] == [32]
    assert [m.denominator.item() for m in minibatches_of(token_mean(), 2)] == [16, 16]
    assert [m.denominator.item() for m in minibatches_of(token_mean(), 4)] == [7, 9, 6, 10]


def test_a_micro_batch_carries_its_sequences_and_is_as_wide_as_the_longest() -> None:
    rollout = hand_rollout()
    (minibatch,) = minibatches_of(GRPO(beta=0), 1, token_budget=16)
    assert [rows_of(m) for m in minibatch.micro_batches] == [[0, 1, 7], [4, 5]]
    for micro_batch, width in zip(minibatch.micro_batches, [5, 3], strict=True):
        rows = rows_of(micro_batch)
        line = []
        for owner in sorted({i // 2 for i in rows}):
            line += rollout.prompt_ids[owner]
            for i in [i for i in rows if i // 2 == owner]:
                line += rollout.completion_ids[i, : LENGTHS[i]].tolist()
        assert micro_batch.sequences.input_ids.tolist() == [line]
        assert torch.equal(micro_batch.sequences.targets, rollout.completion_ids[rows, :width][micro_batch.mask])
        assert torch.equal(micro_batch.mask, rollout.mask[rows, :width])
        assert torch.equal(micro_batch.advantages, ADVANTAGES[rows])
        lengths = micro_batch.mask.sum(1).tolist()
        assert lengths == [LENGTHS[i] for i in rows]


def test_without_any_advantage_a_minibatch_has_an_empty_micro_batch_and_its_denominator() -> None:
    """An optimizer step needs a gradient, be it 0."""
    minibatches = cut_into_minibatches(hand_rollout(), torch.zeros(8), GRPO(beta=0), PackedGroups(), 2, 100, T_MAX)
    assert row_lists(minibatches) == [[[]], [[]]]
    assert [m.denominator.item() for m in minibatches] == [4, 4]


@pytest.mark.parametrize("loss", [GRPO(beta=0.0), GRPO(), DrGRPO(), GSPO(), GSPO(beta=0.1), GSPOToken(), token_mean()])
def test_an_empty_micro_batch_has_a_loss_and_a_gradient_of_0(loss: LossStrategy) -> None:
    empty = empty_micro_batch(hand_rollout(), PackedGroups())
    assert empty.sequences.input_ids.tolist() == [[7]]
    assert empty.sequences.targets.tolist() == []
    assert empty.mask.tolist() == [[False]]
    assert empty.advantages.tolist() == [0.0]
    assert loss.denominator(empty.mask, T_MAX).item() == 0
    logprobs = torch.zeros(1, 1, requires_grad=True)
    output = loss(LossInputs(logprobs, torch.zeros(1, 1), empty.advantages, empty.mask, torch.zeros(1, 1)))
    (gradient,) = torch.autograd.grad(output.numerator, logprobs)
    assert output.numerator.item() == 0
    assert gradient.tolist() == [[0.0]]


# π_old and π_ref


@dataclass
class Scored:
    """A policy that notes when it scores which rows, in the place of ``rlvr_pl.update.score``."""

    calls: list[tuple[str, list[int]]] = field(default_factory=list)
    with_entropy: list[bool] = field(default_factory=list)

    def __call__(self, policy: str, sequences: Sequences, temperature: float, with_entropy: bool = True) -> TokenScores:
        n, T = sequences.shape
        self.with_entropy.append(with_entropy)
        self.calls.append((policy, sequences.targets.tolist()[:1]))
        return TokenScores(torch.full((n, T), -float(len(self.calls)), requires_grad=True), torch.zeros(n, T))


def test_pi_old_is_scored_before_the_first_step_but_for_the_first_minibatch_s(monkeypatch: pytest.MonkeyPatch) -> None:
    scored = Scored()
    monkeypatch.setattr(update_module, "score", scored)
    first, second = minibatches_of(GRPO(beta=0.04), 2)
    update = Update([first, second], GRPO(beta=0.04), "policy", ["reference"], 1.0, CPU)  # type: ignore[arg-type]
    a, b = ([rows_of(m)[0] * 100] for minibatch in (first, second) for m in minibatch.micro_batches)
    assert scored.calls == [("reference", a), ("policy", b), ("reference", b)]
    for _ in range(2):  # epochs
        for minibatch in (first, second):
            list(update.losses(minibatch))
    assert scored.calls[3:] == [("policy", a), ("policy", b)] * 2
    assert scored.with_entropy == [False] * 3 + [True] * 4  # of what learns alone, for it alone is logged
    update.stats.add_step(1.0)
    # The ratio is 1 where a minibatch is first seen on-policy; later the policy's score has fallen by one a call.
    expected = [0, (-5 - -2), (-6 - -4), (-7 - -2)]
    tokens = [int(minibatch.micro_batches[0].mask.sum()) for minibatch in (first, second)] * 2
    total = sum(math.exp(d) * n for d, n in zip(expected, tokens, strict=True)) / sum(tokens)
    assert update.stats.means()["ratio_mean"] == pytest.approx(total)


def test_the_sampler_s_log_probabilities_as_pi_old_cost_no_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ratio is that to the sampler; its mismatch is counted while the policy is still the sampler's."""
    scored = Scored()
    monkeypatch.setattr(update_module, "score", scored)
    first, second = minibatches_of(GRPO(beta=0.0), 2)
    update = Update([first, second], GRPO(beta=0.0), "policy", [], 1.0, CPU, OldPolicy(sampled=True))  # type: ignore[arg-type]
    assert scored.calls == []
    for minibatch in (first, second):
        list(update.losses(minibatch))
        update.stats.add_step(1.0)
    assert len(scored.calls) == 2
    # The sampler's are 0 in the hand-made rollout, the policy's fall by one a call.
    tokens = [int(minibatch.micro_batches[0].mask.sum()) for minibatch in (first, second)]
    expected = sum(math.exp(-1 - call) * n for call, n in enumerate(tokens)) / sum(tokens)
    assert update.stats.means()["ratio_mean"] == pytest.approx(expected)
    assert update.stats.logprob_mismatch() == (1.0, 1.0), "of the first minibatch alone"


def test_truncated_importance_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    old, sampling = torch.tensor([[-1.0, -2.0, -3.0]]), torch.tensor([[-1.5, -2.0, -6.0]])
    assert OldPolicy().weights(old, sampling) is None
    weights = OldPolicy(importance_cap=2.0).weights(old, sampling)
    assert weights is not None
    torch.testing.assert_close(weights, torch.tensor([[math.exp(0.5), 1.0, 2.0]]))
    seen: list[LossInputs] = []

    class Spy(GRPO):
        def __call__(self, inputs: LossInputs) -> LossOutput:
            seen.append(inputs)
            return super().__call__(inputs)

    monkeypatch.setattr(update_module, "score", Scored())
    (minibatch,) = minibatches_of(Spy(beta=0.0), 1)
    update = Update([minibatch], Spy(beta=0.0), "policy", [], 1.0, CPU, OldPolicy(importance_cap=2.0))  # type: ignore[arg-type]
    list(update.losses(minibatch))
    (inputs,) = seen
    assert inputs.weights is not None
    assert inputs.weights.unique().tolist() == pytest.approx([math.exp(-1)]), "the sampler's are 0, the policy's −1"


# The diagnostics

# Lengths 3, 2 and 1. π_θ / π_old in powers of two: k3(−Δ) = 2^−Δ − 1 + Δ ln 2.
RATIOS = [[1.0, 2.0, 0.5], [0.5, 4.0, 1e9], [0.25, 1e9, 1e9]]
CLIPPED_LOW = [[False, False, False], [True, True, True], [True, True, True]]
CLIPPED_HIGH = [[False, True, False], [False, False, True], [False, True, True]]
ENTROPY = [[1.0, 2.0, 3.0], [4.0, 5.0, 1e9], [6.0, 1e9, 1e9]]
KL_REF = [[0.1, 0.2, 0.3], [0.4, 0.5, 1e9], [0.6, 1e9, 1e9]]
LN2 = math.log(2)
K3 = {1.0: 0.0, 2.0: 0.5 - 1 + LN2, 0.5: 2 - 1 - LN2, 4.0: 0.25 - 1 + 2 * LN2, 0.25: 4 - 1 - 2 * LN2}
KL = (K3[1.0] + K3[2.0] + K3[0.5] + K3[0.5] + K3[4.0] + K3[0.25]) / 6


def token_level(poison: float = 0.0, reference: bool = True) -> tuple[LossInputs, LossOutput, Tensor]:
    mask = mask_of([3, 2, 1])
    ratio = torch.tensor(RATIOS)
    old = torch.full((3, 3), -1.0)
    inputs = LossInputs(
        logprobs=(old + ratio.log()).masked_fill(~mask, poison),
        old_logprobs=old.masked_fill(~mask, poison),
        advantages=torch.tensor([1.0, -1.0, -1.0]),
        mask=mask,
    )
    output = LossOutput(
        numerator=torch.tensor(0.0),
        ratio=ratio.masked_fill(~mask, poison),
        clipped_low=torch.tensor(CLIPPED_LOW),
        clipped_high=torch.tensor(CLIPPED_HIGH),
        kl_ref=torch.tensor(KL_REF).masked_fill(~mask, poison) if reference else None,
    )
    return inputs, output, torch.tensor(ENTROPY).masked_fill(~mask, poison)


def sequence_level(poison: float = 0.0) -> tuple[LossInputs, LossOutput, Tensor]:
    inputs, output, entropy = token_level(poison)
    return (
        inputs,
        replace(
            output,
            ratio=torch.tensor([[1.0], [1.5], [0.5]]),
            clipped_low=torch.tensor([[False], [False], [True]]),
            clipped_high=torch.tensor([[False], [True], [False]]),
        ),
        entropy,
    )


def part(inputs: LossInputs, output: LossOutput, entropy: Tensor, rows: slice) -> tuple[LossInputs, LossOutput, Tensor]:
    width = int(inputs.mask[rows].sum(1).max())
    return (
        LossInputs(
            inputs.logprobs[rows, :width],
            inputs.old_logprobs[rows, :width],
            inputs.advantages[rows],
            inputs.mask[rows, :width],
        ),
        LossOutput(
            output.numerator,
            output.ratio[rows, :width],
            output.clipped_low[rows, :width],
            output.clipped_high[rows, :width],
            None if output.kl_ref is None else output.kl_ref[rows, :width],
        ),
        entropy[rows, :width],
    )


def empty_part() -> tuple[LossInputs, LossOutput, Tensor]:
    nothing = torch.full((1, 1), torch.nan)
    mask = torch.zeros(1, 1, dtype=torch.bool)
    inputs = LossInputs(nothing, nothing, torch.zeros(1), mask)
    return inputs, LossOutput(torch.tensor(0.0), nothing, ~mask, ~mask, nothing), nothing


def means_of(*parts: tuple[LossInputs, LossOutput, Tensor]) -> dict[str, float]:
    stats = UpdateStats(CPU)
    for inputs, output, entropy in parts:
        stats.add(inputs, output, entropy)
    stats.grad_norms.extend([1.0, 4.0])
    return stats.means()


TOKEN_MEANS = {
    "ratio_mean": (1 + 2 + 0.5 + 0.5 + 4 + 0.25) / 6,
    "ratio_max": 4.0,
    "clip_fraction_low": 3 / 6,
    "clip_fraction_high": 1 / 6,
    "kl": KL,
    "kl_ref": 2.1 / 6,
    "entropy": 21 / 6,
    "grad_norm": 2.5,
}
SEQUENCE_MEANS = TOKEN_MEANS | {
    "ratio_mean": 1.0,
    "ratio_max": 1.5,
    "clip_fraction_low": 1 / 3,
    "clip_fraction_high": 1 / 3,
}


@pytest.mark.parametrize("poison", [0.0, 1e9, math.inf, -math.inf, math.nan])
def test_diagnostics_of_token_ratios_whatever_stands_on_the_pads(poison: float) -> None:
    assert means_of(token_level(poison)) == pytest.approx(TOKEN_MEANS, rel=1e-6)


@pytest.mark.parametrize("poison", [0.0, 1e9, math.inf, -math.inf, math.nan])
def test_diagnostics_of_sequence_ratios_whatever_stands_on_the_pads(poison: float) -> None:
    assert means_of(sequence_level(poison)) == pytest.approx(SEQUENCE_MEANS, rel=1e-6)


@pytest.mark.parametrize("poison", [0.0, math.nan])
@pytest.mark.parametrize("cut", [1, 2])
def test_several_micro_batches_count_as_one(cut: int, poison: float) -> None:
    for whole, expected in ((token_level(poison), TOKEN_MEANS), (sequence_level(poison), SEQUENCE_MEANS)):
        parts = [part(*whole, slice(0, cut)), part(*whole, slice(cut, 3))]
        assert means_of(*parts) == pytest.approx(expected, rel=1e-6)
        assert means_of(*parts[::-1]) == pytest.approx(expected, rel=1e-6)


def test_the_same_micro_batch_twice_has_the_same_means() -> None:
    assert means_of(token_level(), token_level()) == pytest.approx(TOKEN_MEANS, rel=1e-6)


@pytest.mark.parametrize("place", [0, 1])
def test_empty_micro_batches_are_ignored(place: int) -> None:
    parts = [token_level()]
    parts.insert(place, empty_part())
    assert means_of(*parts) == means_of(token_level())


def test_a_row_that_only_fills_a_batch_does_not_count() -> None:
    inputs, output, entropy = sequence_level()
    mask = inputs.mask.clone()
    mask[1] = False
    means = means_of((replace(inputs, mask=mask), output, entropy))
    assert means == pytest.approx(
        {
            "ratio_mean": 0.75,
            "ratio_max": 1.0,
            "clip_fraction_low": 0.5,
            "clip_fraction_high": 0.0,
            "kl": (K3[1.0] + K3[2.0] + K3[0.5] + K3[0.25]) / 4,
            "kl_ref": 1.2 / 4,
            "entropy": 3.0,
            "grad_norm": 2.5,
        },
        rel=1e-6,
    )


def test_one_token_completions_count_once_either_way() -> None:
    inputs, output, entropy = part(*token_level(), slice(2, 3))
    assert inputs.mask.shape == (1, 1)
    means = means_of((inputs, output, entropy))
    assert means["ratio_mean"] == means["ratio_max"] == 0.25
    assert means["clip_fraction_low"] == 1.0


def test_without_a_reference_its_kl_is_0() -> None:
    assert means_of(token_level(reference=False)) == pytest.approx(TOKEN_MEANS | {"kl_ref": 0.0}, rel=1e-6)


def test_an_update_that_learned_from_nothing_has_finite_means() -> None:
    zeros = dict.fromkeys(TOKEN_MEANS, 0.0)
    assert means_of(empty_part()) == zeros | {"grad_norm": 2.5}


def test_the_diagnostics_keep_no_graph() -> None:
    inputs, output, entropy = token_level()
    logprobs = inputs.logprobs.clone().requires_grad_()
    stats = UpdateStats(CPU)
    stats.add(replace(inputs, logprobs=logprobs), replace(output, ratio=output.ratio * logprobs), entropy)
    assert not stats.sums.requires_grad
    assert not stats.maxima.requires_grad


# The sampler's log-probabilities against the scored ones


def scored(old: list[list[float]], sampled: list[list[float]], lengths: list[int]) -> tuple[MicroBatch, Tensor]:
    mask = mask_of(lengths)
    micro_batch = MicroBatch(
        sequences=PackedGroups().lay_out([[1]], [0] * len(lengths), torch.zeros(mask.shape, dtype=torch.long), lengths),
        mask=mask,
        advantages=torch.ones(len(lengths)),
        sampling_logprobs=torch.tensor(sampled),
    )
    return micro_batch, torch.tensor(old)


@pytest.mark.parametrize("pad", [0.0, 1e9, math.inf, math.nan])
def test_the_mismatch_is_a_mean_over_tokens_and_a_maximum(pad: float) -> None:
    stats = UpdateStats(CPU)
    stats.add_mismatch(*scored([[-1.0, -2.0], [-0.5, pad]], [[-1.25, -2.0], [0.5, -3.0]], [2, 1]))
    assert stats.logprob_mismatch() == ((0.25 + 0.0 + 1.0) / 3, 1.0)
    stats.add_mismatch(*scored([[-4.0, -4.0]], [[-2.5, -4.125]], [2]))
    assert stats.logprob_mismatch() == ((0.25 + 0.0 + 1.0 + 1.5 + 0.125) / 5, 1.5)
    stats.add_mismatch(*scored([[-0.5]], [[-0.625]], [1]))
    assert stats.logprob_mismatch() == (3.0 / 6, 1.5)


def test_without_a_scored_token_there_is_no_mismatch() -> None:
    stats = UpdateStats(CPU)
    assert stats.logprob_mismatch() == (0.0, 0.0)
    filler = empty_micro_batch(hand_rollout(), PackedGroups())
    stats.add_mismatch(filler, torch.full((1, 1), math.nan))
    assert stats.logprob_mismatch() == (0.0, 0.0)
    stats.add_mismatch(*scored([[-1.0]], [[math.nan]], [1]))
    assert all(math.isnan(value) for value in stats.logprob_mismatch())  # seen, not hidden


def test_the_mismatch_and_the_other_diagnostics_leave_each_other_alone() -> None:
    stats = UpdateStats(CPU)
    stats.add(*token_level())
    stats.grad_norms.extend([1.0, 4.0])
    stats.add_mismatch(*scored([[-1.0]], [[-8.0]], [1]))
    assert stats.means() == pytest.approx(TOKEN_MEANS, rel=1e-6)
    assert stats.logprob_mismatch() == (7.0, 7.0)
