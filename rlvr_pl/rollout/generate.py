"""A rollout engine over Hugging Face's ``generate()``: right for every causal language model, and not fast."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from rlvr_pl.rollout.engine import Progress, RolloutEngine
from rlvr_pl.rollout.sampling import Sampling, choose_tokens
from rlvr_pl.types import Rollout


class _ChosenToken(LogitsProcessor):
    """Chooses the token itself and leaves ``generate()``, in greedy mode, no other: so the noise is ours."""

    def __init__(self, temperature: float, noise: Tensor | None, told: Callable[[list[int]], None] | None) -> None:
        self.temperature = temperature
        self.noise = noise
        self.logprobs: list[Tensor] = []  # one (N,) a step
        self.told = told
        self.tokens: list[int] = []  # of a lone sequence that somebody is told of

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        uniforms = None if self.noise is None else self.noise[:, len(self.logprobs)]
        tokens, logprobs = choose_tokens(scores.float(), self.temperature, uniforms)
        self.logprobs.append(logprobs)
        if self.told is not None:
            self.tokens += tokens.tolist()
            self.told([*self.tokens])
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens.unsqueeze(1), 0.0)


class GenerateEngine(RolloutEngine):
    """Generates by ``generate()``; its interface is :class:`rlvr_pl.rollout.engine.RolloutEngine`."""

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[Sequence[int]], group_size: int, sampling: Sampling, noise: Tensor | None
    ) -> Rollout:
        """Sample ``group_size`` completions of each prompt; see the interface."""
        torch.clear_autocast_cache()  # casts of the weights made before an optimizer step are stale
        start, sampled = time.perf_counter(), 0
        repeated = [prompt for prompt in prompts for _ in range(group_size)]
        rows: list[tuple[Tensor, Tensor, Tensor]] = []  # tokens, mask, log-probabilities; as long as its part's longest
        with self._generating(sampling):
            for first in range(0, len(repeated), self.slots):
                part = slice(first, first + self.slots)
                uniforms = None if noise is None else noise[part].to(self.policy.device)
                chosen = _ChosenToken(sampling.temperature, uniforms, self.on_tokens if len(repeated) == 1 else None)
                tokens = self._sample(repeated[part], chosen)
                is_stop = torch.isin(tokens, torch.tensor(self.stop_ids, device=tokens.device))
                mask = is_stop.cumsum(dim=1) == is_stop  # up to the first stop token, and on it
                rows += zip(tokens, mask, torch.stack(chosen.logprobs, dim=1), strict=True)
                sampled += int(mask.sum())
                if self.on_progress is not None:
                    self.on_progress(Progress(len(rows), len(repeated), sampled, time.perf_counter() - start))
        columns = (pad_sequence(list(column), batch_first=True) for column in zip(*rows, strict=True))
        return self._rollout(prompts, group_size, *columns)

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
    def _generating(self, sampling: Sampling) -> Iterator[None]:
        """The policy in eval mode, every setting ours, its weights cast once; all as it was before afterwards.

        ``generate()`` fills what it is not given from the checkpoint's generation config, whose top-p, top-k and
        repetition penalty would sample from another policy than is scored. Lightning's autocast keeps no casts, so that
        every token would cast all weights anew.
        """
        policy, device = self.policy, self.policy.device.type
        training, checkpoint_settings = policy.training, policy.generation_config
        enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
        policy.eval()
        policy.generation_config = GenerationConfig(
            max_new_tokens=sampling.max_completion_tokens,
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            eos_token_id=list(self.stop_ids),
            pad_token_id=self.pad_id,
            use_cache=True,
        )
        try:
            with torch.autocast(device, dtype, enabled=enabled, cache_enabled=True):
                yield
        finally:
            policy.train(training)
            policy.generation_config = checkpoint_settings
