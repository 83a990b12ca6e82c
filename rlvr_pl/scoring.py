"""Log-probabilities of completions under a policy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

# Logits of one chunk, in numbers: 2²⁸ float32 are 1 GiB. With 151,936 tokens in the vocabulary that is 1,766 positions.
_CHUNK_LOGITS = 2**28


@dataclass(frozen=True)
class TokenScores:
    """Scores of each completion token, (n, T), 0 on pads."""

    logprobs: Tensor  # float32, with gradient where it is enabled
    entropy: Tensor  # float32, of the next-token distribution in nats, without gradient


@dataclass(frozen=True, eq=False)
class Sequences:
    """Prompts and completions side by side, and where in them the completion tokens are.

    Made once for each micro-batch, on the host, from lengths that it knows: whoever scores waits for no device.
    """

    input_ids: Tensor  # (n, L) int64, prompt and completion of each row, padded on the right with 0
    predicting: Tensor  # (tokens,) int64, places in (n · L) whose next token is one of a completion
    targets: Tensor  # (tokens,) int64, the completion tokens
    places: Tensor  # (tokens,) int64, their places in (n · T)
    shape: tuple[int, int]  # (n, T)


def lay_out(prompt_ids: Sequence[Sequence[int]], completion_ids: Tensor, lengths: Sequence[int]) -> Sequences:
    """Put prompts and completions side by side.

    Args:
        prompt_ids: n prompts, unpadded.
        completion_ids: (n, T), padded on the right; may lie on a device.
        lengths: n, the tokens of each completion.
    """
    rows, width = completion_ids.shape
    prompts = np.array([len(prompt) for prompt in prompt_ids])
    completions = np.array(lengths)
    longest = int((prompts + completions).max())
    column = np.arange(longest)
    in_prompt = column < prompts[:, None]
    in_row = column < (prompts + completions)[:, None]
    # Where each token comes from: the prompts' tokens one after the other, then the completions', then a 0.
    flat = np.concatenate([np.asarray(prompt, dtype=np.int64) for prompt in prompt_ids])
    of_prompt = np.cumsum(prompts)[:, None] - prompts[:, None] + column
    of_completion = len(flat) + width * np.arange(rows)[:, None] + column - prompts[:, None]
    sources = np.where(in_prompt, of_prompt, np.where(in_row, of_completion, len(flat) + rows * width))
    row, token = np.nonzero(np.arange(width) < completions[:, None])
    predicting = row * longest + prompts[row] + token - 1  # position t − 1 predicts token t
    parts = (flat, sources.ravel(), predicting, row * width + token)
    on_device = torch.from_numpy(np.concatenate(parts)).to(completion_ids.device)  # one upload for all of them
    prompt_tokens, sources, predicting, places = on_device.split([len(part) for part in parts])
    tokens = torch.cat((prompt_tokens, completion_ids.flatten(), prompt_tokens.new_zeros(1)))
    return Sequences(
        input_ids=tokens[sources].view(rows, longest),
        predicting=predicting,
        targets=completion_ids.flatten()[places],
        places=places,
        shape=(rows, width),
    )


def score(policy: PreTrainedModel, sequences: Sequences, temperature: float) -> TokenScores:
    """Compute the log-probabilities of the completion tokens under the tempered policy, and its entropy there.

    The body runs under whatever autocast is active. The output embedding and the softmax run in float32, for GSPO's
    clip band is 3e-4 wide, and bfloat16 logits alone move a mean log-ratio by that much.

    On a GPU, where the body is in half precision, the output embedding's products are TF32. They move the mean
    log-ratio of 400 tokens by 7e-6 (rms, by ``benchmarks/head_precision.py``), where a tenth of the band is 3e-5.
    Products of bfloat16 numbers move it by 1.5e-5, and now and then by more than that tenth. Under 32-true they are as
    exact as PyTorch is set to be.

    Args:
        policy: a causal language model with an output embedding.
        sequences: n of them, with T completion tokens at most.
        temperature: of the sampler, which the scored distribution must share.
    """
    # Autocast keeps its casts of the weights for as long as the outermost context lasts, here a whole training step:
    # one made under no_grad has no gradient, and one made before an optimizer step is stale.
    torch.clear_autocast_cache()
    # No attention mask: pads stand on the right, where causal attention does not look.
    hidden = policy.base_model(input_ids=sequences.input_ids, use_cache=False).last_hidden_state
    hidden = hidden.flatten(0, 1)[sequences.predicting]  # (tokens, H)
    head = policy.get_output_embeddings()
    bias = getattr(head, "bias", None)
    half = torch.is_autocast_enabled(hidden.device.type) or hidden.dtype != torch.float32
    with torch.autocast(device_type=hidden.device.type, enabled=False):
        logprobs, entropy = _score_positions(
            hidden.float(),
            head.weight.float(),
            None if bias is None else bias.float(),
            sequences.targets,
            temperature,
            linear=_tf32_linear if half and hidden.is_cuda else torch.nn.functional.linear,
        )
    n, T = sequences.shape
    zeros = torch.zeros(n * T, dtype=torch.float32, device=hidden.device)
    return TokenScores(
        logprobs=zeros.index_copy(0, sequences.places, logprobs).view(n, T),
        entropy=zeros.index_copy(0, sequences.places, entropy.detach()).view(n, T),
    )


@contextmanager
def _tf32() -> Iterator[None]:
    """Multiply float32 matrices on tensor cores: products of ten bits of mantissa, sums in float32."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32"
    try:
        yield
    finally:
        matmul.fp32_precision = before


class _TF32Products(torch.autograd.Function):
    """``hidden @ weight.T`` in TF32, in the backward pass as well, which runs when the setting is long gone."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        with _tf32():
            return hidden @ weight.T

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        hidden, weight = ctx.saved_tensors
        with _tf32():
            return (
                gradient @ weight if ctx.needs_input_grad[0] else None,
                gradient.T @ hidden if ctx.needs_input_grad[1] else None,
            )


def _tf32_linear(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    logits = _TF32Products.apply(hidden, weight)
    return logits if bias is None else logits + bias


def _score_positions(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    temperature: float,
    linear: Callable[[Tensor, Tensor, Tensor | None], Tensor],
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy, (tokens,), a chunk of positions at a time.

    Where there are several chunks, their logits are computed again in the backward pass rather than kept.
    """

    def chunk_scores(chunk_hidden: Tensor, chunk_targets: Tensor) -> tuple[Tensor, Tensor]:
        logits = linear(chunk_hidden, weight, bias) / temperature
        normalizer = logits.logsumexp(dim=-1)
        logprobs = logits.gather(-1, chunk_targets.unsqueeze(-1)).squeeze(-1) - normalizer
        with torch.no_grad():
            entropy = normalizer - (logits.softmax(dim=-1) * logits).sum(dim=-1)
        return logprobs, entropy

    size = max(1, _CHUNK_LOGITS // weight.shape[0])
    if len(targets) <= size:
        return chunk_scores(hidden, targets)
    chunks = [
        checkpoint(chunk_scores, h, t, use_reentrant=False)
        for h, t in zip(hidden.split(size), targets.split(size), strict=True)
    ]
    logprobs, entropies = zip(*chunks, strict=True)
    return torch.cat(logprobs), torch.cat(entropies)
