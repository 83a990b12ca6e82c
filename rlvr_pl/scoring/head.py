"""From hidden states to log-probabilities and entropy, with the logits of a few positions at a time in memory.

The loss of a token needs one number of its V logits, and so does the entropy, for those who ask for it; the gradient
needs them all, and computes them once more. What stays from forward to backward are hidden states and a normalizer a
token.

::

    forward   logits z = h Wᵀ / τ        log π(y) = z_y − logsumexp z        H = −Σ π log π
    backward  ∂ log π(y) / ∂z = 1_y − π    ∂h = (∂z W) / τ    ∂W = Σ (∂zᵀ h) / τ
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Logits in memory at a time, in numbers: 2²⁶ float32 are 256 MiB, and forward and backward hold two or three such
# tensors. With 151,936 tokens in the vocabulary that is 441 positions.
CHUNK_LOGITS = 2**26


def token_scores(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    temperature: float,
    half: bool,
    with_entropy: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Score tokens under softmax((hidden Wᵀ + b) / temperature), in float32, or in float64 where the weights are.

    Products of numbers in half precision are exact in float32, and summed in it. Float32 numbers are multiplied as
    PyTorch is set to, unless ``half``.

    Args:
        hidden: (tokens, H).
        weight: W, (V, H).
        bias: (V,).
        targets: (tokens,) int64.
        temperature: of the sampler.
        half: whether float32 numbers may be multiplied as TF32, where the device can.
        with_entropy: whether entropies are computed, which takes three more passes over all logits.

    Returns:
        Log-probabilities of the targets (tokens,), with gradient, and entropies in nats (tokens,), without, or None.
    """
    wide = weight.dtype == torch.float64
    on_gpu = hidden.is_cuda and not wide
    tf32 = half and on_gpu
    if weight.dtype != hidden.dtype or not (wide or on_gpu):  # only CUDA multiplies halves into float32
        hidden, weight = (x.to(torch.float64 if wide else torch.float32) for x in (hidden, weight))
    result: tuple[Tensor, Tensor | None] = _TokenScores.apply(
        hidden, weight, bias, targets, temperature, tf32, with_entropy
    )
    return result


class _TokenScores(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        tf32: bool,
        with_entropy: bool,
    ) -> tuple[Tensor, Tensor | None]:
        scores: list[tuple[Tensor, ...]] = []
        for chunk in _chunks(len(targets), len(weight)):
            with _tf32_where(tf32):
                logits = _logits(hidden[chunk], weight, bias, temperature)
            normalizer = logits.logsumexp(dim=-1, keepdim=True)
            logprobs = (logits.gather(-1, targets[chunk].unsqueeze(-1)) - normalizer).squeeze(-1)
            scores.append((logprobs, normalizer, *([_entropy(logits, normalizer)] if with_entropy else [])))
        logprobs, normalizers, *entropies = (torch.cat(parts) for parts in zip(*scores, strict=True))
        ctx.save_for_backward(hidden, weight, bias, targets, normalizers)
        ctx.temperature, ctx.tf32 = temperature, tf32
        ctx.mark_non_differentiable(*entropies)
        return logprobs, entropies[0] if entropies else None

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
        autocast = torch.autocast(upstream.device.type, enabled=False)  # it may be on where backward is called
        with autocast, _tf32_where(ctx.tf32):
            return (*_gradients(upstream, ctx), None, None, None, None)


def _gradients(upstream: Tensor, ctx: Any) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Compute the gradients of hidden states, weight and bias from that of the log-probabilities, (tokens,)."""
    hidden, weight, bias, targets, normalizers = ctx.saved_tensors
    needs_hidden, needs_weight, needs_bias, *_ = ctx.needs_input_grad
    d_hidden = torch.empty_like(hidden) if needs_hidden else None
    d_weight = torch.zeros_like(weight, dtype=upstream.dtype) if needs_weight else None
    d_bias = torch.zeros_like(bias, dtype=upstream.dtype) if needs_bias else None
    for chunk in _chunks(len(targets), len(weight)):
        logits = _logits(hidden[chunk], weight, bias, ctx.temperature)
        above, target = upstream[chunk].unsqueeze(-1), targets[chunk].unsqueeze(-1)
        d_logits = logits.sub_(normalizers[chunk]).exp_().mul_(-above).scatter_add_(1, target, above)
        d_logits = d_logits if ctx.temperature == 1 else d_logits.div_(ctx.temperature)
        if d_bias is not None:
            d_bias += d_logits.sum(dim=0)
        d_logits = d_logits.to(weight.dtype)
        if d_hidden is not None:
            d_hidden[chunk] = _product(d_logits, weight)
        if d_weight is not None:
            _add_product(d_weight, d_logits.T, hidden[chunk])
    return (
        d_hidden,
        None if d_weight is None else d_weight.to(weight.dtype),
        None if d_bias is None else d_bias.to(bias.dtype),
    )


def _entropy(logits: Tensor, normalizer: Tensor) -> Tensor:
    """(chunk,); the logits are written over."""
    log_distribution = logits.sub_(normalizer)
    return log_distribution.exp().mul_(log_distribution).sum(dim=-1).neg_()


def _chunks(tokens: int, vocabulary: int) -> Iterator[slice]:
    """Cut positions so that their logits stay under the budget; one chunk at least, be it empty."""
    size = max(1, CHUNK_LOGITS // vocabulary)
    for start in range(0, max(tokens, 1), size):
        yield slice(start, start + size)


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float) -> Tensor:
    """(chunk, V), in a tensor of its own, to be written over."""
    logits = _product(hidden, weight.T)
    if bias is not None:
        logits += bias
    return logits if temperature == 1 else logits.div_(temperature)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` with its sums, and its result, in float32 (or float64)."""
    if a.dtype in (torch.float32, torch.float64):
        return a @ b
    return torch.mm(a, b, out_dtype=torch.float32)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """``total += a @ b``, without a temporary of its size where there is a kernel for it."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    else:
        total += torch.mm(a, b, out_dtype=total.dtype)


@contextmanager
def _tf32_where(wanted: bool) -> Iterator[None]:
    """Multiply float32 matrices on tensor cores: products of ten bits of mantissa, sums in float32."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32" if wanted else before
    try:
        yield
    finally:
        matmul.fp32_precision = before
