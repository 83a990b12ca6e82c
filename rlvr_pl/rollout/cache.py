"""The keys and values of every token that the rows in flight have seen."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class KVCache:
    """Keys and values, (layers, slots, columns, kv heads, head size) each; a row's token t lies in column t.

    It takes 2 · layers · slots · columns · kv heads · head size numbers, for as long as the engine lives.
    """

    def __init__(self, shape: tuple[int, int, int, int, int], dtype: torch.dtype, device: torch.device) -> None:
        # Zeros: what a mask hides must still be finite, for 0 · NaN is NaN.
        self.keys, self.values = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
        self.layers = list(zip(self.keys, self.values, strict=True))  # views: an index less at each token
        _, self.slots, self.columns, _, _ = shape

    def write_prompts(self, first: int, layers: list[tuple[Tensor, Tensor]], members: Tensor) -> None:
        """Copy prompts to the slots from ``first`` on.

        Args:
            first: slot.
            layers: keys and values of each layer, (B, P, kv heads, head size) each.
            members: (rows,) int64; which of the B prompts each slot gets.
        """
        for ours, theirs in zip(self.layers, layers, strict=True):  # one by one: a copy takes memory of its own
            for cached, prompts in zip(ours, theirs, strict=True):
                cached[first : first + len(members), : prompts.shape[1]] = prompts[members]

    def move(self, sources: Sequence[int], targets: Sequence[int], columns: int) -> None:
        """Copy the first ``columns`` of some slots to others."""
        for source, target in zip(sources, targets, strict=True):  # few, and one by one no copy takes memory of its own
            for cached in (self.keys, self.values):
                cached[:, target, :columns] = cached[:, source, :columns]
