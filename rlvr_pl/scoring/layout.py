"""Where each token of a micro-batch stands, in either of two layouts.

Packed groups are one row without pads, each prompt once (:mod:`rlvr_pl.scoring.packing`). Padded rows are the plain
way: each completion behind a copy of its prompt. They are what the other one is checked against, and serve the models
that it does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from rlvr_pl.batching import batches_by_tokens, even_batches
from rlvr_pl.scoring.packing import Packing


@dataclass(frozen=True, eq=False)
class Sequences:
    """Prompts and completions as a policy reads them, and where among them the completion tokens are.

    Made once for each micro-batch, on the host, from lengths that it knows: whoever scores waits for no device.
    """

    input_ids: Tensor  # (rows, L) int64
    predicting: Tensor  # (tokens,) int64, places in (rows · L) whose next token is one of a completion
    targets: Tensor  # (tokens,) int64, the completion tokens
    places: Tensor  # (tokens,) int64, their places in (n · T)
    shape: tuple[int, int]  # (n, T)
    position_ids: Tensor | None = None  # (1, L) int64, where they are not the places in the row
    packing: Packing | None = None


class Layout(Protocol):
    """A way to lay out the sequences of a rollout, and to cut them into micro-batches."""

    def lay_out(
        self, prompts: Sequence[Sequence[int]], members: Sequence[int], completion_ids: Tensor, lengths: Sequence[int]
    ) -> Sequences:
        """Place n sequences.

        Args:
            prompts: distinct ones, unpadded.
            members: n; the number of each row's prompt, in ascending order.
            completion_ids: (n, T), padded on the right; may lie on a device.
            lengths: n, the tokens of each completion.
        """

    def cut(
        self, prompts: Sequence[int], members: Sequence[int], lengths: Sequence[int], token_budget: int, ranks: int
    ) -> list[list[int]]:
        """Cut sequences into micro-batches, as many for each rank, largest first.

        Args:
            prompts: the prompts' tokens, counted.
            members: n; the number of each row's prompt, in ascending order.
            lengths: n, the tokens of each completion.
            token_budget: tokens that go through the policy together, at most; a sequence that is longer goes alone.
            ranks: that share the work; rank r takes every ``ranks``-th micro-batch from the r-th on.

        Returns:
            Rows in ascending order. A multiple of ``ranks`` of them; empty ones where there is too little to share.
        """


class PackedGroups:
    """Each prompt once, its completions behind it, nothing padded."""

    def lay_out(
        self, prompts: Sequence[Sequence[int]], members: Sequence[int], completion_ids: Tensor, lengths: Sequence[int]
    ) -> Sequences:
        by_prompt: list[list[int]] = [[] for _ in prompts]
        for member, length in zip(members, lengths, strict=True):
            by_prompt[member].append(length)
        packing = Packing([len(prompt) for prompt in prompts], by_prompt, completion_ids.device)
        flat = np.concatenate([np.asarray(prompt, dtype=np.int64) for prompt in prompts])
        of_prompts = np.concatenate([np.arange(group.prompt.start, group.prompt.stop) for group in packing.groups])
        prompt_ends = np.array([group.prompt.stop for group in packing.groups])
        row, token, place = _completion_tokens(lengths, completion_ids.shape[1])
        member = np.asarray(members)[row]
        # The completions' tokens stand in the row as here, with the prompts of their own and of earlier groups before.
        of_completions = np.cumsum([len(prompt) for prompt in prompts])[member] + np.arange(len(row))
        source, position = np.empty((2, packing.tokens), dtype=np.int64)
        source[of_prompts], source[of_completions] = np.arange(len(flat)), len(flat) + place
        position[of_prompts] = np.concatenate([np.arange(len(prompt)) for prompt in prompts])
        position[of_completions] = np.array([len(prompt) for prompt in prompts])[member] + token
        before = np.where(token == 0, prompt_ends[member], of_completions) - 1  # the first is the prompt's to predict
        prompt_tokens, sources, positions, predicting, places = _upload(
            completion_ids.device, flat, source, position, before, place
        )
        tokens = torch.cat((prompt_tokens, completion_ids.flatten()))
        return Sequences(
            input_ids=tokens[sources].unsqueeze(0),
            predicting=predicting,
            targets=completion_ids.flatten()[places],
            places=places,
            shape=(len(lengths), completion_ids.shape[1]),
            position_ids=positions.unsqueeze(0),
            packing=packing,
        )

    def cut(
        self, prompts: Sequence[int], members: Sequence[int], lengths: Sequence[int], token_budget: int, ranks: int
    ) -> list[list[int]]:
        by_prompt: dict[int, list[int]] = {}
        for row, member in enumerate(members):
            by_prompt.setdefault(member, []).append(row)
        parts = [
            part
            for member, rows in by_prompt.items()
            for part in _split(rows, [lengths[row] for row in rows], token_budget - prompts[member])
        ]
        sizes = [prompts[members[part[0]]] + sum(lengths[row] for row in part) for part in parts]
        return [sorted(row for i in batch for row in parts[i]) for batch in even_batches(sizes, token_budget, ranks)]


class PaddedRows:
    """Each completion behind a prompt of its own, padded on the right to the longest."""

    def lay_out(
        self, prompts: Sequence[Sequence[int]], members: Sequence[int], completion_ids: Tensor, lengths: Sequence[int]
    ) -> Sequences:
        rows, width = completion_ids.shape
        starts = np.array([len(prompts[member]) for member in members])
        ends = starts + np.array(lengths)
        column = np.arange(ends.max())
        # Where each token comes from: the prompts' tokens one after the other, then the completions', then a 0.
        flat = np.concatenate([np.asarray(prompts[member], dtype=np.int64) for member in members])
        of_prompt = np.cumsum(starts)[:, None] - starts[:, None] + column
        of_completion = len(flat) + width * np.arange(rows)[:, None] + column - starts[:, None]
        source = np.where(column < ends[:, None], of_completion, len(flat) + rows * width)
        source = np.where(column < starts[:, None], of_prompt, source).ravel()
        row, token, place = _completion_tokens(lengths, width)
        before = row * len(column) + starts[row] + token - 1
        prompt_tokens, sources, predicting, places = _upload(completion_ids.device, flat, source, before, place)
        tokens = torch.cat((prompt_tokens, completion_ids.flatten(), prompt_tokens.new_zeros(1)))
        return Sequences(
            input_ids=tokens[sources].view(rows, len(column)),
            predicting=predicting,
            targets=completion_ids.flatten()[places],
            places=places,
            shape=(rows, width),
        )

    def cut(
        self, prompts: Sequence[int], members: Sequence[int], lengths: Sequence[int], token_budget: int, ranks: int
    ) -> list[list[int]]:
        tokens = [prompts[member] + length for member, length in zip(members, lengths, strict=True)]
        batches = list(batches_by_tokens(tokens, token_budget))
        while not batches or len(batches) % ranks:
            most = max(batches, key=len, default=[])
            if len(most) < 2:
                batches.append([])
            else:
                at = batches.index(most)
                batches[at : at + 1] = [most[: len(most) // 2], most[len(most) // 2 :]]
        return [sorted(batch) for batch in batches]


def _completion_tokens(lengths: Sequence[int], width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, number within the row, and place in (n · T) of each completion token."""
    row, token = np.nonzero(np.arange(width) < np.asarray(lengths)[:, None])
    return row, token, row * width + token


def _split(rows: Sequence[int], lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Cut a group into parts whose completions keep a budget, each of which repeats the prompt; mostly it is one."""
    part: list[int] = []
    room = budget
    for row, length in zip(rows, lengths, strict=True):
        if part and length > room:
            yield part
            part, room = [], budget
        part.append(row)
        room -= length
    yield part


def _upload(device: torch.device, *arrays: np.ndarray) -> Sequence[Tensor]:
    """Make tensors of int64 arrays on a device, in one copy to it."""
    return torch.from_numpy(np.concatenate(arrays)).to(device).split([len(array) for array in arrays])
