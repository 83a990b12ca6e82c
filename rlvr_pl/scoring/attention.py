"""Attention within packed groups, for any model that takes an attention function from transformers.

The layout comes through the forward pass's keyword arguments, so that gradient checkpointing, which computes a layer
again during the backward pass, passes it again. Without one the function is transformers' own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.attention import varlen
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rlvr_pl.scoring.packing import Block, Packing
from rlvr_pl.varlen import varlen_takes

PACKED_GROUPS = "rlvr_pl_packed_groups"
"""Its name in a model's configuration."""

# What some models ask of attention beyond a scale: a limit to what is seen, to the scores, or more to attend to.
_NOT_COVERED = ("sliding_window", "softcap", "s_aux", "position_bias")

_cpu_attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_cpu_attention_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


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
    queries, keys, values = (x[0].transpose(0, 1) for x in (query, key, value))  # (S, heads, head size)
    attended = varlen.varlen_attn(
        queries.contiguous(),
        keys[layout.keys],
        values[layout.keys],
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
    layout = packing.masked
    queries, keys, values = (x[0].transpose(0, 1) for x in (query, key, value))  # (S, heads, head size)
    repeats = queries.shape[1] // keys.shape[1]  # kernels take a mask or grouped heads, not both
    attended = []
    for block in layout.blocks:
        q, k, v = queries[block.queries], keys[block.keys], values[block.keys]
        k, v = (x.repeat_interleave(repeats, dim=2) for x in (k, v))
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        attended.append(
            F.scaled_dot_product_attention(q, k, v, block.visible, scale=scale).transpose(1, 2).flatten(0, 1)
        )
    return torch.cat(attended)[layout.places].unsqueeze(0)


class _InParts(torch.autograd.Function):
    """Attend to oneself and to the prompt apart, each with the CPU's kernel, and put the parts together.

    No prompt's key is copied and no mask is read. Over two sets of keys with normalizers Z₁ and Z₂ attention is
    (Z₁ o₁ + Z₂ o₂) / (Z₁ + Z₂). Backward, each part is the kernel's own backward pass with the output and the
    normalizer of the whole: a key's gradient needs of the others no more than these.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, packing: Packing, scale: float) -> Tensor:
        q, k, v = (_rows(x, query) for x in (query, key, value))  # (S, heads, head size)
        parts = [
            _cpu_attention(*(_segments(x, block) for x in (q, k, v)), 0.0, True, scale=scale)
            for block in packing.alone.blocks
        ]
        output, log_normalizer = (_tokens(part, packing) for part in zip(*parts, strict=True))
        for group in packing.groups:
            if not group.completions:
                continue
            own, own_log = output[group.answers], log_normalizer[group.answers]
            seen = (_heads(x) for x in (q[group.answers], k[group.prompt], v[group.prompt]))
            prompt, prompt_log = (_tokens_of(x) for x in _cpu_attention(*seen, 0.0, False, scale=scale))
            total = torch.logaddexp(own_log, prompt_log)
            of_own, of_prompt = ((x - total).exp().unsqueeze(-1) for x in (own_log, prompt_log))
            output[group.answers] = of_own * own + of_prompt * prompt
            log_normalizer[group.answers] = total
        ctx.save_for_backward(query, key, value, output, log_normalizer)
        ctx.packing, ctx.scale = packing, scale
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, log_normalizer = ctx.saved_tensors
        packing: Packing = ctx.packing
        q, k, v = (_rows(x, query) for x in (query, key, value))
        known = (upstream, q, k, v, output)
        parts = [
            _cpu_attention_backward(
                *(_segments(x, block) for x in known),
                _segments(log_normalizer, block).masked_fill(block.pads.unsqueeze(1), torch.inf),
                0.0,
                True,
                scale=ctx.scale,
            )
            for block in packing.alone.blocks  # a pad's query has no gradient: exp(score − ∞) = 0
        ]
        d_q, d_k, d_v = (_tokens(part, packing) for part in zip(*parts, strict=True))
        for group in packing.groups:
            if not group.completions:
                continue
            d_output, q_, out, log = (_heads(x[group.answers]) for x in (upstream, q, output, log_normalizer))
            k_, v_ = (_heads(x[group.prompt]) for x in (k, v))
            gradients = _cpu_attention_backward(
                d_output, q_, k_, v_, out, log.contiguous(), 0.0, False, scale=ctx.scale
            )
            for total, place, gradient in zip(
                (d_q, d_k, d_v), (group.answers, group.prompt, group.prompt), gradients, strict=True
            ):
                total[place] += _tokens_of(gradient)
        d_k, d_v = (x.unflatten(1, (key.shape[1], -1)).sum(dim=2) for x in (d_k, d_v))
        return *(_heads(x) for x in (d_q, d_k, d_v)), None, None


def _rows(x: Tensor, query: Tensor) -> Tensor:
    """From (1, heads or kv heads, S, head size) to (S, heads, head size): each query head with its key head."""
    return x[0].transpose(0, 1).repeat_interleave(query.shape[1] // x.shape[1], dim=1)


def _heads(x: Tensor) -> Tensor:
    """From (n, heads, …) to (1, heads, n, …), as kernels have it."""
    return x.transpose(0, 1).unsqueeze(0)


def _tokens_of(x: Tensor) -> Tensor:
    """Back from (1, heads, n, …) to (n, heads, …)."""
    return x[0].transpose(0, 1)


def _segments(x: Tensor, block: Block) -> Tensor:
    """From (S, heads, …) to (segments, heads, Q, …)."""
    return x[block.queries].transpose(1, 2)


def _tokens(parts: Sequence[Tensor], packing: Packing) -> Tensor:
    """From the blocks' (segments, heads, Q, …) back to (S, heads, …)."""
    return torch.cat([part.transpose(1, 2).flatten(0, 1) for part in parts])[packing.alone.places]
