"""The keys and values of every token that the rows in flight have seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlvr_pl.rollout.attention import attention_by_length, attention_over_columns
from rlvr_pl.varlen import varlen_takes

Attention = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""From layer, queries (…, heads, head size), keys and values (…, kv heads, head size) to (…, heads, head size)."""


@dataclass(frozen=True)
class Prefilled:
    """B prompts as the policy has read them."""

    lengths: Tensor  # (B,)
    logits: Tensor  # of the next token, (B, V) float32
    layers: list[tuple[Tensor, Tensor]]  # keys and values, (B, P, kv heads, head size) each

    def __getitem__(self, prompt: int) -> Prefilled:
        """One of them, without its pads and without holding the memory of the others."""
        one, length = slice(prompt, prompt + 1), int(self.lengths[prompt])
        layers = [(keys[one, :length].clone(), values[one, :length].clone()) for keys, values in self.layers]
        return Prefilled(self.lengths[one], self.logits[one].clone(), layers)

    @property
    def width(self) -> int:
        """P, the longest one's tokens."""
        return self.layers[0][0].shape[1]


class KVCache:
    """Keys and values, (layers, slots, columns, kv heads, head size) each; a row's token t lies in column t.

    It takes 2 · layers · slots · columns · kv heads · head size numbers, for as long as the engine lives.
    """

    def __init__(self, shape: tuple[int, int, int, int, int], dtype: torch.dtype, device: torch.device) -> None:
        # Zeros: what a mask hides must still be finite, for 0 · NaN is NaN.
        self.keys, self.values = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
        self.layers = list(zip(self.keys, self.values, strict=True))  # views: an index less at each token
        _, self.slots, self.columns, _, _ = shape

    def write_prompts(self, first: int, prompts: Prefilled, members: Tensor) -> None:
        """Copy prompts to the slots from ``first`` on.

        Args:
            first: slot.
            prompts: B of them.
            members: (rows,) int64; which of the B prompts each slot gets.
        """
        for ours, theirs in zip(self.layers, prompts.layers, strict=True):  # one by one: a copy takes memory of its own
            for cached, read in zip(ours, theirs, strict=True):
                cached[first : first + len(members), : prompts.width] = read[members]

    def move(self, sources: Sequence[int], targets: Sequence[int], columns: int) -> None:
        """Copy the first ``columns`` of some slots to others."""
        for source, target in zip(sources, targets, strict=True):  # few, and one by one no copy takes memory of its own
            for cached in (self.keys, self.values):
                cached[:, target, :columns] = cached[:, source, :columns]

    def keep(self, count: int) -> None:
        """Learn that no slot behind the first ``count`` is read again."""

    def attention(self, positions: Tensor, columns: int, even: bool) -> Attention:
        """Make the attention of a decode step: it writes the keys and values that it is given, then reads.

        Args:
            positions: (n,) int64, of the first n rows' next tokens.
            columns: how many columns a row holds at most, that token included.
            even: whether all rows hold just as many, so that none of them needs a mask.
        """
        rows = torch.arange(len(positions), device=positions.device)
        if reads_by_length(self):
            over_rows = attention_by_length(positions, self.columns)
        else:
            over_rows = attention_over_columns(positions, columns, even, self.keys.dtype)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = self.layers[layer]
            keys.index_put_((rows, positions), k)
            values.index_put_((rows, positions), v)
            return over_rows(q, keys[: len(rows)], values[: len(rows)])

        return attend


def reads_by_length(cache: KVCache) -> bool:
    """Tell whether attention reads of each row just what it holds, whatever the bound on the columns.

    Its kernel takes the lengths from torch 2.12 on.
    """
    return varlen_takes(cache.keys, "seqused_k")


def fill_gaps(ended: Tensor) -> tuple[int, Tensor, Tensor]:
    """Plan how the last of the live fill the places of the ended.

    Args:
        ended: (n,) bool.

    Returns:
        How many are live; the places among the first so many that are free; and those behind, who take them.
    """
    left = len(ended) - int(ended.sum())
    return left, ended[:left].nonzero().squeeze(1), left + (~ended[left:]).nonzero().squeeze(1)
