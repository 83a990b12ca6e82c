"""Attention within packed groups, for any model that takes an attention function from transformers.

The layout comes through the forward pass's keyword arguments, so that gradient checkpointing, which computes a layer
again during the backward pass, passes it again. Without one the function is transformers' own.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.attention import varlen
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rlvr_pl import cpu_attention
from rlvr_pl.scoring.packing import Block, Packing
from rlvr_pl.scoring.take import take
from rlvr_pl.varlen import varlen_takes

PACKED_GROUPS = "rlvr_pl_packed_groups"
"""Its name in a model's configuration."""

# What some models ask of attention beyond a scale: a limit to what is seen, to the scores, or more to attend to.
_NOT_COVERED = ("sliding_window", "softcap", "s_aux", "position_bias")


def attend_in_groups(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    packing: Packing | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend within the groups of a packed row, or as transformers does where there is no ``packing``.

    Args:
        query: (1, heads, S, head size).
        key, value: (1, kv heads, S, head size).
        attention_mask: of no interest to packed groups.

    Returns:
        (1, S, heads, head size).

    Raises:
        NotImplementedError: if the model asks for what is not covered, and names it.
    """
    if packing is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    for name in _NOT_COVERED:
        if kwargs.get(name) is not None:
            raise NotImplementedError(f"its attention has a {name}")
    query, key = query.to(value.dtype), key.to(value.dtype)  # under autocast rotation leaves them in float32
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if varlen_takes(key, "window_size"):
        return _by_length(query, key, value, packing, scale), None
    if _cpu_attention_takes(query, value):
        attended: Tensor = _InParts.apply(query, key, value, packing, scale)
        return attended.unsqueeze(0), None
    return _padded(query, key, value, packing, scale), None


def _cpu_attention_takes(query: Tensor, value: Tensor) -> bool:
    return query.device.type == "cpu" and query.shape[-1] == value.shape[-1]


AttentionInterface.register(PACKED_GROUPS, attend_in_groups)
AttentionMaskInterface.register(PACKED_GROUPS, sdpa_mask)


def _by_length(query: Tensor, key: Tensor, value: Tensor, packing: Packing, scale: float) -> Tensor:
    """Give each completion a copy of its prompt's keys: one kernel for all segments, whatever their lengths."""
    layout = packing.by_length
    queries, keys, values = (_tokens_first(x) for x in (query, key, value))
    attended = varlen.varlen_attn(
        queries.contiguous(),
        take(keys, layout.keys),
        take(values, layout.keys),
        layout.query_bounds,
        layout.key_bounds,
        layout.longest_query,
        layout.longest_keys,
        scale=scale,
        window_size=(-1, 0),  # causal, and the last query sees the last key
        enable_gqa=True,
    )
    assert isinstance(attended, Tensor)
    return attended.unsqueeze(0)


def _padded(query: Tensor, key: Tensor, value: Tensor, packing: Packing, scale: float) -> Tensor:
    """Pad segments to equal lengths, and mask: slower, and the same on every device and in every precision."""
    queries, keys, values = (_tokens_first(x) for x in (query, key, value))
    repeats = queries.shape[1] // keys.shape[1]  # kernels take a mask or grouped heads, not both
    output = query.new_empty((packing.tokens + 1, queries.shape[1], values.shape[2]))
    for block in packing.masked:
        k, v = (_repeat(take(x, block.keys).transpose(1, 2), repeats) for x in (keys, values))
        _put(
            output,
            block,
            F.scaled_dot_product_attention(_segments(queries, block), k, v, block.visible, scale=scale),
        )
    return output[:-1].unsqueeze(0)


class _InParts(torch.autograd.Function):
    """Attend to oneself and to the prompt apart, each with the CPU's kernel, and put the parts together.

    No prompt's key is copied and no mask is read. Over two sets of keys with normalizers Z₁ and Z₂ attention is
    (Z₁ o₁ + Z₂ o₂) / (Z₁ + Z₂). Backward, each part is the kernel's own backward pass with the output and the
    normalizer of the whole: a key's gradient needs of the others no more than these.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, packing: Packing, scale: float) -> Tensor:
        q, k, v = (_tokens_first(x) for x in (query, key, value))
        repeats = q.shape[1] // k.shape[1]
        output = q.new_empty((packing.tokens + 1, *q.shape[1:]))  # the last one takes the pads
        log_normalizer = torch.empty_like(output[..., 0], dtype=_wide(q))
        for block in packing.alone:
            segments = (_segments(q, block), *(_repeat(_segments(x, block), repeats) for x in (k, v)))
            for target, part in zip(
                (output, log_normalizer), cpu_attention.attention(*segments, 0.0, True, scale=scale), strict=True
            ):
                _put(target, block, part)
        for group in packing.groups:
            if not group.completions:
                continue
            answers, prompt = group.answers, group.prompt
            seen = (_heads_first(q[answers]), *(_repeat(_heads_first(x[prompt]), repeats) for x in (k, v)))
            of_prompt, prompt_log = (_tokens_first(x) for x in cpu_attention.attention(*seen, 0.0, False, scale=scale))
            total = torch.logaddexp(log_normalizer[answers], prompt_log)
            output[answers] *= (log_normalizer[answers] - total).exp().unsqueeze(-1)
            output[answers] += (prompt_log - total).exp().unsqueeze(-1) * of_prompt
            log_normalizer[answers] = total
        output, log_normalizer = output[:-1], log_normalizer[:-1]
        ctx.save_for_backward(query, key, value, output, log_normalizer)
        ctx.packing, ctx.scale = packing, scale
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, log_normalizer = ctx.saved_tensors
        packing: Packing = ctx.packing
        q, k, v = (_tokens_first(x) for x in (query, key, value))
        repeats = q.shape[1] // k.shape[1]
        gradients = [x.new_empty((packing.tokens + 1, *x.shape[1:])) for x in (q, k, v)]
        for block in packing.alone:
            parts = cpu_attention.attention_backward(
                *(_segments(x, block) for x in (upstream, q)),
                *(_repeat(_segments(x, block), repeats) for x in (k, v)),
                _segments(output, block),
                # A pad's query has no gradient: exp(score − ∞) = 0.
                _segments(log_normalizer, block).masked_fill(block.pads.unsqueeze(1), torch.inf),
                0.0,
                True,
                scale=ctx.scale,
            )
            for target, part in zip(gradients, parts, strict=True):
                _put(target, block, _sum_repeated(part, target.shape[1]))
        for group in packing.groups:
            if not group.completions:
                continue
            answers, prompt = group.answers, group.prompt
            parts = cpu_attention.attention_backward(
                *(_heads_first(x[answers]) for x in (upstream, q)),
                *(_repeat(_heads_first(x[prompt]), repeats) for x in (k, v)),
                _heads_first(output[answers]),
                _heads_first(log_normalizer[answers]).contiguous(),
                0.0,
                False,
                scale=ctx.scale,
            )
            for target, place, part in zip(gradients, (answers, prompt, prompt), parts, strict=True):
                target[place] += _tokens_first(_sum_repeated(part, target.shape[1]))
        return *(_heads_first(x[:-1]) for x in gradients), None, None


def _tokens_first(x: Tensor) -> Tensor:
    """From (1, heads, n, …), as models and kernels have it, to (n, heads, …)."""
    return x[0].transpose(0, 1)


def _heads_first(x: Tensor) -> Tensor:
    """Back from (n, heads, …) to (1, heads, n, …)."""
    return x.transpose(0, 1).unsqueeze(0)


def _segments(x: Tensor, block: Block) -> Tensor:
    """From (S, heads, …) to (segments, heads, Q, …)."""
    return x[block.queries].transpose(1, 2)


def _put(target: Tensor, block: Block, x: Tensor) -> None:
    """Write (segments, heads, Q, …) to its places in (S + 1, heads, …)."""
    target.index_copy_(0, block.targets, x.transpose(1, 2).flatten(0, 1))


def _repeat(x: Tensor, repeats: int) -> Tensor:
    """Give each query head its key head: from (…, kv heads, Q, head size) to (…, heads, Q, head size)."""
    return x.repeat_interleave(repeats, dim=1)


def _sum_repeated(x: Tensor, heads: int) -> Tensor:
    """Sum over what :func:`_repeat` has made of each head."""
    return x if x.shape[1] == heads else x.unflatten(1, (heads, -1)).sum(dim=2)


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
