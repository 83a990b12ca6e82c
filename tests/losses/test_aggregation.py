"""The four aggregations by hand, and identity 12: micro-batches and ranks change nothing."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.multiprocessing.spawn import spawn

from rlvr_pl.losses import LossStrategy, ratio
from rlvr_pl.losses.advantage import AdvantageEstimator
from rlvr_pl.losses.aggregation import (
    Aggregation,
    SeqMeanTokenMean,
    SeqMeanTokenSum,
    SeqMeanTokenSumNorm,
    TokenMean,
)
from rlvr_pl.losses.policy_loss import PPOClip
from rlvr_pl.types import LossInputs

torch.set_num_threads(1)

AGGREGATIONS: list[type[Aggregation]] = [SeqMeanTokenMean, SeqMeanTokenSum, SeqMeanTokenSumNorm, TokenMean]
T_MAX = 10
NAN = float("nan")

# By hand: lengths 3, 1 and 0 (a row that only fills a batch); pads hold NaN.
MASK = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 0, 0]], dtype=torch.bool)
TOKEN_LOSS = torch.tensor([[1, 2, 6], [5, NAN, NAN], [NAN, NAN, NAN]], dtype=torch.float64)
SEQUENCE_LOSS = torch.tensor([[3], [5], [NAN]], dtype=torch.float64)

BY_HAND: list[tuple[type[Aggregation], float, int]] = [
    (SeqMeanTokenMean, 9 / 3 + 5, 2),
    (SeqMeanTokenSum, 9 + 5, 2),
    (SeqMeanTokenSumNorm, 9 + 5, 20),
    (TokenMean, 9 + 5, 4),
]


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("aggregation", "numerator", "denominator"), BY_HAND)
@pytest.mark.parametrize("loss", [TOKEN_LOSS, SEQUENCE_LOSS], ids=["tokens", "sequences"])
def test_by_hand(aggregation: type[Aggregation], numerator: float, denominator: int, loss: Tensor) -> None:
    """The sequence losses are the token losses' means, so that both have the same sums."""
    assert_close(aggregation().numerator(loss, MASK), torch.tensor(numerator, dtype=torch.float64))
    assert aggregation().denominator(MASK, T_MAX).item() == denominator


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_rows_without_a_token_add_nothing_and_still_run_backward(aggregation: type[Aggregation]) -> None:
    loss = torch.full((2, 3), NAN, dtype=torch.float64, requires_grad=True)
    empty = torch.zeros(2, 3, dtype=torch.bool)
    numerator = aggregation().numerator(loss, empty)
    (gradient,) = torch.autograd.grad(numerator, loss)
    assert numerator.item() == 0
    assert torch.equal(gradient, torch.zeros(2, 3, dtype=torch.float64))
    assert aggregation().denominator(empty, T_MAX).item() == 0


# Identity 12. Eight sequences of unequal lengths, one of them empty, share the parameters of one small policy.

LENGTHS = [7, 1, 0, 5, 2, 6, 4, 7]
VOCABULARY = 5


