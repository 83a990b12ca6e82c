"""What is known of each sequence in flight, and where its tokens go."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rlvr_pl.rollout.sampling import choose_tokens

_UNWRITTEN = -1


class Output:
    """The tokens of all sequences of a call, written cell by cell; cell n · T + t is token t of sequence n.

    A captured graph keeps the addresses, so one object serves every call that it is large enough for. The cell behind
    the last one takes what finished rows go on writing until the host looks.
    """

    def __init__(self, cells: int, device: torch.device) -> None:
        self.cells = cells
        self.tokens = torch.empty(cells + 1, dtype=torch.int64, device=device)
        self.logprobs = torch.empty(cells + 1, dtype=torch.float32, device=device)
        # Zeros: rows that are not live read it before any noise is written, and NaN would choose no token of any.
        self.noise = torch.zeros(cells + 1, dtype=torch.float32, device=device)

    def reset(self, noise: Tensor | None) -> None:
        """Forget the last call's tokens and take this one's uniforms."""
        self.tokens.fill_(_UNWRITTEN)
        if noise is not None:
            self.noise[: noise.numel()].copy_(noise.flatten())

    def written(self) -> int:
        """Tokens so far."""
        return int((self.tokens[: self.cells] != _UNWRITTEN).sum())

    def read(self, sequences: int, budget: int) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (N, T), anything on pads; mask (N, T); log-probabilities (N, T). T is the longest completion."""
        tokens = self.tokens[: sequences * budget].view(sequences, budget)
        mask = tokens != _UNWRITTEN
        longest = int(mask.sum(dim=1).max())
        logprobs = self.logprobs[: sequences * budget].view(sequences, budget)
        return tokens[:, :longest].clone(), mask[:, :longest].clone(), logprobs[:, :longest].clone()


class Rows:
    """The sequences in flight: row r has slot r of the cache, and the first ``count`` rows are live, without a gap.

    The tensors are read by the decode step and never replaced; the host keeps its own count of the columns.

    Args:
        slots: how many there can be.
        stop_ids: what ends a completion.
        output: where tokens go.
    """

    def __init__(self, slots: int, stop_ids: Tensor, output: Output) -> None:
        device = stop_ids.device
        self.stop_ids = stop_ids
        self.output = output
        self.count = 0
        self.token = torch.zeros(slots, dtype=torch.int64, device=device)  # the last one chosen, not yet read
        self.position = torch.zeros(slots, dtype=torch.int64, device=device)  # its column
        self.cell = torch.zeros(slots, dtype=torch.int64, device=device)  # where the next one goes
        self.last_cell = torch.zeros(slots, dtype=torch.int64, device=device)  # the end of the budget
        self.done = torch.ones(slots, dtype=torch.bool, device=device)
        self._columns = np.zeros(slots, dtype=np.int64)  # at least position + 1, known without asking the device

    def clear(self) -> None:
        """Forget whatever an interrupted call has left."""
        self.count = 0
        self.done.fill_(True)

    @property
    def columns(self) -> int:
        """How many columns of the cache the next step must look at."""
        return int(self._columns[: self.count].max(initial=0))

    @property
    def even(self) -> bool:
        """Whether all live rows hold equally many tokens."""
        live = self._columns[: self.count]
        return bool((live == live[:1]).all())

    def admit(self, sequences: Sequence[int], prompt_lengths: Sequence[int], budget: int) -> slice:
        """Give sequences the rows behind the live ones; their prompts have been read and no token chosen yet."""
        rows = slice(self.count, self.count + len(sequences))
        device = self.token.device
        lengths, first_cell = torch.tensor(prompt_lengths), torch.tensor(sequences) * budget
        self._columns[rows] = lengths.numpy() + 1
        self.position[rows] = (lengths - 1).to(device)
        self.cell[rows] = first_cell.to(device)
        self.last_cell[rows] = (first_cell + budget - 1).to(device)
        self.done[rows] = False
        self.count = rows.stop
        return rows

    def choose(self, rows: slice, logits: Tensor, temperature: float) -> None:
        """Choose the next token of some rows, write it, and see whether it ends the completion.

        Nothing here waits for the device. A finished row stays as it is; what it would write goes to the spare cell.
        """
        output = self.output
        done, cell = self.done[rows], self.cell[rows]
        tokens, logprobs = choose_tokens(logits, temperature, output.noise[cell] if temperature > 0 else None)
        target = torch.where(done, output.cells, cell)
        output.tokens.index_copy_(0, target, tokens)
        output.logprobs.index_copy_(0, target, logprobs)
        self.token[rows] = tokens
        live = (~done).long()
        self.position[rows] += live
        stopped = (tokens.unsqueeze(1) == self.stop_ids).any(dim=1) | (cell == self.last_cell[rows])
        self.cell[rows] += live * ~stopped
        self.done[rows] = done | stopped

    def advance(self) -> None:
        """The host's account of a step."""
        self._columns[: self.count] += 1

    def retire(self) -> tuple[Tensor, Tensor]:
        """Drop the finished rows and fill their places with the last of the live ones.

        Returns:
            Which rows moved where, whose slots must follow.
        """
        done = self.done[: self.count].cpu()
        left = self.count - int(done.sum())
        to = done[:left].nonzero().squeeze(1)
        source = left + (~done[left:]).nonzero().squeeze(1)
        if left < self.count:
            self._columns[to.numpy()] = self._columns[source.numpy()]
            to, source = to.to(self.done.device), source.to(self.done.device)
            for state in (self.token, self.position, self.cell, self.last_cell):
                state[to] = state[source]
            self.done[:left] = False
            self.done[left : self.count] = True
            self.count = left
        return source, to
