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

import numpy as np
import torch
from torch import Tensor

from rlvr_pl.batching import batches_by_tokens

_BLOCK_TOKENS = 512  # pads included: many calls of a kernel cost time, and so do pads


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
class Alone:
    """Each prompt and each completion by itself, padded on the right to blocks of like length."""

    blocks: Sequence[tuple[int, int]]  # segments and tokens of each, one block behind the other: P places
    sources: Tensor  # (P,) int64, places in the row; a pad has that of its segment's first token
    pads: Tensor  # (P,) bool
    places: Tensor  # (S,) int64, where in the blocks each token of the row stands


@dataclass(frozen=True)
class MaskedBlock:
    """Segments with keys of their own, padded on the right with whatever stands at place 0."""

    queries: Tensor  # (segments, Q) int64, places in the row
    targets: Tensor  # (segments · Q,) int64, the same places, with that behind the row's end for pads
    keys: Tensor  # (segments, K) int64, places in the row
    visible: Tensor  # (segments, 1, Q, K) bool; a pad sees something too, or it would be NaN


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
    def alone(self) -> Alone:
        """What a kernel for segments of equal length takes."""
        segments = [part for group in self.groups for part in (group.prompt, *group.completions)]
        starts = np.array([segment.start for segment in segments])
        lengths = np.array([segment.stop - segment.start for segment in segments])
        blocks, sources, pads = [], [], []
        for rows in batches_by_tokens(lengths.tolist(), _BLOCK_TOKENS):
            longest = int(lengths[rows].max())
            column = np.arange(longest)
            beyond = column >= lengths[rows, None]
            blocks.append((len(rows), longest))
            sources.append((starts[rows, None] + np.where(beyond, 0, column)).ravel())
            pads.append(beyond.ravel())
        source, pad = np.concatenate(sources), np.concatenate(pads)
        places = np.empty(self.tokens, dtype=np.int64)
        places[source[~pad]] = np.flatnonzero(~pad)
        return Alone(blocks, *map(self._tensor, (source, pad, places)))

    @cached_property
    def masked(self) -> list[MaskedBlock]:
        """The prompts; and the completions, each with its prompt's keys before its own."""
        queries, keys = self._segments()
        is_prompt = [len(q) == len(k) for q, k in zip(queries, keys, strict=True)]
        blocks = []
        for kind in sorted(set(is_prompt)):
            chosen = [(q, k) for q, k, this in zip(queries, keys, is_prompt, strict=True) if this == kind]
            q, pads = _pad([q for q, _ in chosen])
            k, _ = _pad([k for _, k in chosen])
            targets = np.where(pads, self.tokens, q).ravel()
            visible = np.zeros((*q.shape, k.shape[1]), dtype=bool)
            visible[..., 0] = True
            for row, segment in enumerate(chosen):
                n, m = map(len, segment)
                visible[row, :n, :m] = np.tri(n, m, m - n, dtype=bool)
            blocks.append(MaskedBlock(*map(self._tensor, (q, targets, k, visible[:, None]))))
        return blocks

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
