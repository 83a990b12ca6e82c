"""The rollout engine: slots over the policy's own weights, refilled as completions end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from rlvr_pl.policy import plan_micro_batches
from rlvr_pl.rollout.cache import KVCache
from rlvr_pl.rollout.decoder import Decoder, Prefilled, reads_by_length
from rlvr_pl.rollout.engine import Progress
from rlvr_pl.rollout.graphs import GraphedStep, Step
from rlvr_pl.rollout.rows import Output, Rows
from rlvr_pl.rollout.sampling import Sampling
from rlvr_pl.rollout.weights import DecoderWeights, addresses
from rlvr_pl.types import Rollout, masked

_PREFILL_TOKENS = 2048  # prompt tokens that are read together: more would not fit a CPU's cache, fewer idle a GPU
_COLUMN_BLOCK = 128  # the cache has whole blocks of columns, so that a somewhat longer prompt still fits
_REFILLS = 8  # a refill waits until this part of the slots is free
_STEPS_UNSEEN = 8  # decode steps on a GPU before the host looks for finished rows, for which it has to wait
_SECONDS_BETWEEN_REPORTS = 0.5


@dataclass
class _Call:
    """One call of ``generate`` and how far it has come; sequence i · G + j is member j of prompt i's group."""

    prompts: Sequence[Sequence[int]]
    group_size: int
    sampling: Sampling
    admitted: int = 0  # sequences, in order
    open_group: tuple[int, Prefilled] | None = None  # a prompt some of whose members still wait for a slot
    start: float = field(default_factory=time.perf_counter)
    reported: float = 0.0

    @property
    def sequences(self) -> int:
        return len(self.prompts) * self.group_size

    @property
    def waiting(self) -> int:
        return self.sequences - self.admitted

    @cached_property
    def columns(self) -> int:
        """What the longest sequence can need; an ended row is counted on beyond its end until the host looks."""
        return max(len(p) for p in self.prompts) + self.sampling.max_completion_tokens


