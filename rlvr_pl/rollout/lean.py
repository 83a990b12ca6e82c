"""The rollout engine: continuous batching over the policy's own weights."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rlvr_pl.batching import batches_by_tokens
from rlvr_pl.rollout.cache import KVCache, Prefilled, reads_by_length
from rlvr_pl.rollout.decoder import Decoder
from rlvr_pl.rollout.engine import Progress, RolloutEngine
from rlvr_pl.rollout.graphs import GraphedStep, Step
from rlvr_pl.rollout.group_cache import GroupCache
from rlvr_pl.rollout.rows import Rows
from rlvr_pl.rollout.sampling import Sampling
from rlvr_pl.rollout.weights import DecoderWeights, addresses, why_not_covered
from rlvr_pl.sharding.weights import is_sharded
from rlvr_pl.types import Rollout

PREFILL_TOKENS = 2048  # prompt tokens that are read together: more would not fit a CPU's cache, fewer idle a GPU
_COLUMN_BLOCK = 128  # the cache has whole blocks of columns, so that a somewhat longer prompt still fits
_REFILL_SHARE = 8  # a refill waits until one slot in this many is free
_STEPS_UNSEEN = 8  # decode steps on a GPU before the host looks which rows have ended, for which it has to wait
_SECONDS_BETWEEN_REPORTS = 0.5


class _Call:
    """One call of ``generate`` and how far it has come; sequence i · G + j is member j of prompt i's group."""

    open_prompt: Prefilled  # of the group whose first members have been admitted, the others not

    def __init__(self, prompts: Sequence[Sequence[int]], group_size: int, sampling: Sampling) -> None:
        if not prompts or not all(prompts) or group_size < 1:
            raise ValueError("a rollout needs at least one prompt, a token in each, and a group size of at least 1")
        self.prompts, self.group_size = prompts, group_size
        self.budget, self.temperature = sampling.max_completion_tokens, sampling.temperature
        self.sequences = len(prompts) * group_size
        self.columns = max(len(p) for p in prompts) + self.budget  # the longest sequence's
        self.admitted = 0  # sequences, in order
        self.start, self.reported = time.perf_counter(), 0.0

    @property
    def waiting(self) -> int:
        return self.sequences - self.admitted


