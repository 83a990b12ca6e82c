"""A cache in which the members of a group share their prompt's keys and values."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlvr_pl.cpu_attention import attention
from rlvr_pl.rollout.attention import hide_behind
from rlvr_pl.rollout.cache import Attention, KVCache, Prefilled, fill_gaps


class GroupCache(KVCache):
    """Holds each prompt once, and behind it the completions of its group, a row each.

    A decode step on a CPU is mostly the reading of keys and values, and most of those are the prompts'. Here a step
    reads each prompt once for all members that are in flight: their queries ask it together, each asks its own
    completion besides, and the two answers are weighted by their normalizers. That rounds otherwise than attention over
    the whole sequence.

    Rows and groups without a member in flight leave no gaps. Nothing here is for a GPU: its captured steps read
    tensors that stay where they are, and in shapes that do not depend on who is in flight.

    Args:
        shape: (layers, slots, columns of a completion, kv heads, head size).
        dtype, device: of keys and values.
    """

    def __init__(self, shape: tuple[int, int, int, int, int], dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(shape, dtype, device)  # of the completions
        layers, slots, _, *heads = shape
        self.prompt_keys, self.prompt_values = (self.keys.new_zeros((layers, 0, 0, *heads)) for _ in range(2))
        self.lengths = torch.zeros(0, dtype=torch.int64, device=device)  # of the prompts
        self.groups = 0  # in flight
        self.group = torch.zeros(slots, dtype=torch.int64, device=device)  # of each row
        self.start = torch.zeros_like(self.group)  # of each row: its prompt's tokens

    def write_prompts(self, first: int, prompts: Prefilled, members: Tensor) -> None:
        new = slice(self.groups, self.groups + len(prompts.lengths))
        rows = slice(first, first + len(members))
        self.make_room(new.stop, prompts.width)
        for layer, (keys, values) in enumerate(prompts.layers):
            self.prompt_keys[layer, new, : prompts.width] = keys
            self.prompt_values[layer, new, : prompts.width] = values
        self.lengths[new] = prompts.lengths
        self.group[rows] = self.groups + members
        self.start[rows] = prompts.lengths[members]
        self.groups = new.stop
        self._arrange(rows.stop)

    def move(self, sources: Sequence[int], targets: Sequence[int], columns: int) -> None:
        super().move(sources, targets, columns)
        for state in (self.group, self.start):
            state[list(targets)] = state[list(sources)]

    def keep(self, count: int) -> None:
        ended = torch.bincount(self.group[:count], minlength=self.groups) == 0
        left, targets, sources = fill_gaps(ended)
        for source, target in zip(sources.tolist(), targets.tolist(), strict=True):
            for cached in (self.prompt_keys, self.prompt_values):
                cached[:, target] = cached[:, source]
        self.lengths[targets] = self.lengths[sources]
        number = torch.arange(self.groups, device=ended.device)
        number[sources] = targets
        self.group[:count] = number[self.group[:count]]
        self.groups = left
        self._arrange(count)

    def attention(self, positions: Tensor, columns: int, even: bool) -> Attention:
        count = len(positions)
        rows = torch.arange(count, device=positions.device)
        column = positions - self.start[:count]
        used = int(column.max()) + 1
        behind = _mask(column + 1, used, self.keys.dtype)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = self.layers[layer]
            keys.index_put_((rows, column), k)
            values.index_put_((rows, column), v)
            # The queries that share a key head stand as if they were so many tokens.
            queries = q.unflatten(1, (k.shape[1], -1))
            own, own_log = _ask(queries, keys[:count, :used], values[:count, :used], behind)
            members = queries.flatten(0, 1)[self.asking].flatten(2, 3)
            of_prompt, prompt_log = _ask(
                members,
                self.prompt_keys[layer, : self.groups, : self.width],
                self.prompt_values[layer, : self.groups, : self.width],
                self.pads,
            )
            of_prompt, prompt_log = self._by_row(of_prompt), self._by_row(prompt_log)
            share = torch.sigmoid(prompt_log - own_log)  # Z₁ / (Z₁ + Z₂)
            whole = torch.lerp(own.to(share.dtype), of_prompt.to(share.dtype), share.unsqueeze(-1))
            return whole.to(q.dtype).view(q.shape)

        return attend

    def make_room(self, groups: int, width: int) -> None:
        """Have places for so many groups, and for prompts of so many tokens."""
        layers, places, columns, *heads = self.prompt_keys.shape
        if groups <= places and width <= columns:
            return
        shape = (layers, max(groups, places), max(width, columns), *heads)
        for name in ("prompt_keys", "prompt_values"):
            before = getattr(self, name)
            setattr(self, name, before.new_zeros(shape))
            getattr(self, name)[:, :places, :columns] = before
        self.lengths = torch.cat((self.lengths, self.lengths.new_zeros(shape[1] - places)))

    def _arrange(self, count: int) -> None:
        """Put the first rows in order by group, for as long as none comes or goes."""
        group = self.group[:count]
        sizes = torch.bincount(group, minlength=self.groups)
        most = int(sizes.max()) if count else 0
        order = torch.argsort(group, stable=True)
        member = torch.arange(count, device=group.device) - (sizes.cumsum(0) - sizes)[group[order]]
        self.place = torch.empty_like(order)  # of each row, in (groups · most)
        self.place[order] = group[order] * most + member
        asking = order.new_zeros(self.groups * most)  # which row; where a group has fewer members, any
        asking[self.place] = torch.arange(count, device=group.device)
        heads = torch.arange(self.keys.shape[3], device=group.device).unsqueeze(1)
        self.asking = asking.view(self.groups, 1, most) * len(heads) + heads  # of (rows · kv heads), by group and head
        lengths = self.lengths[: self.groups]
        self.width = int(lengths.max()) if self.groups else 0
        self.pads = _mask(lengths, self.width, self.keys.dtype)

    def _by_row(self, x: Tensor) -> Tensor:
        """From (groups, kv heads, most · queries, …) to (rows, kv heads, queries, …)."""
        members = x.unflatten(2, (self.asking.shape[2], -1)).transpose(1, 2)
        return members.flatten(0, 1).index_select(0, self.place)


def _mask(lengths: Tensor, columns: int, dtype: torch.dtype) -> Tensor | None:
    return None if bool((lengths == columns).all()) else hide_behind(lengths, columns, dtype)


def _ask(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Attend to all keys that are not masked.

    Args:
        queries: (rows, kv heads, queries, head size).
        keys, values: (rows, columns, kv heads, head size).
        mask: additive, (rows, 1, 1, columns).

    Returns:
        (rows, kv heads, queries, head size), and log Z, (rows, kv heads, queries).
    """
    keys, values = keys.transpose(1, 2), values.transpose(1, 2)
    output, log_normalizer = attention(queries, keys, values, 0.0, False, attn_mask=mask)
    return output, log_normalizer
