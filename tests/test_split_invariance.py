"""The contract of an update: how a minibatch is laid out, cut, and shared changes its gradient by rounding alone.

Every objective of ``rlvr_pl.losses`` is held to it, a new one as soon as it is exported there.
"""

from __future__ import annotations

import inspect
from functools import partial

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from rlvr_pl import losses
from rlvr_pl.losses import LossStrategy
from rlvr_pl.scoring import Layout, PackedGroups, PaddedRows
from rlvr_pl.scoring.choice import why_not_packed
from rlvr_pl.types import Rollout
from rlvr_pl.update import Update, cut_into_minibatches
from tests.helpers.policies import VOCABULARY, tiny_model

torch.set_num_threads(1)

OBJECTIVES = sorted(name for name in losses.__all__ if name != "LossStrategy")
LENGTHS = [5, 2, 8, 1, 3, 3, 6, 4]  # of four groups of two
ADVANTAGES = torch.tensor([1.0, -1.0, 0.0, 0.0, 0.5, -0.5, 0.0, 2.0], dtype=torch.float64)
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13], [14, 15]]
LARGE = 10_000


@pytest.fixture(autouse=True)
def norms_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hugging Face's round to float32."""

    def forward(norm: Qwen2RMSNorm, x: Tensor) -> Tensor:
        return norm.weight * x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + norm.variance_epsilon)

    monkeypatch.setattr(Qwen2RMSNorm, "forward", forward)


def rollout() -> Rollout:
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS).unsqueeze(1)
    tokens = torch.randint(VOCABULARY, mask.shape, generator=torch.Generator().manual_seed(3))
    return Rollout(
        prompt_ids=PROMPTS,
        group_size=2,
        completion_ids=tokens,
        mask=mask,
        sampling_logprobs=torch.zeros(mask.shape, dtype=torch.float64),
        truncated=torch.zeros(len(mask), dtype=torch.bool),
    )


def gradient(loss: LossStrategy, ranks: int, minibatches: int, token_budget: int, layout: Layout) -> dict[str, Tensor]:
    """The gradient of the second pass over a rollout, after a step has moved the policy away from π_old.

    Minibatches are accumulated, each with the denominator of all: as if they were one.
    """
    policy = tiny_model(tied=True, seed=0).double().train()
    reference = tiny_model(tied=True, seed=1).double()
    references = [reference] if loss.needs_reference else []
    for model in (policy, reference):
        assert why_not_packed(model) is None
    passes: list[tuple[Update, list[object]]] = []
    for rank in range(ranks):
        cut = cut_into_minibatches(
            rollout(), ADVANTAGES, loss, layout, minibatches, token_budget, 10, rank=rank, ranks=ranks
        )
        denominator = sum(minibatch.denominator for minibatch in cut)
        update = Update(cut, loss, policy, references, 0.9, torch.device("cpu"))
        for minibatch in cut:
            list(update.losses(minibatch))  # notes π_old
        passes.append((update, cut))
    move(policy)
    for update, cut in passes:
        for minibatch in cut:
            for numerator in update.losses(minibatch):  # type: ignore[arg-type]
                (numerator / denominator).backward()
    return {name: parameter.grad for name, parameter in policy.named_parameters() if parameter.grad is not None}


@torch.no_grad()
def move(policy: PreTrainedModel) -> None:
    """Far enough that some ratios are clipped, and others not."""
    generator = torch.Generator().manual_seed(5)
    for parameter in policy.parameters():
        parameter += 0.003 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)


@pytest.mark.parametrize(
    ("ranks", "minibatches", "token_budget"),
    [(1, 1, LARGE), (1, 1, 1), (1, 1, 20), (1, 2, LARGE), (1, 4, 12), (2, 1, LARGE), (2, 2, 9), (4, 1, 1)],
)
@pytest.mark.parametrize("layout", [PackedGroups(), PaddedRows()], ids=["packed", "padded"])
@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_gradient_does_not_depend_on_how_the_work_is_split(
    name: str, beta: float, layout: Layout, ranks: int, minibatches: int, token_budget: int
) -> None:
    objective: type[LossStrategy] = getattr(losses, name)
    assert inspect.isclass(objective)
    loss = objective(beta=beta)  # type: ignore[call-arg]
    expected = gradient(loss, ranks=1, minibatches=1, token_budget=LARGE, layout=PaddedRows())
    actual = gradient(loss, ranks, minibatches, token_budget, layout)
    assert actual.keys() == expected.keys()
    assert max(float(g.abs().max()) for g in expected.values()) > 1e-3
    for key, value in expected.items():
        torch.testing.assert_close(
            actual[key], value, rtol=0, atol=1e-12 * float(value.abs().max()), msg=partial("{}: {}".format, key)
        )
