"""Scores of tokens from hidden states: their gradients, their memory, their products."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rlvr_pl.scoring import head
from rlvr_pl.scoring.head import token_scores

TOKENS, HIDDEN, VOCABULARY = 13, 8, 11


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, HIDDEN, generator=generator, dtype=dtype) for n in (TOKENS, VOCABULARY))
    bias = torch.randn(VOCABULARY, generator=generator, dtype=dtype)
    targets = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    return hidden.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), targets


@pytest.mark.parametrize("chunk", [1, 4, TOKENS])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_values_and_gradients_are_those_of_autograd(
    chunk: int, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "CHUNK_LOGITS", chunk * VOCABULARY)
    hidden, weight, bias, targets = inputs()
    distribution = ((hidden @ weight.T + bias) / temperature).log_softmax(-1)
    expected = distribution.gather(1, targets.unsqueeze(1)).squeeze(1)
    actual, entropy = token_scores(hidden, weight, bias, targets, temperature, half=False)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(entropy, -(distribution.exp() * distribution).sum(1).detach(), rtol=0, atol=1e-14)
    assert not entropy.requires_grad
    upstream = torch.randn(TOKENS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found, wanted = (torch.autograd.grad(x, (hidden, weight, bias), upstream) for x in (actual, expected))
    for gradient, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(gradient, other, rtol=0, atol=1e-13)


def test_without_entropies_the_log_probabilities_are_the_same_bits() -> None:
    tensors = inputs()
    expected, _ = token_scores(*tensors, 0.7, half=False)
    actual, entropy = token_scores(*tensors, 0.7, half=False, with_entropy=False)
    assert entropy is None
    assert torch.equal(actual, expected)
    upstream = torch.randn(TOKENS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found, wanted = (torch.autograd.grad(x, tensors[:3], upstream) for x in (actual, expected))
    assert all(map(torch.equal, found, wanted))


@pytest.mark.parametrize("learns", ["hidden", "weight", "bias"])
def test_what_is_frozen_gets_no_gradient(learns: str) -> None:
    tensors = dict(zip(("hidden", "weight", "bias", "targets"), inputs(), strict=True))
    for name in {"hidden", "weight", "bias"} - {learns}:
        tensors[name].requires_grad_(False)
    logprobs, _ = token_scores(*tensors.values(), 1.0, half=False)
    logprobs.sum().backward()
    assert [name for name, tensor in tensors.items() if tensor.grad is not None] == [learns]


class LargestTensor(TorchDispatchMode):
    """Notes the largest tensor that any operator makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.numbers = max([self.numbers, *sizes])
        return result


def test_no_tensor_has_all_positions_times_the_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward, of 100 positions with chunks of 3: the largest are the weight and the chunks."""
    monkeypatch.setattr(head, "CHUNK_LOGITS", 3 * 40)
    hidden, weight = torch.randn(100, 2, requires_grad=True), torch.randn(40, 2, requires_grad=True)
    with LargestTensor() as largest:
        logprobs, _ = token_scores(hidden, weight, None, torch.zeros(100, dtype=torch.long), 1.0, half=False)
        logprobs.sum().backward()
    assert largest.numbers == 100 * 2, "the hidden states; chunks have 120 numbers"


def test_tf32_is_asked_for_in_every_product_and_for_nothing_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    matmul, addmm = Tensor.__matmul__, Tensor.addmm_

    def precision() -> str:
        return torch.backends.cuda.matmul.fp32_precision

    monkeypatch.setattr(Tensor, "__matmul__", lambda a, b: (seen.append(precision()), matmul(a, b))[1])
    monkeypatch.setattr(Tensor, "addmm_", lambda t, a, b: (seen.append(precision()), addmm(t, a, b))[1])
    monkeypatch.setattr(Tensor, "is_cuda", True)
    before = precision()
    for half in (False, True):
        seen.clear()
        hidden, weight, bias, targets = inputs(torch.float32)
        logprobs, _ = token_scores(hidden, weight, bias, targets, 1.0, half)
        logprobs.sum().backward()
        assert seen == ["tf32" if half else before] * 4, "one product forward, three backward"
    assert precision() == before


def test_weights_in_half_precision_are_multiplied_into_float32_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a CPU, where they are copied to float32, but for the gradient's logits, which are rounded."""
    expected = {}
    calls = []

    def multiply(a: Tensor, b: Tensor, out_dtype: torch.dtype) -> Tensor:
        assert a.dtype == b.dtype == torch.bfloat16
        assert out_dtype == torch.float32
        calls.append(tuple(a.shape))
        return a.float() @ b.float()

    for device in ("cpu", "cuda"):
        if device == "cuda":
            monkeypatch.setattr(Tensor, "is_cuda", True)
            monkeypatch.setattr(torch, "mm", multiply)
        hidden, weight, bias, targets = inputs(torch.bfloat16)
        logprobs, entropy = token_scores(hidden, weight, bias, targets, 0.7, half=True)
        assert logprobs.dtype == torch.float32
        gradients = torch.autograd.grad(logprobs.sum(), (hidden, weight, bias))
        assert {gradient.dtype for gradient in gradients} == {torch.bfloat16}
        if device == "cpu":
            expected = {"logprobs": logprobs, "entropy": entropy, "gradients": gradients}
        else:
            torch.testing.assert_close(logprobs, expected["logprobs"], rtol=0, atol=1e-6)
            torch.testing.assert_close(entropy, expected["entropy"], rtol=0, atol=1e-5)
            torch.testing.assert_close(gradients, expected["gradients"], rtol=0.03, atol=0.03)
    assert len(calls) == 4