class LeanEngine(RolloutEngine):
    """Generates by continuous batching: a completion that ends gives its slot to the next one that waits.

    It serves the policies for which ``why_not_covered`` gives no reason; its interface is
    :class:`rlvr_pl.rollout.engine.RolloutEngine`. From one call to the next it keeps the cache and whatever else a
    captured graph reads, and makes them anew where a call needs more, or the policy's tensors have moved.
    """

    made = (0, 0, 0)  # slots and columns of the cache, places of the output
    weights: DecoderWeights
    weights_at: list[int]
    decoder: Decoder
    rows: Rows
    step: Step

    @torch.inference_mode(False)  # what is made in that mode, an evaluation's, could not be written to in training
    @torch.no_grad()
    def generate(
        self, prompts: Sequence[Sequence[int]], group_size: int, sampling: Sampling, noise: Tensor | None
    ) -> Rollout:
        """Sample ``group_size`` completions of each prompt; see the interface."""
        call = _Call(prompts, group_size, sampling)
        expected = (call.sequences, call.budget)
        given = None if noise is None else tuple(noise.shape)
        if call.temperature > 0 and given != expected:
            raise ValueError(f"sampling needs noise of shape {expected}; got {given}")
        dtype = self._dtype()
        with torch.autocast(self.policy.device.type, enabled=False):  # the decoder says itself what is rounded where
            self._prepare(call, dtype)
            made, self.made = self.made, (0, 0, 0)  # no call uses what one left behind that failed, or was interrupted
            self.rows.reset(noise)
            if isinstance(self.step, GraphedStep):
                self.step.warm_up(min(self.slots, call.sequences), call.columns, call.temperature)
            self._complete(call)
        rollout = self._rollout(prompts, group_size, *self.rows.read(*expected))
        self.made = made
        return rollout

    @torch.inference_mode(False)
    @torch.no_grad()
    def gather(self) -> None:
        """Gather a sharded policy's weights, and keep them until they are released; see the interface."""
        if not is_sharded(self.policy):
            return
        dtype = self._dtype()
        if "weights" not in vars(self) or self.weights.dtype != dtype or self.weights_at != addresses(self.policy):
            self.release()
            self.weights, self.weights_at = DecoderWeights(self.policy, dtype), addresses(self.policy)
        with torch.autocast(self.policy.device.type, enabled=False):
            self.weights.refresh()

    def _dtype(self) -> torch.dtype:
        """What linear layers are computed in."""
        device = self.policy.device.type
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self.policy.dtype

    @torch.inference_mode()  # a call of an operator costs less in it, and a small policy's step is mostly calls
    def _complete(self, call: _Call) -> None:
        """Prefill, admit, decode, sample and retire until every sequence has ended."""
        rows = self.rows
        while call.waiting or rows.count:
            for groups, prompts in self._prefill(call):
                admitted, logits = rows.admit(groups, prompts, call.budget)
                rows.sample(admitted, logits, call.temperature)
            for _ in range(_STEPS_UNSEEN if self.graphed else 1):
                # What ends unseen stays where it is, so that no step needs more columns than the longest sequence.
                self.step(rows.count, min(rows.columns, call.columns), call.temperature)
                rows.columns += 1
            rows.retire()
            self._report(call)

    def _prefill(self, call: _Call) -> Iterator[tuple[list[list[int]], Prefilled]]:
        """Give the free slots to the next waiting sequences and read their prompts: in parts, and each prompt once.

        A few free slots wait for more to come, since reading one prompt takes nearly as long as reading several.

        Yields:
            Sequences by their prompt, and the prompts.
        """
        free = min(self.rows.cache.slots - self.rows.count, call.waiting)
        if self.rows.count and free < min(call.waiting, -(-self.rows.cache.slots // _REFILL_SHARE)):
            return
        first, call.admitted = call.admitted, call.admitted + free
        groups = [list(group) for _, group in groupby(range(first, call.admitted), lambda s: s // call.group_size)]
        if first % call.group_size:
            yield [groups.pop(0)], call.open_prompt
        prompts = [call.prompts[group[0] // call.group_size] for group in groups]
        for part in batches_by_tokens([len(prompt) for prompt in prompts], PREFILL_TOKENS):
            ids = [torch.tensor(prompts[i]) for i in part]
            tokens, lengths = pad_sequence(ids, batch_first=True), torch.tensor([len(i) for i in ids])
            read = self.decoder.prefill(tokens.to(self.policy.device), lengths.to(self.policy.device))
            if call.admitted % call.group_size and len(groups) - 1 in part:
                call.open_prompt = read[part.index(len(groups) - 1)]
            yield [groups[i] for i in part], read

    def _prepare(self, call: _Call, dtype: torch.dtype) -> None:
        """Bring the weights up to date, and make anew what the last call made if it does not serve this one."""
        if reason := why_not_covered(self.policy):
            raise ValueError(
                f"the policy was changed after its first rollout, and is no longer supported by the decoder: {reason}"
            )
        if is_sharded(self.policy) and "weights" not in vars(self):
            raise ValueError("a sharded policy's weights must be gathered before it generates")
        limit = self.policy.config.max_position_embeddings
        if call.columns > limit:
            raise ValueError(f"the longest sequence can need {call.columns} positions; the policy has {limit}")
        needed = (min(self.slots, call.sequences), whole_blocks(call.columns), call.sequences * call.budget)
        larger = tuple(map(max, needed, self.made))
        # Alone, a member gains nothing by sharing; a captured step needs tensors that stay where they are.
        kind = KVCache if self.graphed or call.group_size == 1 else GroupCache
        serves = larger == self.made and type(self.rows.cache) is kind and self.weights.dtype == dtype
        if not serves or self.weights_at != addresses(self.policy):
            self._make(dtype, kind, *larger)
        if not is_sharded(self.policy):
            self.weights.refresh()

    def _make(self, dtype: torch.dtype, kind: type[KVCache], slots: int, columns: int, places: int) -> None:
        gathered = self.weights if is_sharded(self.policy) else None  # by all ranks at once: not here
        self.release()  # the old memory is free before the new is taken, and this may be interrupted, or run out of it
        device = self.policy.device
        stop_ids = torch.tensor(self.stop_ids, dtype=torch.int64, device=device)
        self.weights, self.weights_at = gathered or DecoderWeights(self.policy, dtype), addresses(self.policy)
        self.decoder = Decoder(self.policy, self.weights, columns)
        self.rows = Rows(self.decoder.make_cache(slots, kind), places, stop_ids)
        # No method: an engine in a cycle of references would keep its memory until that is found.
        self.step = partial(_step, self.decoder, self.rows, self.graphed)
        if self.graphed:
            self.step = GraphedStep(self.step, slots, columns, not reads_by_length(self.rows.cache), device)
        self.made = (slots, columns, places)

    def release(self) -> None:
        """Free the cache, the weights' copy and the captured steps; the next call makes them anew."""
        self.made = (0, 0, 0)
        for name in ("step", "rows", "decoder", "weights"):
            self.__dict__.pop(name, None)
        if self.graphed:
            torch.cuda.empty_cache()  # the captured steps' pool serves nothing else until it is given back

    @property
    def graphed(self) -> bool:
        """Whether decode steps are captured and replayed, and the host looks at their results every few steps only."""
        return self.policy.device.type == "cuda"

    def _report(self, call: _Call) -> None:
        ended, seconds = call.admitted - self.rows.count, time.perf_counter() - call.start
        if self.on_tokens is not None and call.sequences == 1:
            self.on_tokens(self.rows.first_sequence(call.budget))
        due = ended == call.sequences or seconds - call.reported >= _SECONDS_BETWEEN_REPORTS
        if self.on_progress is not None and due:
            call.reported = seconds
            self.on_progress(Progress(ended, call.sequences, self.rows.written(), seconds))


def whole_blocks(columns: int) -> int:
    """Round a number of columns up to what the cache has of them."""
    return -(-columns // _COLUMN_BLOCK) * _COLUMN_BLOCK


def _step(decoder: Decoder, rows: Rows, masked: bool, count: int, columns: int, temperature: float) -> None:
    """Read the last token of each of the first rows and sample the next.

    Args:
        decoder, rows: what reads, and what is read and written.
        masked: whether rows are masked even where they hold equally many tokens: a captured step serves any.
        count: of rows.
        columns: of the cache, that attention must look at.
        temperature: of sampling.
    """
    token, position = rows.token[:count], rows.position[:count]
    even = not masked and bool((position == columns - 1).all())
    rows.sample(slice(0, count), decoder.step(token, position, rows.cache, columns, even), temperature)
