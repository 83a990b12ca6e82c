"""The lean engine's schedule, what it keeps between calls, and what it samples."""

from __future__ import annotations

import gc
import math
import random
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import count, pairwise
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlvr_pl.policy import score
from rlvr_pl.rollout import GenerateEngine, LeanEngine, Progress, Sampling, graphs, lean
from rlvr_pl.rollout.cache import KVCache
from rlvr_pl.rollout.decoder import Decoder, Prefilled
from rlvr_pl.types import Rollout
from tests.engines import (
    PROMPTS,
    STOP_IDS,
    assert_same,
    completions,
    huggingface_greedy,
    sample_with,
    uniforms,
)
from tests.models import FAMILIES, VOCABULARY, tiny_model

torch.set_num_threads(1)

SLOTS = [1, 2, 3, 7, 64]
LAYOUTS = [(4, 4), (4, 2), (8, 2), (6, 1)]  # heads, kv heads


def sample(model: PreTrainedModel, slots: int = 64, **call: Any) -> Rollout:
    """A rollout by a new engine."""
    return sample_with(LeanEngine, model, slots=slots, **call)


def sample_again(engine: LeanEngine, **call: Any) -> Rollout:
    """A rollout by an engine that may have made some before."""
    return sample_with(engine, engine.policy, **call)


def cut(tokens: Sequence[int], budget: int, stop_ids: Sequence[int]) -> list[int]:
    """The completion up to its first stop token."""
    ends = [t for t, token in enumerate(tokens[:budget]) if token in stop_ids]
    return list(tokens[: ends[0] + 1 if ends else budget])


# The tokens are generate()'s


@pytest.mark.parametrize("number", range(20))
def test_greedy_tokens_are_those_of_generate_in_ten_cases_of_a_policy(number: int) -> None:
    generator = random.Random(number)
    heads, kv_heads = LAYOUTS[number % 4]
    model = tiny_model(
        FAMILIES[number % 3],
        tied=number % 2 == 1,
        seed=number,
        hidden_size=8 * heads,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
    )
    prompts = [[generator.randrange(VOCABULARY) for _ in range(length)] for length in (1, 2, 3, 5, 8, 13)]
    known = [huggingface_greedy(model, prompt, tokens=12) for prompt in prompts]
    for _ in range(10):
        chosen = generator.choices(range(6), k=generator.randint(1, 8))  # some of them more than once
        budget, group_size = generator.randint(1, 12), generator.randint(1, 3)
        stop_ids = generator.sample(sorted({t for c in known for t in c}), generator.randint(1, 5))
        rollout = sample(
            model,
            slots=generator.choice(SLOTS),
            prompts=[prompts[i] for i in chosen],
            group_size=group_size,
            tokens=budget,
            temperature=0.0,
            stop_ids=stop_ids,
            pad_id=generator.choice([*stop_ids, 0]),
        )
        expected = [cut(known[i], budget, stop_ids) for i in chosen for _ in range(group_size)]
        assert completions(rollout) == expected
        assert rollout.truncated.tolist() == [e[-1] not in stop_ids for e in expected]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_a_rollout_is_that_of_the_other_engine(family: str, temperature: float) -> None:
    model = tiny_model(family, seed=5)
    call: dict[str, Any] = {"group_size": 6, "tokens": 20, "temperature": temperature}
    assert_same(sample(model, slots=7, **call), sample_with(GenerateEngine, model, **call))


@pytest.mark.parametrize("family", FAMILIES)
def test_under_autocast_too(family: str) -> None:
    """A prompt at a time: among others, bfloat16 would round elsewhere."""
    model = tiny_model(family, seed=6)
    with torch.autocast("cpu", torch.bfloat16):
        for prompt in PROMPTS:
            call: dict[str, Any] = {"prompts": [prompt], "group_size": 1, "tokens": 20}
            in_bfloat16 = sample(model, **call)
            assert_same(in_bfloat16, sample_with(GenerateEngine, model, **call))
    in_float32 = sample(model, **call)
    same = min(in_float32.mask.shape[1], in_bfloat16.mask.shape[1], 3)
    distance = (in_float32.sampling_logprobs[:, :same] - in_bfloat16.sampling_logprobs[:, :same]).abs().max()
    assert distance > 1e-3