class LeanEngine:
    """See :class:`rlvr_pl.rollout.engine.RolloutEngine`.

    It keeps the cache and whatever else a captured graph reads from one call to the next, and makes them anew where a
    call needs more, or the policy's tensors have moved.

    Args:
        policy: one that :func:`rlvr_pl.rollout.weights.why_not_covered` has nothing against.
        stop_ids: every token id that ends a completion.
        pad_id: any id; pads are told by the mask, never by their id.
        slots: sequences in flight at a time, at most.
    """

    weights: DecoderWeights
    decoder: Decoder
    cache: KVCache
    output: Output
    rows: Rows
    step: Step

    def __init__(self, policy: PreTrainedModel, stop_ids: Sequence[int], pad_id: int, slots: int = 256) -> None:
        self.policy = policy
        self.stop_ids = tuple(stop_ids)
        self.pad_id = pad_id
        self.slots = slots
        self.on_progress: Callable[[Progress], None] | None = None
        self.made = (0, 0, 0)  # slots and columns of the cache, cells of the output

    @torch.inference_mode(False)  # what is made in that mode, an evaluation's, could not be written to in training
    @torch.no_grad()
    def generate(
        self, prompts: Sequence[Sequence[int]], group_size: int, sampling: Sampling, noise: Tensor | None
    ) -> Rollout:
        """Sample ``group_size`` completions of each prompt; see the interface."""
        call = _Call(prompts, group_size, sampling)
        expected = (call.sequences, sampling.max_completion_tokens)
        if sampling.temperature > 0 and (noise is None or noise.shape != expected):
            given = "none" if noise is None else f"{tuple(noise.shape)}"
            raise ValueError(f"sampling needs noise of shape {expected}; there is {given}")
        dtype = self._compute_dtype()
        with torch.autocast(self.policy.device.type, enabled=False):  # the decoder says itself what is rounded where
            self._prepare(call, dtype)
            self._complete(call, noise)
        tokens, mask, logprobs = self.output.read(*expected)
        is_stop = torch.isin(tokens, self._tensor(self.stop_ids)) & mask
        return Rollout(
            prompt_ids=[prompt for prompt in prompts for _ in range(group_size)],
            completion_ids=torch.where(mask, tokens, self.pad_id),
            mask=mask,
            sampling_logprobs=masked(logprobs, mask),
            truncated=~is_stop.any(dim=1),
        )

    @torch.inference_mode()  # a call of an operator costs less in it, and a small policy's step is mostly calls
    def _complete(self, call: _Call, noise: Tensor | None) -> None:
        """Admit, prefill, decode, sample and retire until every sequence has ended."""
        rows, budget, temperature = self.rows, call.sampling.max_completion_tokens, call.sampling.temperature
        self.output.reset(noise)
        while call.waiting or rows.count:
            for part in self._admissible(call):
                prefilled = self._prefill(call, list(part))
                sequences = [s for of_prompt in part.values() for s in of_prompt]
                admitted = rows.admit(sequences, [len(call.prompts[s // call.group_size]) for s in sequences], budget)
                members = self._tensor([i for i, of_prompt in enumerate(part.values()) for _ in of_prompt])
                self.cache.write_prompts(admitted.start, prefilled.keys, prefilled.values, members)
                rows.choose(admitted, prefilled.logits[members], temperature)
            for _ in range(_STEPS_UNSEEN if self.graphed else 1):
                self.step(rows.count, min(rows.columns, call.columns), temperature)
                rows.advance()
            sources, targets = rows.retire()
            self.cache.move(sources, targets, min(rows.columns, call.columns))
            self._report(call)

    def _admissible(self, call: _Call) -> Iterator[dict[int, list[int]]]:
        """The waiting sequences that get the free slots, by their prompt, in parts that are read together.

        A few free slots wait for more to come, since reading one prompt takes nearly as long as reading several.
        """
        free = min(self.cache.slots - self.rows.count, call.waiting)
        if self.rows.count and free < min(call.waiting, -(-self.cache.slots // _REFILLS)):
            return
        by_prompt: dict[int, list[int]] = {}
        for s in range(call.admitted, call.admitted + free):
            by_prompt.setdefault(s // call.group_size, []).append(s)
        call.admitted += free
        if call.open_group is not None and call.open_group[0] in by_prompt:
            yield {call.open_group[0]: by_prompt.pop(call.open_group[0])}
        prompts = list(by_prompt)
        for part in plan_micro_batches([len(call.prompts[p]) for p in prompts], _PREFILL_TOKENS):
            yield {prompts[i]: by_prompt[prompts[i]] for i in part}

    def _prefill(self, call: _Call, prompts: list[int]) -> Prefilled:
        """Read prompts, each once: of a group that waits for further slots, what was read is kept."""
        if call.open_group is not None and prompts == [call.open_group[0]]:
            return call.open_group[1]
        ids = [self._tensor(call.prompts[p]) for p in prompts]
        lengths = self._tensor([len(i) for i in ids])
        prefilled = self.decoder.prefill(pad_sequence(ids, batch_first=True), lengths)
        last, rest = divmod(call.admitted, call.group_size)
        if rest and last in prompts:
            call.open_group = (last, prefilled[prompts.index(last)])
        return prefilled

    def _prepare(self, call: _Call, dtype: torch.dtype) -> None:
        """Bring the weights up to date, and make anew what the last call made if it does not serve this one."""
        limit = self.policy.config.max_position_embeddings
        if call.columns > limit:
            raise ValueError(
                f"the longest prompt and its completion need {call.columns} positions; the policy has {limit}"
            )
        needed = (
            min(self.slots, call.sequences),
            -(-call.columns // _COLUMN_BLOCK) * _COLUMN_BLOCK,
            call.sequences * call.sampling.max_completion_tokens,
        )
        large_enough = all(n <= m for n, m in zip(needed, self.made, strict=True))
        if not large_enough or self.weights.dtype != dtype or self.weights.addresses != addresses(self.policy):
            self._make(dtype, *(max(n, m) for n, m in zip(needed, self.made, strict=True)))
        self.weights.refresh()
        self.rows.clear()
        if isinstance(self.step, GraphedStep):
            self.step.warm_up(needed[0], call.columns, call.sampling.temperature)

    def _make(self, dtype: torch.dtype, slots: int, columns: int, cells: int) -> None:
        self.made = (0, 0, 0)  # until all is made: this may be interrupted, or run out of memory
        for name in ("step", "rows", "output", "cache", "decoder", "weights"):
            self.__dict__.pop(name, None)  # the old memory is free before the new is taken
        device = self.policy.device
        self.weights = DecoderWeights(self.policy, dtype)
        self.decoder = Decoder(self.policy, self.weights, columns)
        self.cache = self.decoder.make_cache(slots)
        self.output = Output(cells, device)
        self.rows = Rows(slots, self._tensor(self.stop_ids), self.output)
        self.step = self._decode
        if self.graphed:
            self.step = GraphedStep(self._decode, slots, columns, bounded=not reads_by_length(self.cache))
        self.made = (slots, columns, cells)

    def _decode(self, count: int, columns: int, temperature: float) -> None:
        """One token more for each of the first rows: decode, sample."""
        live = slice(0, count)
        even = not self.graphed and self.rows.even  # a captured step serves rows of any lengths
        logits = self.decoder.step(self.rows.token[live], self.rows.position[live], self.cache, columns, even)
        self.rows.choose(live, logits, temperature)

    @property
    def graphed(self) -> bool:
        """Whether decode steps are captured and replayed, and the host looks at their results every few steps only."""
        return self.policy.device.type == "cuda"

    def _compute_dtype(self) -> torch.dtype:
        device = self.policy.device.type
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self.policy.dtype

    def _tensor(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.policy.device)

    def _report(self, call: _Call) -> None:
        seconds = time.perf_counter() - call.start
        at_the_end = not call.waiting and not self.rows.count
        if self.on_progress is None or (seconds - call.reported < _SECONDS_BETWEEN_REPORTS and not at_the_end):
            return
        call.reported = seconds
        ended = call.admitted - self.rows.count
        self.on_progress(Progress(ended, call.sequences, self.output.written(), seconds))