class TablePolicy(nn.Module):
    """log π of a token that depends on its position alone."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.logits = nn.Parameter(torch.randn(7, VOCABULARY, dtype=torch.float64, generator=generator))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.logits.log_softmax(dim=1)[torch.arange(7), tokens]


def completions() -> Tensor:
    return torch.randint(VOCABULARY, (8, 7), generator=torch.Generator().manual_seed(1))


def off_policy_inputs() -> LossInputs:
    """Everything but the log-probabilities, which the policy gives."""
    generator = torch.Generator().manual_seed(2)
    current = TablePolicy()(completions()).detach()
    noise = torch.randn(2, 8, 7, dtype=torch.float64, generator=generator)
    return LossInputs(
        logprobs=current,
        old_logprobs=current + 0.3 * noise[0],
        advantages=torch.randn(8, dtype=torch.float64, generator=generator),
        mask=torch.arange(7) < torch.tensor(LENGTHS).unsqueeze(1),
        ref_logprobs=current + 0.5 * noise[1],
    )


def strategy_with(aggregation: type[Aggregation]) -> LossStrategy:
    return LossStrategy(AdvantageEstimator(), ratio.token, PPOClip(0.2, 0.2), aggregation(), beta=0.04)


def numerator_of(strategy: LossStrategy, policy: nn.Module, rows: slice) -> Tensor:
    inputs = replace(off_policy_inputs()[rows], logprobs=policy(completions()[rows]))
    return strategy(inputs).numerator


def denominator_of(strategy: LossStrategy, rows: slice) -> Tensor:
    return strategy.denominator(off_policy_inputs().mask[rows], T_MAX)


def in_parts(sizes: list[int], start: int = 0) -> list[slice]:
    ends = torch.tensor(sizes).cumsum(0).tolist()
    return [slice(start + end - size, start + end) for size, end in zip(sizes, ends, strict=True)]


def accumulated(aggregation: type[Aggregation], parts: list[slice]) -> tuple[Tensor, Tensor]:
    """Loss and parameter gradient summed over the parts, each over the denominator of them all."""
    strategy, policy = strategy_with(aggregation), TablePolicy()
    denominator = torch.stack([denominator_of(strategy, rows) for rows in parts]).sum()
    losses = [numerator_of(strategy, policy, rows) / denominator for rows in parts]
    for loss in losses:
        loss.backward()
    assert policy.logits.grad is not None
    return torch.stack(losses).sum().detach(), policy.logits.grad


def mean_of_means(aggregation: type[Aggregation], parts: list[slice]) -> Tensor:
    """What averaging the parts' own gradients would give: the mistake that a common denominator avoids."""
    return torch.stack([accumulated(aggregation, [rows])[1] for rows in parts]).mean(dim=0)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("sizes", [[1, 7], [4, 4], [2, 1, 5], [3, 1, 2, 2], [1] * 8], ids=str)
def test_12_micro_batches_change_nothing(aggregation: type[Aggregation], sizes: list[int]) -> None:
    whole_loss, whole_gradient = accumulated(aggregation, in_parts([8]))
    loss, gradient = accumulated(aggregation, in_parts(sizes))
    assert_close(loss, whole_loss)
    assert_close(gradient, whole_gradient)
    assert whole_gradient.abs().max() > 1e-2
    assert whole_loss.abs() > 1e-2


# Ranks of 3 and 5 sequences with 8 and 24 tokens. The second micro-batch of rank 0 is the empty sequence alone.
RANKS = [in_parts([2, 1]), in_parts([3, 2], start=3)]


def train_rank(rank: int, folder: str) -> None:
    """One optimizer step of one rank, for each aggregation; saves the gradients that every rank ends up with."""
    store = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", store, rank=rank, world_size=len(RANKS), timeout=timedelta(seconds=60))
    gradients = {}
    for aggregation in AGGREGATIONS:
        strategy, policy = strategy_with(aggregation), TablePolicy()
        denominator = torch.stack([denominator_of(strategy, rows) for rows in RANKS[rank]]).sum()
        dist.all_reduce(denominator)
        for rows in RANKS[rank]:
            (numerator_of(strategy, policy, rows) * len(RANKS) / denominator).backward()
        assert policy.logits.grad is not None
        dist.all_reduce(policy.logits.grad)
        gradients[aggregation.__name__] = policy.logits.grad / len(RANKS)  # DDP averages
    torch.save(gradients, Path(folder) / f"rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def rank_gradients(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("ranks")
    spawn(train_rank, args=(str(folder),), nprocs=len(RANKS))
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(len(RANKS))]


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_12_two_ranks_with_unequal_token_counts_change_nothing(
    aggregation: type[Aggregation], rank_gradients: list[dict[str, Tensor]]
) -> None:
    _, whole = accumulated(aggregation, in_parts([8]))
    for gradients in rank_gradients:
        assert_close(gradients[aggregation.__name__], whole)
    assert (mean_of_means(aggregation, in_parts([3, 5])) - whole).abs().max() > 1e-2
