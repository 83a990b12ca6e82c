"""What the tests of the rollout engines share: prompts, and comparisons of rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlvr_pl.rollout import GenerateEngine, LeanEngine, RolloutEngine, Sampling
from rlvr_pl.scoring import PaddedRows, Sequences
from rlvr_pl.types import Rollout

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14], [15, 16]]
STOP_IDS = (3, 17, 29)


def uniforms(rows: int, tokens: int, seed: int = 0) -> Tensor:
    return torch.rand(rows, tokens, generator=torch.Generator().manual_seed(seed))


def sample_with(
    engine: RolloutEngine | type[GenerateEngine] | type[LeanEngine],
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]] = PROMPTS,
    group_size: int = 2,
    tokens: int = 8,
    temperature: float = 1.0,
    noise: Tensor | None = None,
    stop_ids: Sequence[int] = STOP_IDS,
    pad_id: int = 0,
    **engine_settings: Any,
) -> Rollout:
    """A rollout by an engine, or by a new one of a class."""
    if noise is None and temperature > 0:
        noise = uniforms(len(prompts) * group_size, tokens)
    if isinstance(engine, type):
        engine = engine(model, stop_ids, pad_id, **engine_settings)
    return engine.generate(prompts, group_size, Sampling(tokens, temperature), noise)


def sample(model: PreTrainedModel, slots: int = 64, **call: Any) -> Rollout:
    """A rollout by a new engine."""
    return sample_with(LeanEngine, model, slots=slots, **call)


def sample_again(engine: LeanEngine, **call: Any) -> Rollout:
    """A rollout by an engine that may have made some before."""
    return sample_with(engine, engine.policy, **call)


def completions(rollout: Rollout) -> list[list[int]]:
    """The completion of each row, without its pads."""
    return [ids[mask].tolist() for ids, mask in zip(rollout.completion_ids, rollout.mask, strict=True)]


def assert_same(actual: Rollout, expected: Rollout) -> None:
    """The same tokens, and log-probabilities up to rounding."""
    assert completions(actual) == completions(expected)
    assert actual.truncated.tolist() == expected.truncated.tolist()
    torch.testing.assert_close(
        actual.sampling_logprobs[actual.mask], expected.sampling_logprobs[expected.mask], rtol=1e-5, atol=1e-5
    )


def huggingface_greedy(
    model: PreTrainedModel, prompt: Sequence[int], tokens: int, stop_ids: Sequence[int] | None = None
) -> list[int]:
    """What ``generate()`` itself gives for one prompt alone, without any padding."""
    output = model.generate(  # type: ignore[operator]
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False,
        max_new_tokens=tokens,
        eos_token_id=None if stop_ids is None else list(stop_ids),
        pad_token_id=0,
    )
    return output[0, len(prompt) :].tolist()


def sequences_of(rollout: Rollout) -> Sequences:
    """What the update scores of a rollout, all of it at once."""
    members = rollout.by_row(range(len(rollout.prompt_ids)))
    return PaddedRows().lay_out(rollout.prompt_ids, members, rollout.completion_ids, rollout.lengths.tolist())