# They follow the policy's distribution


def test_sampled_tokens_follow_the_policys_distribution() -> None:
    """χ² of the first token of 4,000 completions, and of the second one behind the most frequent first one."""
    model, prompt, temperature = tiny_model(vocab_size=8, seed=1), [1, 5, 2], 2.0
    rollout = sample(
        model,
        slots=512,
        prompts=[prompt],
        group_size=4000,
        tokens=2,
        temperature=temperature,
        noise=uniforms(4000, 2, seed=3),
        stop_ids=[7],
    )

    @torch.no_grad()
    def counts_and_probabilities(tokens: Tensor, context: list[int]) -> tuple[list[int], Tensor]:
        logits = model(input_ids=torch.tensor([context])).logits[0, -1].double()
        return torch.bincount(tokens, minlength=8).tolist(), (logits / temperature).softmax(dim=0)

    def p_value(counts: list[int], probabilities: Tensor) -> float:
        return float(chisquare(counts, (probabilities * sum(counts) / probabilities.sum()).numpy()).pvalue)

    first = rollout.completion_ids[:, 0]
    counts, probabilities = counts_and_probabilities(first, prompt)
    assert p_value(counts, probabilities) > 0.01
    assert p_value(counts, probabilities.sqrt()) < 1e-6  # another temperature would show

    likeliest = int(torch.tensor(counts)[:7].argmax())
    second = rollout.completion_ids[first == likeliest, 1]
    assert len(second) > 500
    behind, probabilities_behind = counts_and_probabilities(second, [*prompt, likeliest])
    assert p_value(behind, probabilities_behind) > 0.01
    assert p_value(behind, probabilities) < 1e-6  # the first token's distribution would show

    assert rollout.lengths.tolist() == [1 if token == 7 else 2 for token in first.tolist()]


# They depend on nothing else


