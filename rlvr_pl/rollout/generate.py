"""A rollout engine over Hugging Face's ``generate()``: right for every causal language model, and not fast."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from rlvr_pl.rollout.engine import Progress
from rlvr_pl.rollout.sampling import Sampling, choose_tokens
from rlvr_pl.types import Rollout, masked


class _ChosenToken(LogitsProcessor):
    """Chooses the token itself and leaves ``generate()``, in greedy mode, no other: so the noise is ours."""

    def __init__(self, temperature: float, noise: Tensor | None) -> None:
        self.temperature = temperature
        self.noise = noise
        self.logprobs: list[Tensor] = []  # one (N,) a step

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        uniforms = None if self.noise is None else self.noise[:, len(self.logprobs)]
        tokens, logprobs = choose_tokens(scores.float(), self.temperature, uniforms)
        self.logprobs.append(logprobs)
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens.unsqueeze(1), 0.0)


class GenerateEngine:
    """See :class:`rlvr_pl.rollout.engine.RolloutEngine`.

    Args:
        policy: the policy, whose own weights are read.
        stop_ids: every token id that ends a completion.
        pad_id: any id; pads are told by the mask, never by their id.
        slots: sequences at a time, at most.
    """

    def __init__(self, policy: PreTrainedModel, stop_ids: Sequence[int], pad_id: int, slots: int = 256) -> None:
        self.policy = policy
        self.stop_ids = tuple(stop_ids)
        self.pad_id = pad_id
        self.slots = slots
        self.on_progress: Callable[[Progress], None] | None = None

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[Sequence[int]], group_size: int, sampling: Sampling, noise: Tensor | None
    ) -> Rollout:
        """Sample ``group_size`` completions of each prompt; see the interface."""
        torch.clear_autocast_cache()  # casts of the weights made before an optimizer step are stale
        start = time.perf_counter()
        repeated = [prompt for prompt in prompts for _ in range(group_size)]
        tokens, logprobs = [], []  # a (T,) tensor of each sequence, as long as the longest of its part
        sampled = 0
        with self._settings(sampling), _eval_mode(self.policy), _weights_cast_once(self.policy.device.type):
            for first in range(0, len(repeated), self.slots):
                rows = slice(first, first + self.slots)
                chosen = _ChosenToken(
                    sampling.temperature, None if noise is None else noise[rows].to(self.policy.device)
                )
                part = self._sample(repeated[rows], chosen)
                tokens += list(part)
                logprobs += list(torch.stack(chosen.logprobs, dim=1))
                sampled += int(self._mask(part).sum())
                if self.on_progress is not None:
                    seconds = time.perf_counter() - start
                    self.on_progress(Progress(len(tokens), len(repeated), sampled, seconds))
        completion_ids = pad_sequence(tokens, batch_first=True, padding_value=self.pad_id)
        mask = self._mask(completion_ids)
        return Rollout(
            prompt_ids=repeated,
            completion_ids=completion_ids,
            mask=mask,
            sampling_logprobs=masked(pad_sequence(logprobs, batch_first=True), mask),
            truncated=~self._is_stop(completion_ids).any(dim=1),
        )

    def _is_stop(self, ids: Tensor) -> Tensor:
        return torch.isin(ids, torch.tensor(self.stop_ids, device=ids.device))

    def _mask(self, ids: Tensor) -> Tensor:
        """True up to the first stop token of each row, and on it."""
        is_stop = self._is_stop(ids)
        return is_stop.cumsum(dim=1) == is_stop

    def _sample(self, prompts: Sequence[Sequence[int]], chosen: _ChosenToken) -> Tensor:
        """One completion of each prompt, (rows, T); behind a stop token stands anything."""
        width = max(len(prompt) for prompt in prompts)
        padding = [width - len(prompt) for prompt in prompts]
        input_ids = torch.tensor([[self.pad_id] * n + list(p) for n, p in zip(padding, prompts, strict=True)])
        attention_mask = torch.arange(width) >= torch.tensor(padding).unsqueeze(1)
        sequences = self.policy.generate(  # type: ignore[operator]
            input_ids=input_ids.to(self.policy.device),
            attention_mask=attention_mask.long().to(self.policy.device),
            logits_processor=LogitsProcessorList([chosen]),
        )
        return sequences[:, width:]

    @contextmanager
    def _settings(self, sampling: Sampling) -> Iterator[None]:
        """Every setting is ours for the time of a call: ``generate()`` fills what it is not given from the checkpoint's
        generation config, whose top-p, top-k and repetition penalty would sample from another policy than is scored."""
        checkpoint_settings = self.policy.generation_config
        self.policy.generation_config = GenerationConfig(
            max_new_tokens=sampling.max_completion_tokens,
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            eos_token_id=list(self.stop_ids),
            pad_token_id=self.pad_id,
            use_cache=True,
        )
        try:
            yield
        finally:
            self.policy.generation_config = checkpoint_settings


def _weights_cast_once(device_type: str) -> AbstractContextManager[object]:
    """Lightning's autocast keeps no casts, so that every token would cast all weights anew; in here they are kept."""
    if not torch.is_autocast_enabled(device_type):
        return nullcontext()
    return torch.autocast(device_type, dtype=torch.get_autocast_dtype(device_type), cache_enabled=True)


@contextmanager
def _eval_mode(policy: PreTrainedModel) -> Iterator[None]:
    training = policy.training
    policy.eval()
    try:
        yield
    finally:
        policy.train(training)
