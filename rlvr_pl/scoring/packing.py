"""Groups in one row: a prompt, its completions behind it, the next prompt, and no pads.

::

    p p p a a b b b q q c d d d      prompt p with completions a and b, prompt q with c and d

A prompt attends to itself; a completion attends to its prompt and to itself. What attention needs to know of that, in
the three forms that its kernels take, is made when it is first asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from rlvr_pl.batching import batches_by_tokens

_BLOCK_TOKENS = 4096  # pads included: few calls of a kernel, and few pads


@dataclass(frozen=True)
class Group:
    """Where a prompt and its completions stand in the row."""

    prompt: slice
    completions: tuple[slice, ...]  # side by side, right behind the prompt; none is empty

    @property
    def answers(self) -> slice:
        """Where all of its completions stand, as one."""
        return slice(self.prompt.stop, self.completions[-1].stop if self.completions else self.prompt.stop)


@dataclass(frozen=True)
class ByLength:
    """Segments of queries, and of gathered keys: each prompt, and each completion with its prompt before it."""

    keys: Tensor  # (gathered,) int64, places in the row
    query_bounds: Tensor  # (segments + 1,) int32
    key_bounds: Tensor  # (segments + 1,) int32
    longest_query: int
    longest_keys: int


@dataclass(frozen=True)
class Block:
    """Segments side by side, padded on the right with whatever stands at place 0."""

    queries: Tensor  # (segments, Q) int64, places in the row
    pads: Tensor  # (segments, Q) bool


@dataclass(frozen=True)
class MaskedBlock(Block):
    """Segments with keys of their own."""

    keys: Tensor  # (segments, K) int64, places in the row
    visible: Tensor  # (segments, 1, Q, K) bool; a pad sees something too, or it would be NaN


BlockType = TypeVar("BlockType", bound=Block)


@dataclass(frozen=True)
class Blocks(Generic[BlockType]):
    """All segments of the row."""

    blocks: tuple[BlockType, ...]
    places: Tensor  # (S,) int64: where each token of the row stands in the blocks, one behind the other


class Packing:
    """The groups of a packed row of S tokens.

    Args:
        prompts: the prompts' tokens, counted.
        lengths: for each prompt its completions' tokens, counted; those without a token have no place in the row.
        device: of the tensors.
    """

    def __init__(self, prompts: Sequence[int], lengths: Sequence[Sequence[int]], device: torch.device) -> None:
        self.device = device
        self.groups: list[Group] = []
        end = 0
        for prompt, completions in zip(prompts, lengths, strict=True):
            *starts, stop = accumulate([n for n in completions if n > 0], initial=end + prompt)
            ends = [*starts[1:], stop]
            self.groups.append(Group(slice(end, end + prompt), tuple(map(slice, starts, ends))))
            end = stop
        self.tokens = end

    @cached_property
    def by_length(self) -> ByLength:
        """What a kernel for segments of unequal length takes."""
        queries, keys = self._segments()
        bounds = [np.cumsum([0, *map(len, parts)]).astype(np.int32) for parts in (queries, keys)]
        query_bounds, key_bounds = self._tensor(np.stack(bounds))
        return ByLength(
            keys=self._tensor(np.concatenate(keys)),
            query_bounds=query_bounds,
            key_bounds=key_bounds,
            longest_query=max(map(len, queries)),
            longest_keys=max(map(len, keys)),
        )

    @cached_property
    def alone(self) -> Blocks[Block]:
        """Each prompt and each completion by itself, those of like length together."""
        queries, _ = self._segments()
        lengths = [len(segment) for segment in queries]
        blocks, places = self._blocks(list(batches_by_tokens(lengths, _BLOCK_TOKENS)), queries)
        return Blocks(tuple(Block(self._tensor(q), self._tensor(pads)) for q, pads in blocks), places)

    @cached_property
    def masked(self) -> Blocks[MaskedBlock]:
        """The prompts; and the completions, each with its prompt's keys before its own."""
        queries, keys = self._segments()
        is_prompt = [len(q) == len(k) for q, k in zip(queries, keys, strict=True)]
        chosen = [[i for i, kind in enumerate(is_prompt) if kind == wanted] for wanted in (True, False)]
        chosen = [rows for rows in chosen if rows]
        padded, places = self._blocks(chosen, queries)
        blocks = []
        for rows, (q, pads) in zip(chosen, padded, strict=True):
            k, _ = _pad([keys[i] for i in rows])
            visible = np.zeros((*q.shape, k.shape[1]), dtype=bool)
            visible[..., 0] = True
            for row, i in enumerate(rows):
                n, m = len(queries[i]), len(keys[i])
                visible[row, :n, :m] = np.tri(n, m, m - n, dtype=bool)
            blocks.append(MaskedBlock(*(self._tensor(x) for x in (q, pads, k, visible[:, None]))))
        return Blocks(tuple(blocks), places)

    def _blocks(
        self, chosen: Sequence[Sequence[int]], queries: Sequence[np.ndarray]
    ) -> tuple[list[tuple[np.ndarray, np.ndarray]], Tensor]:
        """Pad some segments at a time; return their places with the pads, and where the row's tokens are in them."""
        blocks, places, first = [], np.empty(self.tokens, dtype=np.int64), 0
        for rows in chosen:
            q, pads = _pad([queries[i] for i in rows])
            blocks.append((q, pads))
            places[q[~pads]] = first + np.flatnonzero(~pads)
            first += q.size
        return blocks, self._tensor(places)

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device)

    def _segments(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Places of the queries, and of the keys that they attend to: all, but causally among the last of them."""
        queries, keys = [], []
        for group in self.groups:
            prompt = np.arange(group.prompt.start, group.prompt.stop)
            queries.append(prompt)
            keys.append(prompt)
            for completion in group.completions:
                own = np.arange(completion.start, completion.stop)
                queries.append(own)
                keys.append(np.concatenate((prompt, own)))
        return queries, keys


def _pad(segments: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Put segments side by side: (segments, longest), and which of it are pads."""
    lengths = np.array([len(segment) for segment in segments])
    pads = np.arange(lengths.max()) >= lengths[:, None]
    padded = np.zeros(pads.shape, dtype=np.int64)
    padded[~pads] = np.concatenate(segments)
    return padded, pads