@pytest.fixture(scope="module")
def in_one_go() -> Callable[[str, float], Rollout]:
    """Four groups of five, all at once."""
    return lambda family, temperature: sample(
        tiny_model(family, seed=2), group_size=5, tokens=14, temperature=temperature
    )


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("slots", SLOTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_number_of_slots_changes_nothing(
    family: str, slots: int, temperature: float, in_one_go: Callable[[str, float], Rollout]
) -> None:
    model = tiny_model(family, seed=2)
    rollout = sample(model, slots=slots, group_size=5, tokens=14, temperature=temperature)
    expected = in_one_go(family, temperature)
    assert_same(rollout, expected)
    assert temperature == 0 or len(set(expected.lengths.tolist())) >= 3


@pytest.mark.parametrize("slots", [2, 3, 7])
def test_with_few_slots_too_tokens_depend_only_on_the_prompt_and_the_noise(slots: int) -> None:
    model, noise = tiny_model("qwen3", seed=4), uniforms(20, 10, seed=1)
    together = completions(sample(model, slots, group_size=5, tokens=10, noise=noise))
    backwards = completions(
        sample(
            model,
            slots,
            prompts=PROMPTS[::-1],
            group_size=5,
            tokens=10,
            noise=noise.view(4, 5, 10).flip(0).flatten(0, 1),
        )
    )
    assert [c for i in (3, 2, 1, 0) for c in backwards[5 * i : 5 * i + 5]] == together
    for i, prompt in enumerate(PROMPTS):
        alone = sample(model, slots, prompts=[prompt], group_size=5, tokens=10, noise=noise[5 * i : 5 * i + 5])
        assert completions(alone) == together[5 * i : 5 * i + 5]


def test_equal_prompts_are_told_apart_by_their_noise_alone() -> None:
    model, noise = tiny_model(seed=4), uniforms(12, 10)
    as_groups = sample(model, 5, prompts=[PROMPTS[0]], group_size=12, tokens=10, noise=noise)
    as_prompts = sample(model, 5, prompts=[PROMPTS[0]] * 12, group_size=1, tokens=10, noise=noise)
    assert_same(as_prompts, as_groups)
    assert len({tuple(c) for c in completions(as_groups)}) == 12


# The schedule


def record_prefills(monkeypatch: pytest.MonkeyPatch) -> list[list[list[int]]]:
    """The prompts of each prefill from now on."""
    prefill, calls = Decoder.prefill, []

    def recorded(self: Decoder, tokens: Tensor, lengths: Tensor) -> Prefilled:
        calls.append([row[:n].tolist() for row, n in zip(tokens, lengths, strict=True)])
        return prefill(self, tokens, lengths)

    monkeypatch.setattr(Decoder, "prefill", recorded)
    return calls


def record_steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Rows and columns of each decode step from now on."""
    step, calls = Decoder.step, []

    def recorded(
        self: Decoder, tokens: Tensor, positions: Tensor, cache: KVCache, columns: int, even: bool = False
    ) -> Tensor:
        assert (positions < columns).all()
        assert even == bool((positions == columns - 1).all())
        calls.append((len(tokens), columns))
        return step(self, tokens, positions, cache, columns, even)

    monkeypatch.setattr(Decoder, "step", recorded)
    return calls


@pytest.mark.parametrize("group_size", [1, 5, 11])
@pytest.mark.parametrize("slots", SLOTS)
def test_each_prompt_is_read_once(slots: int, group_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many refills its group is admitted in: 11 members on one slot are 11 of them."""
    calls = record_prefills(monkeypatch)
    sample(tiny_model(), slots, group_size=group_size)
    assert sorted(prompt for call in calls for prompt in call) == sorted(PROMPTS)


def test_prompts_are_read_in_parts_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    expected = sample(model)
    calls = record_prefills(monkeypatch)
    monkeypatch.setattr(lean, "_PREFILL_TOKENS", 7)
    assert_same(sample(model), expected)
    assert [[len(prompt) for prompt in call] for call in calls] == [[6], [3, 2], [1]]


def scheduled(lengths: Sequence[int], slots: int) -> list[int]:
    """Rows of each step, from the lengths of the completions: one token at the admission, then one a step.

    A refill waits until an eighth of the slots is free, or as many as there are sequences waiting.
    """
    waiting, live, steps = list(lengths), [], []
    while waiting or live:
        free = min(slots - len(live), len(waiting))
        if not live or free >= min(len(waiting), math.ceil(slots / 8)):
            live += [max(1, length - 1) for length in waiting[:free]]
            del waiting[:free]
        steps.append(len(live))
        live = [left - 1 for left in live if left > 1]
    return steps


@pytest.mark.parametrize("slots", [1, 2, 4, 9, 16, 40, 64])
def test_ended_rows_make_room_for_waiting_ones_and_then_the_batch_shrinks(
    slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = record_steps(monkeypatch)
    lengths = sample(tiny_model(seed=2), slots, group_size=12, tokens=14).lengths.tolist()
    assert len(set(lengths)) > 5
    assert [rows for rows, _ in steps] == scheduled(lengths, slots)
    assert max(rows for rows, _ in steps) == min(slots, 48)
    assert sum(rows for rows, _ in steps) < 1.1 * sum(lengths)  # no row is decoded after its end


def test_a_step_looks_at_no_more_columns_than_the_longest_row_has(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = record_steps(monkeypatch)
    sample(tiny_model(), prompts=[[5, 6, 7], [8]], group_size=1, tokens=5, stop_ids=[63], temperature=0.0)
    assert steps == [(2, 4), (2, 5), (2, 6), (2, 7)]


# Corners


@pytest.mark.parametrize("slots", [1, 3, 64])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_all_completions_may_end_with_their_first_token(slots: int, temperature: float) -> None:
    rollout = sample(tiny_model(), slots, temperature=temperature, stop_ids=range(VOCABULARY))
    assert rollout.completion_ids.shape == (8, 1)
    assert rollout.mask.all()
    assert not rollout.truncated.any()


@pytest.mark.parametrize("slots", [1, 3, 64])
def test_a_budget_of_one_token_on_few_slots(slots: int) -> None:
    model, noise = tiny_model(), uniforms(8, 8)
    rollout = sample(model, slots, tokens=1, noise=noise[:, :1], stop_ids=[63])
    assert completions(rollout) == [c[:1] for c in completions(sample(model, noise=noise, stop_ids=[63]))]
    assert rollout.truncated.all()


def test_a_completion_may_fill_the_policys_last_position_and_not_go_beyond() -> None:
    model = tiny_model(max_position_embeddings=20)
    prompt = list(range(1, 13))
    rollout = sample(model, prompts=[prompt], tokens=8, temperature=0.0, stop_ids=[])
    assert completions(rollout) == [huggingface_greedy(model, prompt, 8)] * 2
    with pytest.raises(ValueError, match=r"need 21 positions; the policy has 20"):
        sample(model, prompts=[[1], prompt], tokens=9, temperature=0.0)


def test_a_vocabulary_padded_beyond_the_tokenizer_is_sampled_as_it_is_scored() -> None:
    """The policy may give the surplus ids some probability; whoever hides them samples from another policy."""
    model, known = tiny_model(seed=3), 40
    call: dict[str, Any] = {"group_size": 8, "tokens": 12, "stop_ids": [2]}
    rollout = sample(model, slots=9, **call)
    assert_same(rollout, sample_with(GenerateEngine, model, **call))
    assert (rollout.completion_ids >= known).any()
    with torch.no_grad():
        scores = score(model, rollout.prompt_ids, rollout.completion_ids, rollout.mask, 1.0)
    torch.testing.assert_close(rollout.sampling_logprobs, scores.logprobs, rtol=0, atol=1e-5)


def test_ids_that_a_tokenizer_does_not_know_are_read_as_nothing(tokenizer: PreTrainedTokenizerBase) -> None:
    plain = tokenizer.encode("12", add_special_tokens=False)
    assert tokenizer.batch_decode([[plain[0], len(tokenizer) + 3, *plain[1:]]], skip_special_tokens=True) == ["12"]


# What lasts from call to call


CALLS: list[dict[str, Any]] = [
    {"group_size": 2, "tokens": 6},
    {"group_size": 3, "tokens": 15, "temperature": 0.7},
    {"group_size": 1, "tokens": 3, "temperature": 0.0},
    {"prompts": [[4] * 30], "group_size": 2, "tokens": 98, "temperature": 1.3},
    {"prompts": [[9]], "group_size": 1, "tokens": 1},
    {"prompts": [[1, 2], [3]] * 9, "group_size": 1, "tokens": 7, "temperature": 0.0},
    {"group_size": 2, "tokens": 6},
]


@pytest.mark.parametrize("slots", [3, 64])
def test_calls_of_any_shape_may_follow_each_other(slots: int) -> None:
    model = tiny_model("qwen3")
    engine = LeanEngine(model, STOP_IDS, 0, slots)
    for call in CALLS + CALLS[::-1]:
        assert_same(sample_again(engine, **call), sample(model, slots, **call))


def memory(engine: LeanEngine) -> list[int]:
    """Where the engine's tensors lie."""
    rows = engine.rows
    tensors = [rows.cache.keys, rows.cache.values, rows.tokens, rows.logprobs, rows.noise]
    tensors += [rows.token, rows.position, rows.place, rows.last_place]
    return [t.data_ptr() for t in tensors]


def test_what_was_made_serves_smaller_calls_and_is_made_anew_for_larger_ones() -> None:
    engine = LeanEngine(tiny_model(max_position_embeddings=512), STOP_IDS, 0, 16)
    sample_again(engine, group_size=4, tokens=20)
    assert engine.made == (16, 128, 16 * 20)
    before = memory(engine)
    sample_again(engine, group_size=2, tokens=40)
    sample_again(engine, prompts=[[1] * 108], group_size=5, tokens=20, temperature=0.0)
    assert memory(engine) == before
    assert engine.made == (16, 128, 16 * 20)
    sample_again(engine, prompts=[[1] * 109], group_size=5, tokens=20, temperature=0.0)
    assert engine.made == (16, 256, 16 * 20)
    cache = engine.rows.cache
    assert cache.keys.shape == cache.values.shape == (2, 16, 256, 2, 8)
    sample_again(engine, group_size=8, tokens=20)
    assert engine.made == (16, 256, 32 * 20)  # no more slots than asked for


def test_there_are_no_more_slots_than_sequences() -> None:
    engine = LeanEngine(tiny_model(), STOP_IDS, 0, slots=64)
    sample_again(engine, group_size=3, tokens=5)
    assert engine.made == (12, 128, 60)
    assert engine.rows.cache.keys.untyped_storage().nbytes() == 4 * 2 * 12 * 128 * 2 * 8


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("change", ["in place", "data", "parameter"])
def test_the_weights_of_the_moment_are_read(change: str, precision: str) -> None:
    model = tiny_model("qwen3", tied=True)
    engine = LeanEngine(model, STOP_IDS, 0)
    with torch.autocast("cpu", torch.bfloat16) if precision == "bf16-mixed" else nullcontext():
        before = sample_again(engine, tokens=12)
        for module in list(model.modules()):
            for name, parameter in list(module.named_parameters(recurse=False)):
                changed = (0.5 * parameter + 0.1).detach()
                if change == "in place":
                    with torch.no_grad():
                        parameter.copy_(changed)
                elif change == "data":
                    parameter.data = changed
                else:
                    setattr(module, name, torch.nn.Parameter(changed))
        model.tie_weights()
        after = sample_again(engine, tokens=12)
        assert_same(after, sample(model, tokens=12))
    assert completions(after) != completions(before)


def test_a_policy_that_was_cast_is_read_in_its_new_precision() -> None:
    model = tiny_model()
    engine = LeanEngine(model, STOP_IDS, 0)
    sample_again(engine)
    model.bfloat16()
    assert_same(sample_again(engine), sample(model))
    assert engine.rows.cache.keys.dtype == torch.bfloat16
    model.float()
    assert_same(sample_again(engine), sample(model))
    assert engine.rows.cache.keys.dtype == torch.float32


def test_autocast_may_come_and_go() -> None:
    model = tiny_model()
    engine = LeanEngine(model, STOP_IDS, 0)
    plain = sample_again(engine)
    with torch.autocast("cpu", torch.bfloat16):
        sample_again(engine)
        assert engine.weights.dtype == torch.bfloat16
        assert torch.is_autocast_enabled("cpu")
    assert_same(sample_again(engine), plain)
    assert engine.weights.dtype == torch.float32


# Interruption


def interrupt(monkeypatch: pytest.MonkeyPatch, name: str, at: int) -> None:
    """Ctrl-C in the ``at``-th call of a method of the decoder."""
    method, calls = getattr(Decoder, name), iter(range(1, 1000))

    def interrupted(*args: Any) -> Any:
        if next(calls) == at:
            raise KeyboardInterrupt
        return method(*args)

    monkeypatch.setattr(Decoder, name, interrupted)


@pytest.mark.parametrize(("name", "at"), [("step", 1), ("step", 2), ("step", 9), ("prefill", 1), ("prefill", 3)])
def test_after_an_interruption_the_engine_is_as_good_as_new(
    name: str, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(seed=2).train()
    engine = LeanEngine(model, STOP_IDS, 0, slots=3)
    call: dict[str, Any] = {"group_size": 5, "tokens": 14}
    expected = sample(model, 3, **call)
    with monkeypatch.context() as patch:
        interrupt(patch, name, at)
        with pytest.raises(KeyboardInterrupt):
            sample_again(engine, group_size=5, tokens=14, temperature=0.5)
    assert_same(sample_again(engine, **call), expected)
    assert model.training
    assert torch.is_grad_enabled()


# Progress


def test_progress_tells_the_rate_and_the_time_left() -> None:
    progress = Progress(ended=4, sequences=16, tokens=100, seconds=2.0)
    assert progress.tokens_per_s == 50
    assert progress.seconds_left == 6
    assert Progress(0, 16, 100, 2.0).seconds_left == math.inf
    assert Progress(16, 16, 100, 2.0).seconds_left == 0


@pytest.mark.parametrize("slots", [3, 64])
def test_progress_counts_what_has_ended_and_every_token(slots: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lean, "_SECONDS_BETWEEN_REPORTS", 0.0)
    steps = record_steps(monkeypatch)
    engine = LeanEngine(tiny_model(seed=2), STOP_IDS, 0, slots)
    reports: list[Progress] = []
    engine.on_progress = reports.append
    rollout = sample_again(engine, group_size=5, tokens=14)
    assert len(reports) == len(steps)
    assert {r.sequences for r in reports} == {20}
    ended, tokens = [r.ended for r in reports], [r.tokens for r in reports]
    assert ended == sorted(ended)
    assert (ended[-1], tokens[-1]) == (20, int(rollout.lengths.sum()))
    rows = [rows for rows, _ in steps]
    grown = [b - a for a, b in pairwise(tokens)]
    assert all(0 < more <= 2 * n for more, n in zip(grown, rows[1:], strict=True))  # a step, and first tokens
    if slots == 64:
        lengths = rollout.lengths.tolist()
        assert ended == [sum(length <= t + 2 for length in lengths) for t in range(len(reports))]
        assert tokens == [sum(min(length, t + 2) for length in lengths) for t in range(len(reports))]


def test_progress_is_told_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = LeanEngine(tiny_model(), [], 0)
    reports: list[Progress] = []
    engine.on_progress = reports.append
    sample_again(engine)
    assert [(r.ended, r.tokens) for r in reports] == [(8, 64)]  # it was over before the first was due
    reports.clear()
    clock = count(time.perf_counter(), 0.3)  # every look at the clock is 0.3 s after the last one
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    sample_again(engine, tokens=10)
    assert [round(r.seconds, 1) for r in reports] == [0.6, 1.2, 1.8, 2.4, 2.7]  # the last one whenever it ends
    assert [r.tokens for r in reports] == [8 * 3, 8 * 5, 8 * 7, 8 * 9, 8 * 10]


@pytest.mark.parametrize("graphed", [False, True])
def test_memory_is_free_when_an_engine_is_dropped(graphed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once: on a GPU it is gigabytes, which would otherwise wait for a cycle of references to be found."""
    monkeypatch.setattr(LeanEngine, "graphed", graphed)
    monkeypatch.setattr(graphs, "_CudaCapture", lambda device: lambda function: function)
    engine = LeanEngine(tiny_model(), STOP_IDS, 0)
    sample_again(engine)
    cache = weakref.ref(engine.rows.cache)
    gc.disable()
    try:
        del engine
        assert cache() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("name", ["make_cache", "prefill"])
def test_an_engine_that_could_not_be_made_is_made_by_the_next_call(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted, or out of memory; here while a call with a longer cache replaces what there is."""
    model = tiny_model()
    engine = LeanEngine(model, STOP_IDS, 0)
    expected = sample_again(engine)
    with monkeypatch.context() as patch:
        interrupt(patch, name, 1)
        with pytest.raises(KeyboardInterrupt):
            sample_again(engine, tokens=120, temperature=0.0)
    assert_same(sample_again(engine), expected)


# Modes of autograd


def test_what_was_made_in_inference_mode_serves_outside_of_it() -> None:
    """Lightning evaluates in inference mode, whose tensors cannot be written to afterwards."""
    model = tiny_model()
    engine = LeanEngine(model, STOP_IDS, 0)
    with torch.inference_mode():
        evaluated = sample_again(engine, group_size=3)
        assert torch.is_inference_mode_enabled()
    trained = sample_again(engine)
    assert not any(t.is_inference() for t in vars(trained).values() if isinstance(t, Tensor))
    assert_same(trained, sample(model))
    with torch.inference_mode():
        assert_same(sample_again(engine, group_size=3), evaluated)
    scores = score(model, trained.prompt_ids, trained.completion_ids, trained.mask, 1.0)
    scores.logprobs.sum().backward()


def test_the_default_precision_of_the_moment_is_not_read() -> None:
    """Lightning sets it in training steps under bf16-true."""
    model, noise = tiny_model(), uniforms(8, 8)
    expected = sample(model, noise=noise)
    torch.set_default_dtype(torch.bfloat16)
    try:
        rollout = sample(model, noise=noise)
    finally:
        torch.set_default_dtype(torch.float32)
    assert_same(rollout, expected)


# What is refused


@pytest.mark.parametrize("prompts", [[], [[1, 2], []]], ids=["no prompt", "an empty one"])
def test_a_prompt_without_a_token_is_refused(prompts: list[list[int]]) -> None:
    """Its completion would go on from a pad."""
    with pytest.raises(ValueError, match="at least one prompt, a token in each"):
        sample(tiny_model(), prompts=prompts)
    with pytest.raises(ValueError, match="group size of at least 1"):
        sample(tiny_model(), group_size=0)


@pytest.mark.parametrize("engine", [GenerateEngine, LeanEngine])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_policy_that_has_diverged_is_refused_and_leaves_nothing_behind(
    engine: type[GenerateEngine] | type[LeanEngine], temperature: float
) -> None:
    """NaN in the cache would outlive the weights that it came from: a mask does not hide it."""
    model = tiny_model()
    expected = sample(model)
    used = engine(model, STOP_IDS, 0)
    weight = model.model.layers[0].mlp.down_proj.weight
    before = weight.detach().clone()
    weight.data.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="probabilities are not finite"):
        sample_with(used, model, temperature=temperature)
    weight.data.copy_(before)
    assert_same(sample_with(used, model), expected)


def test_a_policy_that_was_hooked_after_its_first_rollout_is_refused() -> None:
    """It would be read without what was added."""
    model = tiny_model()
    engine = LeanEngine(model, STOP_IDS, 0)
    sample_again(engine)
    hook = model.model.layers[1].register_forward_hook(lambda module, args, output: output * 2)
    with pytest.raises(ValueError, match=r"changed after its first rollout, .* model.layers.1 has a forward hook"):
        sample_again(engine)
    hook.remove()
    assert_same(sample_again(engine), sample(model))


@pytest.mark.parametrize("shape", [None, (8, 9), (7, 8), (16, 4)], ids=str)
def test_noise_that_does_not_fit_is_refused(shape: tuple[int, int] | None) -> None:
    """The last call's would be taken for what is missing, and other rows' for what stands elsewhere."""
    noise = None if shape is None else uniforms(*shape)
    engine = LeanEngine(tiny_model(), STOP_IDS, 0)
    sample_again(engine)
    with pytest.raises(ValueError, match=r"needs noise of shape \(8, 8\)"):
        engine.generate(PROMPTS, 2, Sampling(8, 1.0), noise)
    assert_same(engine.generate(PROMPTS, 2, Sampling(8, 0.0), None), sample(engine.policy, temperature=0.0))
