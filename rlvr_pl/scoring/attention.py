"""Attention within packed groups, for any model that takes an attention function from transformers.

The layout comes through the forward pass's keyword arguments, so that gradient checkpointing, which computes a layer
again during the backward pass, passes it again. Without one the function is transformers' own.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import varlen
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rlvr_pl.scoring.in_parts import attend_in_parts, tokens_first
from rlvr_pl.scoring.packing import MaskedBlock, Packing
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
        q, k, v = (tokens_first(x) for x in (query, key, value))
        return attend_in_parts(q, k, v, packing, scale).unsqueeze(0), None
    return _padded(query, key, value, packing, scale), None


def _cpu_attention_takes(query: Tensor, value: Tensor) -> bool:
    return query.device.type == "cpu" and query.shape[-1] == value.shape[-1]


AttentionInterface.register(PACKED_GROUPS, attend_in_groups)
AttentionMaskInterface.register(PACKED_GROUPS, sdpa_mask)


def _by_length(query: Tensor, key: Tensor, value: Tensor, packing: Packing, scale: float) -> Tensor:
    """Give each completion a copy of its prompt's keys: one kernel for all segments, whatever their lengths."""
    layout = packing.by_length
    queries, keys, values = (tokens_first(x) for x in (query, key, value))
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
    queries, keys, values = (tokens_first(x) for x in (query, key, value))
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


def _segments(x: Tensor, block: MaskedBlock) -> Tensor:
    """From (S, heads, …) to (segments, heads, Q, …)."""
    return x[block.queries].transpose(1, 2)


def _put(target: Tensor, block: MaskedBlock, x: Tensor) -> None:
    """Write (segments, heads, Q, …) to its places in (S + 1, heads, …)."""
    target.index_copy_(0, block.targets, x.transpose(1, 2).flatten(0, 1))


def _repeat(x: Tensor, repeats: int) -> Tensor:
    """Give each query head its key head: from (…, kv heads, Q, head size) to (…, heads, Q, head size)."""
    return x.repeat_interleave(repeats, dim=1)
