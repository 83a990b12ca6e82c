"""The keys and values of every token that the rows in flight have seen."""

from __future__ import annotations

import torch
from torch import Tensor


class KVCache:
    """Keys and values, (layers, slots, columns, kv heads, head size) each; a row's token t lies in column t.

    It takes 2 · layers · slots · columns · kv heads · head size numbers, for as long as the engine lives.
    """

    def __init__(
        self,
        layers: int,
        slots: int,
        columns: int,
        kv_heads: int,
        head_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (layers, slots, columns, kv_heads, head_size)
        # Zeros: what a mask hides must still be finite, for 0 · NaN is NaN.
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.layers = list(zip(self.keys, self.values, strict=True))  # views: an index less at each token
        self.slots, self.columns = slots, columns

    def write_prompts(self, first: int, keys: Tensor, values: Tensor, members: Tensor) -> None:
        """Copy prompts to the slots from ``first`` on.

        Args:
            first: slot.
            keys, values: (layers, B, P, kv heads, head size).
            members: (rows,) int64; which of the B prompts each slot gets.
        """
        rows, columns = slice(first, first + len(members)), keys.shape[2]
        for ours, theirs in ((self.keys, keys), (self.values, values)):
            for layer, prompts in zip(ours, theirs, strict=True):  # one by one: a copy takes memory of its own
                layer[rows, :columns] = prompts[members]

    def write_token(self, layer: int, cells: tuple[Tensor, Tensor], keys: Tensor, values: Tensor) -> None:
        """Write one token of each of n rows.

        Args:
            layer: index.
            cells: slots and columns, (n,) int64 each.
            keys, values: (n, kv heads, head size).
        """
        ours, theirs = self.layers[layer]
        ours.index_put_(cells, keys)
        theirs.index_put_(cells, values)

    def move(self, sources: Tensor, targets: Tensor, columns: int) -> None:
        """Copy the first ``columns`` of some slots to others."""
        if len(sources) == 0:
            return
        for layer in (*self.keys, *self.values):
            layer[targets, :columns] = layer[sources, :columns]
