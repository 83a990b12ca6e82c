"""Attention within packed groups on a CPU: to oneself and to the prompt apart, and the parts put together.

No prompt's key is copied and no mask is read. Over two sets of keys with normalizers Z₁ and Z₂ attention is
(Z₁ o₁ + Z₂ o₂) / (Z₁ + Z₂). Backward, each part is the kernel's own backward pass with the output and the normalizer of
the whole: a key's gradient needs of the others no more than these.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rlvr_pl import cpu_attention
from rlvr_pl.scoring.packing import Alone, Packing


def attend_in_parts(query: Tensor, key: Tensor, value: Tensor, packing: Packing, scale: float) -> Tensor:
    """Attend within the groups of a packed row of S tokens.

    Args:
        query: (S, heads, head size).
        key, value: (S, kv heads, head size).
        packing: of the row.
        scale: of the scores.

    Returns:
        (S, heads, head size).
    """
    attended: Tensor = _InParts.apply(query, key, value, packing, scale)
    return attended


class _InParts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, packing: Packing, scale: float) -> Tensor:
        alone = packing.alone
        inputs = [_padded(x, alone) for x in (query, key, value)]
        parts = [cpu_attention.attention(*segments, 0.0, True, scale=scale) for segments in _blocks(inputs, alone)]
        output, log_normalizer = (_in_row(column, alone) for column in zip(*parts, strict=True))
        for group in packing.groups:
            if not group.completions:
                continue
            answers, prompt = group.answers, group.prompt
            seen = (_heads_first(x[place]) for x, place in ((query, answers), (key, prompt), (value, prompt)))
            of_prompt, prompt_log = (tokens_first(x) for x in cpu_attention.attention(*seen, 0.0, False, scale=scale))
            own = log_normalizer[answers]
            output[answers].lerp_(of_prompt, (prompt_log - own).sigmoid().unsqueeze(-1).to(output.dtype))
            torch.logaddexp(own, prompt_log, out=own)
        ctx.save_for_backward(query, key, value, output, log_normalizer)
        ctx.packing, ctx.scale = packing, scale
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, log_normalizer = ctx.saved_tensors
        packing: Packing = ctx.packing
        alone = packing.alone
        # A pad's query has no gradient: exp(score − ∞) = 0.
        inputs = [_padded(x, alone) for x in (upstream, query, key, value, output)]
        inputs.append(_padded(log_normalizer, alone).masked_fill_(alone.pads.unsqueeze(1), torch.inf))
        parts = [
            cpu_attention.attention_backward(*segments, 0.0, True, scale=ctx.scale)
            for segments in _blocks(inputs, alone)
        ]
        gradients = [_in_row(column, alone) for column in zip(*parts, strict=True)]
        for group in packing.groups:
            if not group.completions:
                continue
            answers, prompt = group.answers, group.prompt
            seen = (
                _heads_first(x[place])
                for x, place in (
                    (upstream, answers),
                    (query, answers),
                    (key, prompt),
                    (value, prompt),
                    (output, answers),
                    (log_normalizer, answers),
                )
            )
            parts = cpu_attention.attention_backward(*seen, 0.0, False, scale=ctx.scale)
            for target, place, part in zip(gradients, (answers, prompt, prompt), parts, strict=True):
                target[place] += tokens_first(part)
        return *gradients, None, None


def _padded(x: Tensor, alone: Alone) -> Tensor:
    """From (S, …) to (places, …)."""
    return x.index_select(0, alone.sources)


def _in_row(blocks: Sequence[Tensor], alone: Alone) -> Tensor:
    """From (segments, heads, Q, …) of each block to (S, heads, …)."""
    parts = [x.transpose(1, 2).flatten(0, 1) for x in blocks]
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).index_select(0, alone.places)


def _blocks(inputs: Sequence[Tensor], alone: Alone) -> Iterator[list[Tensor]]:
    """From (places, heads, …) to (segments, heads, Q, …), block by block."""
    start = 0
    for segments, longest in alone.blocks:
        stop = start + segments * longest
        yield [x[start:stop].unflatten(0, (segments, longest)).transpose(1, 2) for x in inputs]
        start = stop


def tokens_first(x: Tensor) -> Tensor:
    """Turn (1, heads, n, …), as models and kernels have it, into (n, heads, …)."""
    return x[0].transpose(0, 1)


def _heads_first(x: Tensor) -> Tensor:
    """Back from (n, heads, …) to (1, heads, n, …)."""
    return x.transpose(0, 1).unsqueeze(0)
