"""What every rollout engine does, on tiny random models; and what is special to ``generate()``."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, PreTrainedModel

from rlvr_pl.rollout import GenerateEngine, LeanEngine
from rlvr_pl.scoring import score
from rlvr_pl.types import Rollout
from tests.helpers.engines import (
    PROMPTS,
    STOP_IDS,
    assert_same,
    completions,
    huggingface_greedy,
    sample_with,
    sequences_of,
    uniforms,
)
from tests.helpers.policies import FAMILIES, VOCABULARY, tiny_model

torch.set_num_threads(1)

Sample = Callable[..., Rollout]


@pytest.fixture(params=[LeanEngine, GenerateEngine])
def sample(request: pytest.FixtureRequest) -> Sample:
    """A rollout by a new engine of each kind."""
    return partial(sample_with, request.param)


# Progress


@pytest.mark.parametrize("kind", [LeanEngine, GenerateEngine])
def test_a_lone_completion_is_told_while_it_grows(kind: type[LeanEngine] | type[GenerateEngine]) -> None:
    engine, told = kind(tiny_model(), STOP_IDS, pad_id=0), list[list[int]]()
    engine.on_tokens = told.append
    (whole,) = completions(sample_with(engine, engine.policy, PROMPTS[:1], group_size=1, tokens=8))
    assert len(whole) > 2
    assert told[-1] == whole
    assert all(earlier == later[: len(earlier)] for earlier, later in pairwise(told))
    assert {len(tokens) for tokens in told} >= {*range(2, len(whole) + 1)}
    told.clear()
    sample_with(engine, engine.policy, PROMPTS[:1], group_size=2, tokens=8)
    assert told == []


# Greedy


@dataclass(frozen=True)
class GreedyCase:
    model: PreTrainedModel
    prompts: list[list[int]]
    stop_ids: list[int]
    pad_id: int
    tokens: int


def greedy_case(number: int) -> GreedyCase:
    """Random prompts of unequal length, and stop ids that the model does produce."""
    generator = random.Random(number)
    model = tiny_model(FAMILIES[number % 3], tied=number % 2 == 1, seed=number)
    prompts = [
        [generator.randrange(VOCABULARY) for _ in range(generator.randint(1, 9))]
        for _ in range(generator.randint(1, 4))
    ]
    tokens = generator.randint(2, 9)
    seen = sorted({token for p in prompts for token in huggingface_greedy(model, p, tokens)})
    stop_ids = [*generator.sample(seen, min(len(seen), generator.randint(1, 3))), VOCABULARY - 1]
    return GreedyCase(model, prompts, stop_ids, generator.choice([*stop_ids, 0, 1]), tokens)


@pytest.mark.parametrize("number", range(40))
def test_greedy_tokens_are_those_of_generate(sample: Sample, number: int) -> None:
    case = greedy_case(number)
    expected = [huggingface_greedy(case.model, p, case.tokens, case.stop_ids) for p in case.prompts]
    rollout = sample(
        case.model, case.prompts, 1, case.tokens, temperature=0.0, stop_ids=case.stop_ids, pad_id=case.pad_id
    )
    assert completions(rollout) == expected
    assert rollout.lengths.tolist() == [len(e) for e in expected]
    assert rollout.truncated.tolist() == [e[-1] not in case.stop_ids for e in expected]


def test_the_greedy_cases_hold_both_stopped_and_truncated_completions() -> None:
    endings = []
    for number in range(0, 40, 5):
        case = greedy_case(number)
        for prompt in case.prompts:
            completion = huggingface_greedy(case.model, prompt, case.tokens, case.stop_ids)
            endings.append(completion[-1] in case.stop_ids)
    assert len(endings) // 4 < sum(endings) < len(endings)


# Where a completion ends


@pytest.mark.parametrize("pad_id", [0, 3, 29], ids=["pad", "pad is the first stop", "pad is the last stop"])
def test_every_stop_id_ends_a_completion_and_is_its_last_token(sample: Sample, pad_id: int) -> None:
    stop_ids = (3, 17, 29)
    rollout = sample(tiny_model(), group_size=16, tokens=24, stop_ids=stop_ids, pad_id=pad_id)
    last = set()
    for row, tokens in enumerate(completions(rollout)):
        length = len(tokens)
        assert rollout.mask[row].tolist() == [True] * length + [False] * (rollout.mask.shape[1] - length)
        assert not set(tokens[:-1]) & set(stop_ids)
        assert rollout.truncated[row].item() == (tokens[-1] not in stop_ids)
        if rollout.truncated[row]:
            assert length == 24
        last.add(tokens[-1])
    assert last >= set(stop_ids)
    assert 0 < int(rollout.truncated.sum()) < len(rollout.truncated)


def test_a_stop_token_at_the_end_of_the_budget_is_no_truncation(sample: Sample) -> None:
    model = tiny_model()
    first = sample(model, group_size=1, tokens=6, stop_ids=[VOCABULARY - 1])
    assert first.truncated.tolist() == [True] * 4
    stop = int(first.completion_ids[2, 5])
    assert stop not in first.completion_ids[2, :5].tolist()
    again = sample(model, group_size=1, tokens=6, stop_ids=[stop])
    assert completions(again)[2] == completions(first)[2]
    assert not again.truncated[2]


def test_stop_and_pad_ids_inside_a_prompt_end_nothing(sample: Sample) -> None:
    """A chat prompt holds the stop token of every earlier turn."""
    prompts = [[3, 0, 17, 5], [0], [3, 3, 3]]
    model = tiny_model()
    rollout = sample(model, prompts, 1, temperature=0.0, stop_ids=[3, 17], pad_id=0)
    assert completions(rollout) == [huggingface_greedy(model, p, 8, [3, 17]) for p in prompts]
    assert max(rollout.lengths.tolist()) > 1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_budget_of_one_token(sample: Sample, temperature: float) -> None:
    model = tiny_model()
    free = sample(model, tokens=1, temperature=temperature, stop_ids=[VOCABULARY - 1])
    assert free.completion_ids.shape == (8, 1)
    assert free.mask.all()
    assert free.truncated.tolist() == [True] * 8
    stop = int(free.completion_ids[0, 0])
    stopped = sample(model, tokens=1, temperature=temperature, stop_ids=[stop], pad_id=stop)
    assert stopped.completion_ids.tolist() == free.completion_ids.tolist()
    assert stopped.mask.all()
    assert stopped.truncated.tolist() == [ids != [stop] for ids in free.completion_ids.tolist()]


# Layout


def test_row_i_times_g_plus_j_is_member_j_of_prompt_i(sample: Sample) -> None:
    model, noise = tiny_model(), uniforms(12, 8)
    rollout = sample(model, group_size=3, noise=noise)
    assert [list(p) for p in rollout.by_row(rollout.prompt_ids)] == [p for p in PROMPTS for _ in range(3)]
    shape = rollout.completion_ids.shape
    assert shape[0] == 12
    assert rollout.mask.shape == rollout.sampling_logprobs.shape == shape
    assert rollout.truncated.shape == (12,)
    assert (rollout.completion_ids.dtype, rollout.mask.dtype) == (torch.int64, torch.bool)
    assert (rollout.sampling_logprobs.dtype, rollout.truncated.dtype) == (torch.float32, torch.bool)
    for i, prompt in enumerate(PROMPTS):
        for j in range(3):
            alone = sample(model, [prompt], 1, noise=noise[3 * i + j : 3 * i + j + 1])
            assert completions(alone) == [completions(rollout)[3 * i + j]]


# The noise


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_tokens_depend_only_on_the_prompt_and_the_noise(sample: Sample, family: str, temperature: float) -> None:
    model, noise = tiny_model(family), uniforms(8, 10, seed=1)
    together = sample(model, group_size=2, tokens=10, temperature=temperature, noise=noise)
    expected = completions(together)
    assert len({tuple(e) for e in expected}) == 8

    alone = [sample(model, [prompt], 2, 10, temperature, noise[2 * i : 2 * i + 2]) for i, prompt in enumerate(PROMPTS)]
    assert [c for rollout in alone for c in completions(rollout)] == expected

    backwards = sample(model, PROMPTS[::-1], 2, 10, temperature, noise.view(4, 2, 10).flip(0).reshape(8, 10))
    assert [c for i in (3, 2, 1, 0) for c in completions(backwards)[2 * i : 2 * i + 2]] == expected

    groups_of_one = sample(model, [p for p in PROMPTS for _ in range(2)], 1, 10, temperature, noise)
    assert_same(groups_of_one, together)

    larger = torch.stack([noise.view(4, 2, 10)[:, 0], uniforms(4, 10, seed=9), noise.view(4, 2, 10)[:, 1]], dim=1)
    groups_of_three = completions(sample(model, PROMPTS, 3, 10, temperature, larger.reshape(12, 10)))
    assert [groups_of_three[3 * i + j] for i in range(4) for j in (0, 2)] == expected


def test_a_smaller_budget_cuts_the_same_completion_short(sample: Sample) -> None:
    model, noise = tiny_model(), uniforms(8, 12)
    long = completions(sample(model, tokens=12, noise=noise))
    short = completions(sample(model, tokens=5, noise=noise[:, :5]))
    assert short == [tokens[:5] for tokens in long]


def test_the_global_random_state_is_neither_read_nor_changed(sample: Sample) -> None:
    model = tiny_model()
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first = sample(model)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(2)
    assert_same(sample(model), first)


# The sampled distribution is the scored one


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_sampling_logprobs_are_the_scored_ones(sample: Sample, family: str, tied: bool, temperature: float) -> None:
    model = tiny_model(family, tied, seed=3)
    rollout = sample(model, group_size=4, tokens=12, temperature=temperature, stop_ids=range(0, VOCABULARY, 5))
    with torch.no_grad():
        scores = score(model, sequences_of(rollout), temperature)
    assert not rollout.mask.all()
    torch.testing.assert_close(rollout.sampling_logprobs, scores.logprobs, rtol=0, atol=1e-5)
    assert rollout.sampling_logprobs[~rollout.mask].tolist() == [0.0] * int((~rollout.mask).sum())


# The checkpoint's generation config

LEAKS: dict[str, dict[str, Any]] = {
    "top_p": {"do_sample": True, "top_p": 0.1},
    "top_k": {"do_sample": True, "top_k": 1},
    "temperature": {"do_sample": True, "temperature": 0.1},
    "min_p": {"do_sample": True, "min_p": 0.9},
    "repetition_penalty": {"repetition_penalty": 1.3},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 1},
    "min_length": {"min_length": 100},
    "min_new_tokens": {"min_new_tokens": 8},
    "suppress_tokens": {"suppress_tokens": list(range(40))},
    "begin_suppress_tokens": {"begin_suppress_tokens": list(range(40))},
    "bad_words_ids": {"bad_words_ids": [[token] for token in range(40)]},
    "forced_eos_token_id": {"forced_eos_token_id": 17},
    "max_length": {"max_length": 5},
    "max_new_tokens": {"max_new_tokens": 2},
    "eos_token_id": {"eos_token_id": list(range(32, 60)), "pad_token_id": 50},
    "num_beams": {"num_beams": 3},
    "num_return_sequences": {"do_sample": True, "num_return_sequences": 2},
    "return_dict": {"return_dict_in_generate": True, "output_scores": True},
}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("setting", LEAKS)
def test_the_checkpoints_generation_config_does_not_leak_and_is_restored(setting: str, temperature: float) -> None:
    model = tiny_model()
    expected = sample_with(GenerateEngine, model, temperature=temperature)
    model.generation_config = GenerationConfig(**LEAKS[setting])
    config, before = model.generation_config, model.generation_config.to_dict()
    assert_same(sample_with(GenerateEngine, model, temperature=temperature), expected)
    assert model.generation_config is config
    assert config.to_dict() == before


def test_the_leaks_would_show() -> None:
    """Under its own config, ``generate()`` gives other tokens: the test above can fail."""
    model = tiny_model()
    prompt = torch.tensor([PROMPTS[0]])
    plain = huggingface_greedy(model, PROMPTS[0], 8)
    for setting in ("repetition_penalty", "no_repeat_ngram_size", "suppress_tokens", "max_length", "max_new_tokens"):
        model.generation_config = GenerationConfig(**{"max_new_tokens": 8} | LEAKS[setting])
        if setting == "max_length":
            model.generation_config.max_new_tokens = None
        output = model.generate(prompt, attention_mask=torch.ones_like(prompt), pad_token_id=0)  # type: ignore[operator]
        assert output[0, 3:].tolist() != plain, setting


# What a call leaves behind


class Broken(Exception):
    pass


def breaking(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """The model's forward pass raises at its third call."""
    forward, calls = model.forward, iter(range(10))

    def broken(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == 2:
            raise Broken
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", broken)
    return lambda: sample_with(GenerateEngine, model, tokens=5)


@pytest.mark.parametrize("training", [True, False])
def test_an_exception_leaves_mode_and_config_as_they_were(training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model().train(training)
    model.generation_config = config = GenerationConfig(top_k=3, do_sample=True)
    call = breaking(model, monkeypatch)
    with pytest.raises(Broken):
        call()
    assert model.generation_config is config
    assert {module.training for module in model.modules()} == {training}


@pytest.mark.parametrize("training", [True, False])
def test_it_samples_in_eval_mode_and_restores_the_mode(sample: Sample, training: bool) -> None:
    plain = sample(tiny_model())
    model = tiny_model(attention_dropout=0.5).train(training)
    assert_same(sample(model), plain)
    assert {module.training for module in model.modules()} == {training}


def test_no_gradient_and_none_lost_afterwards(sample: Sample) -> None:
    model = tiny_model()
    rollout = sample(model)
    assert not rollout.sampling_logprobs.requires_grad
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.is_grad_enabled()
    assert not rollout.completion_ids.is_inference()
    scores = score(model, sequences_of(rollout), 1.0)
    scores.logprobs.sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


def test_the_weights_of_the_moment_are_read_under_an_outer_autocast_too(sample: Sample) -> None:
    """Autocast keeps its casts of the weights as long as the outermost context lasts; a step makes them stale."""
    model = tiny_model()

    def logprobs() -> list[float]:
        return sample(model, tokens=1, temperature=0.0).sampling_logprobs.flatten().tolist()

    with torch.autocast("cpu", torch.bfloat16):
        before = logprobs()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "proj" in name:
                    parameter.mul_(-1.5)
        after = logprobs()
    with torch.autocast("cpu", torch.bfloat16):
        fresh = logprobs()
    assert before != fresh
    assert after == fresh
