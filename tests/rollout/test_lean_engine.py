"""What the lean engine samples, and what it refuses."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlvr_pl.rollout import GenerateEngine, LeanEngine, Sampling
from rlvr_pl.scoring import score
from rlvr_pl.types import Rollout
from tests.helpers.engines import (
    PROMPTS,
    STOP_IDS,
    assert_same,
    completions,
    huggingface_greedy,
    sample,
    sample_again,
    sample_with,
    sequences_of,
    uniforms,
)
from tests.helpers.policies import FAMILIES, VOCABULARY, tiny_model

torch.set_num_threads(1)

SLOTS = [1, 2, 3, 7, 64]
LAYOUTS = [(4, 4), (4, 2), (8, 2), (6, 1)]  # heads, kv heads


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
        scores = score(model, sequences_of(rollout), 1.0)
    torch.testing.assert_close(rollout.sampling_logprobs, scores.logprobs, rtol=0, atol=1e-5)


def test_ids_that_a_tokenizer_does_not_know_are_read_as_nothing(tokenizer: PreTrainedTokenizerBase) -> None:
    plain = tokenizer.encode("12", add_special_tokens=False)
    assert tokenizer.batch_decode([[plain[0], len(tokenizer) + 3, *plain[1:]]], skip_special_tokens=True) == ["12"]


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
