"""Attention over a cache whose rows hold whole sequences."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import varlen

OverRows = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From queries (rows, heads, head size), keys and values (rows, columns, kv heads, head size) to what is attended."""


def attention_over_columns(positions: Tensor, columns: int, even: bool, dtype: torch.dtype) -> OverRows:
    """Attention over the first columns of all rows, with those behind a row's position masked, unless rows are even.

    Under a mask the queries that share a key head stand as if they were so many tokens: a GPU's kernels take a mask
    or grouped heads, not both, and a CPU's is called less often. Without one, all is as in Hugging Face's decoding.
    """
    mask = None if even else hide_behind(positions + 1, columns, dtype)

    def attend(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        keys, values = (x[:, :columns].transpose(1, 2) for x in (keys, values))
        grouped = q.unsqueeze(2) if mask is None else q.unflatten(1, (keys.shape[1], -1))
        attended = F.scaled_dot_product_attention(grouped, keys, values, mask, enable_gqa=mask is None)
        return attended.reshape(q.shape)

    return attend


def attention_by_length(positions: Tensor, columns: int) -> OverRows:
    """Attention that reads of each row just what it holds; needs neither a mask nor a bound on the columns."""
    boundaries = torch.arange(len(positions) + 1, dtype=torch.int32, device=positions.device)
    starts, used = boundaries * columns, (positions + 1).int()

    def attend(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        keys, values = keys.flatten(0, 1), values.flatten(0, 1)
        attended = varlen.varlen_attn(q, keys, values, boundaries, starts, 1, columns, enable_gqa=True, seqused_k=used)
        assert isinstance(attended, Tensor)
        return attended

    return attend


def hide_behind(lengths: Tensor, columns: int, dtype: torch.dtype) -> Tensor:
    """Make the additive mask of rows that hold so many columns each, (rows, 1, 1, columns)."""
    behind = torch.arange(columns, device=lengths.device) >= lengths.unsqueeze(1)
    mask = torch.zeros(behind.shape, dtype=dtype, device=lengths.device)
    return mask.masked_fill_(behind, -torch.inf)[:, None, None]
