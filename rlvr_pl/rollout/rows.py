"""What is known of each sequence in flight, and where its tokens go."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlvr_pl.rollout.cache import KVCache, Prefilled, fill_gaps
from rlvr_pl.rollout.sampling import choose_tokens

_UNWRITTEN = -1


class Rows:
    """The sequences in flight: row r has slot r of the cache, and the first ``count`` rows are live, without a gap.

    Tokens go to ``tokens``, where place n · T + t is token t of sequence n. The place behind the last one is spare:
    ended rows read their noise from it and write to it until the host looks. A captured step reads and writes these
    tensors, so none is ever replaced.

    Args:
        cache: has a slot for each row.
        places: how many tokens there can be in a call.
        stop_ids: what ends a completion.
    """

    def __init__(self, cache: KVCache, places: int, stop_ids: Tensor) -> None:
        device = stop_ids.device
        self.cache, self.stop_ids, self.spare = cache, stop_ids, places
        self.count = 0
        self.columns = 0  # of the cache, that the next step must look at; counted on the host until it looks
        self.token = torch.zeros(cache.slots, dtype=torch.int64, device=device)  # the last one sampled, not yet read
        self.position = torch.zeros_like(self.token)  # its column
        self.place = torch.zeros_like(self.token)  # of the next one; ``spare`` once the row has ended
        self.last_place = torch.zeros_like(self.token)  # the end of the budget
        self.tokens = torch.empty(places + 1, dtype=torch.int64, device=device)
        self.logprobs = torch.empty(places + 1, dtype=torch.float32, device=device)
        self.noise = torch.zeros(places + 1, dtype=torch.float32, device=device)  # the spare one's stays 0

    def reset(self, noise: Tensor | None) -> None:
        """Forget the last call and take this one's uniforms; no row is live."""
        self.count = self.columns = 0
        self.place.fill_(self.spare)
        self.tokens.fill_(_UNWRITTEN)
        if noise is not None:
            self.noise[: noise.numel()].copy_(noise.flatten())

    def admit(self, groups: Sequence[Sequence[int]], prompts: Prefilled, budget: int) -> tuple[slice, Tensor]:
        """Give sequences, a group of each prompt, the rows behind the live ones.

        Returns:
            The rows, and logits of their first tokens.
        """
        device = self.token.device
        members = torch.tensor([i for i, group in enumerate(groups) for _ in group], device=device)
        first_place = torch.tensor([s * budget for group in groups for s in group], device=device)
        rows = slice(self.count, self.count + len(members))
        self.cache.write_prompts(self.count, prompts, members)
        self.position[rows] = prompts.lengths[members] - 1
        self.place[rows] = first_place
        self.last_place[rows] = first_place + budget - 1
        self.count, self.columns = rows.stop, max(self.columns, prompts.width + 1)
        return rows, prompts.logits[members]

    def sample(self, rows: slice, logits: Tensor, temperature: float) -> None:
        """Sample the next token of some rows, write it, and see whether it ends the completion.

        Nothing here waits for the device.
        """
        place = self.place[rows]
        tokens, logprobs = choose_tokens(logits, temperature, self.noise[place] if temperature > 0 else None)
        self.tokens.index_copy_(0, place, tokens)
        self.logprobs.index_copy_(0, place, logprobs)
        had_ended = place == self.spare
        ends = (tokens.unsqueeze(1) == self.stop_ids).any(dim=1) | (place == self.last_place[rows]) | had_ended
        self.token[rows] = tokens
        self.position[rows] += ~had_ended  # with the token that ends a row too: its column
        self.place[rows] = torch.where(ends, self.spare, place + 1)

    def retire(self) -> None:
        """Drop the ended rows and fill their places with the last of the live ones."""
        place, position = torch.stack((self.place, self.position))[:, : self.count].cpu()  # here the host waits
        ended = place == self.spare
        left, targets, sources = fill_gaps(ended)
        self.columns = int(position[~ended].max()) + 1 if left else 0
        if left < self.count:
            self.cache.move(sources.tolist(), targets.tolist(), self.columns)
            self.cache.keep(left)
            targets, sources = targets.to(self.place.device), sources.to(self.place.device)
            for state in (self.token, self.position, self.place, self.last_place):
                state[targets] = state[sources]
            self.place[left : self.count] = self.spare
            self.count = left

    def written(self) -> int:
        """Count the tokens so far."""
        return int((self.tokens[: self.spare] != _UNWRITTEN).sum())

    def first_sequence(self, budget: int) -> list[int]:
        """Read the tokens so far of sequence 0."""
        tokens = self.tokens[:budget]
        return tokens[tokens != _UNWRITTEN].tolist()

    def read(self, sequences: int, budget: int) -> tuple[Tensor, Tensor, Tensor]:
        """Read tokens (N, T), anything on pads; mask (N, T); log-probabilities (N, T). T is the longest completion."""
        tokens, logprobs = (x[: sequences * budget].view(sequences, budget) for x in (self.tokens, self.logprobs))
        mask = tokens != _UNWRITTEN
        longest = int(mask.sum(dim=1).max())
        return tokens[:, :longest].clone(), mask[:, :longest].clone(), logprobs[:, :longest].clone()
