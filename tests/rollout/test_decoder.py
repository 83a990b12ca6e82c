"""The decoder against Hugging Face's cached decoding: the same logits, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import varlen
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from transformers import PreTrainedModel

from rlvr_pl.rollout import cache as cache_module
from rlvr_pl.rollout.cache import KVCache, Prefilled, reads_by_length
from rlvr_pl.rollout.decoder import Decoder
from rlvr_pl.rollout.weights import DecoderWeights, Linear, addresses, why_not_covered
from tests.helpers.policies import FAMILIES, VOCABULARY, tiny_model
from tests.helpers.varlen import slow_varlen_attn

torch.set_num_threads(1)
pytestmark = pytest.mark.usefixtures("no_grad")

ROWS, PROMPT, STEPS = 5, 9, 12
LAYOUTS = [(4, 4), (4, 2), (8, 2), (6, 1)]  # heads, kv heads
PRECISIONS = ["32-true", "bf16-true", "bf16-mixed"]


@pytest.fixture
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def make(family: str, precision: str, heads: int = 4, kv_heads: int = 2, **settings: Any) -> PreTrainedModel:
    settings = {"hidden_size": 8 * heads, "num_attention_heads": heads, "num_key_value_heads": kv_heads} | settings
    model = tiny_model(family, **settings)
    return model.bfloat16() if precision == "bf16-true" else model


def decoder_of(model: PreTrainedModel, precision: str = "32-true", columns: int = PROMPT + STEPS) -> Decoder:
    dtype = torch.float32 if precision == "32-true" else torch.bfloat16
    return Decoder(model, DecoderWeights(model, dtype), columns)


def precision_context(precision: str) -> AbstractContextManager[Any]:
    return torch.autocast("cpu", torch.bfloat16) if precision == "bf16-mixed" else nullcontext()


def random_tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


def huggingface_logits(model: PreTrainedModel, precision: str, prompts: Tensor, completions: Tensor) -> list[Tensor]:
    """Logits behind the prompts, then behind each further token."""
    cached, logits = None, []
    for tokens in (prompts, *completions.split(1, dim=1)):
        with precision_context(precision):
            output = model(input_ids=tokens, past_key_values=cached, use_cache=True, logits_to_keep=1)
        cached = output.past_key_values
        logits.append(output.logits[:, -1].float())
    return logits


def decoder_logits(decoder: Decoder, prompts: Tensor, completions: Tensor, even: bool = True) -> list[Tensor]:
    rows, length = prompts.shape
    cache = decoder.make_cache(rows)
    prefilled = decoder.prefill(prompts, torch.full((rows,), length))
    cache.write_prompts(0, prefilled, torch.arange(rows))
    logits = [prefilled.logits]
    for t, tokens in enumerate(completions.unbind(dim=1)):
        logits.append(decoder.step(tokens, torch.full((rows,), length + t), cache, length + t + 1, even))
    return logits


def assert_bitwise_equal(model: PreTrainedModel, precision: str) -> None:
    assert why_not_covered(model) is None
    prompts, completions = random_tokens(ROWS, PROMPT), random_tokens(ROWS, STEPS, seed=1)
    expected = huggingface_logits(model, precision, prompts, completions)
    actual = decoder_logits(decoder_of(model, precision), prompts, completions)
    assert [a.dtype for a in actual] == [torch.float32] * (STEPS + 1)
    differing = [t for t, (a, e) in enumerate(zip(actual, expected, strict=True)) if not torch.equal(a, e)]
    assert differing == []  # 0 is the prefill, t the t-th step
    assert expected[0].std() > 0.5  # the logits are no constant


# Bit for bit


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("heads", "kv_heads"), LAYOUTS)
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_huggingface(family: str, tied: bool, heads: int, kv_heads: int, precision: str) -> None:
    assert_bitwise_equal(make(family, precision, heads, kv_heads, tied=tied), precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama", {"attention_bias": True}),
        ("llama", {"mlp_bias": True}),
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("qwen3", {"attention_bias": True}),
        ("qwen3", {"head_dim": 16}),  # heads · head size is not the hidden size
        ("llama", {"rms_norm_eps": 0.1}),
        ("qwen2", {"num_hidden_layers": 1}),
    ],
    ids=str,
)
def test_logits_with_other_settings(family: str, settings: dict[str, Any], precision: str) -> None:
    assert_bitwise_equal(make(family, precision, **settings), precision)


ROTARY: list[dict[str, Any]] = [
    {"rope_type": "default", "rope_theta": 500.0},
    {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0},
    {
        "rope_type": "llama3",
        "rope_theta": 10_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 32},
]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rotary", ROTARY, ids=lambda r: r["rope_type"])
def test_rotary_embeddings(rotary: dict[str, Any], family: str, precision: str) -> None:
    assert_bitwise_equal(make(family, precision, rope_parameters=rotary), precision)


def test_the_rotary_embeddings_differ() -> None:
    tables = [decoder_of(make("llama", "32-true", rope_parameters=rotary)).cos for rotary in ROTARY]
    assert all(not torch.equal(a, b) for i, a in enumerate(tables) for b in tables[:i])


# Rows of unequal length, over more columns than they need


def logits_of_unequal_rows(decoder: Decoder, lengths: list[int], columns: int) -> tuple[Tensor, KVCache]:
    """Logits (steps, rows, V) of rows that start at unequal columns, in a cache that held something before."""
    tokens = random_tokens(len(lengths), max(lengths) + STEPS)
    cache = decoder.make_cache(len(lengths) + 2)
    cache.keys.fill_(50.0)
    cache.values.fill_(50.0)
    prompts = tokens[:, : max(lengths)]
    positions = torch.tensor(lengths)
    prefilled = decoder.prefill(prompts, positions)
    cache.write_prompts(0, prefilled, torch.arange(len(lengths)))
    logits = [prefilled.logits]
    for _ in range(STEPS):
        here = tokens.gather(1, positions.unsqueeze(1)).squeeze(1)
        logits.append(decoder.step(here, positions, cache, columns))
        positions = positions + 1
    return torch.stack(logits), cache


@pytest.mark.parametrize("family", FAMILIES)
def test_a_rows_logits_do_not_depend_on_pads_neighbours_and_what_the_cache_held(family: str) -> None:
    model, lengths = make(family, "32-true", initializer_range=0.15), [1, 9, 4, 7]
    actual, cache = logits_of_unequal_rows(decoder_of(model, columns=40), lengths, columns=40)
    tokens = random_tokens(len(lengths), max(lengths) + STEPS)
    for row, length in enumerate(lengths):
        whole = model(input_ids=tokens[row : row + 1, : length + STEPS]).logits[0, length - 1 :]
        torch.testing.assert_close(actual[:, row], whole, rtol=0, atol=1e-5)
    assert (cache.keys[:, 4:] == 50.0).all()  # the slots of no row


# The paths of a GPU


@pytest.mark.parametrize(("heads", "kv_heads"), LAYOUTS)
def test_attention_by_length_gives_what_masked_attention_gives(
    heads: int, kv_heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = decoder_of(make("qwen3", "32-true", heads, kv_heads, initializer_range=0.15), columns=40)
    masked, masked_cache = logits_of_unequal_rows(decoder, [1, 9, 4, 7], columns=40)
    calls = []
    monkeypatch.setattr(cache_module, "reads_by_length", lambda cache: True)
    monkeypatch.setattr(varlen, "varlen_attn", lambda *a, **k: calls.append(k) or slow_varlen_attn(*a, **k))
    # It reads what a row holds, so that too few columns do no harm.
    by_length, cache = logits_of_unequal_rows(decoder, [1, 9, 4, 7], columns=1)
    torch.testing.assert_close(by_length, masked, rtol=0, atol=1e-5)
    torch.testing.assert_close(cache.keys, masked_cache.keys, rtol=0, atol=1e-5)
    assert len(calls) == STEPS * 2


@pytest.mark.parametrize(("heads", "kv_heads"), LAYOUTS)
def test_a_mask_that_hides_nothing_changes_nothing(heads: int, kv_heads: int) -> None:
    """A captured step masks rows of equal length too."""
    decoder = decoder_of(make("llama", "32-true", heads, kv_heads, initializer_range=0.15), columns=40)
    prompts, completions = random_tokens(ROWS, PROMPT), random_tokens(ROWS, STEPS, seed=1)
    expected, actual = (torch.stack(decoder_logits(decoder, prompts, completions, even)) for even in (True, False))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


# Weights


def linears(weights: DecoderWeights) -> list[Linear]:
    return [p for w in weights.layers for p in (w.qkv, w.output, w.gate_up, w.down)] + [weights.head]


def own_tensors(weights: DecoderWeights) -> list[Tensor]:
    norms = [n for w in weights.layers for n in (w.input_norm, w.query_norm, w.key_norm, w.mlp_norm) if n is not None]
    return [weights.embedding, weights.norm, *norms]


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_in_the_policys_own_precision_no_weight_is_copied(family: str, tied: bool, precision: str) -> None:
    model = make(family, precision, tied=tied)
    weights = decoder_of(model, precision).weights
    read = own_tensors(weights)
    for linear in linears(weights):
        read += [*linear.weights, *(b for b in linear.biases if b is not None)]
    assert {t.data_ptr() for t in read} == set(addresses(model))
    assert len(set(addresses(model))) == len(list(model.parameters()))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_under_autocast_the_linear_layers_alone_are_copied(family: str, tied: bool) -> None:
    model = make(family, "bf16-mixed", tied=tied)
    weights = decoder_of(model, "bf16-mixed").weights
    assert {t.data_ptr() for t in own_tensors(weights)} <= set(addresses(model))
    copied = [t for linear in linears(weights) for t in (*linear.weights, *linear.biases) if t is not None]
    assert {t.dtype for t in copied} == {torch.bfloat16}
    numbers = sum(p.numel() for m in model.modules() if isinstance(m, torch.nn.Linear) for p in m.parameters())
    assert sum(t.untyped_storage().nbytes() for t in copied) == 2 * numbers
    assert [len(linear.weights) for linear in linears(weights)] == [1] * len(linears(weights))  # all fused


@pytest.mark.parametrize("family", FAMILIES)
def test_the_copy_follows_the_policy_when_it_is_refreshed_and_stays_where_it_is(family: str) -> None:
    model = make(family, "bf16-mixed")
    decoder = decoder_of(model, "bf16-mixed")
    prompts, completions = random_tokens(ROWS, PROMPT), random_tokens(ROWS, STEPS, seed=1)
    copied = [t for linear in linears(decoder.weights) for t in linear.weights]
    places = [t.data_ptr() for t in copied]
    for name, parameter in model.named_parameters():
        if "proj" in name or "lm_head" in name:
            parameter.mul_(-1.5)
    expected = torch.stack(huggingface_logits(model, "bf16-mixed", prompts, completions))
    stale = torch.stack(decoder_logits(decoder, prompts, completions))
    assert not torch.equal(stale, expected)
    decoder.weights.refresh()
    assert torch.equal(torch.stack(decoder_logits(decoder, prompts, completions)), expected)
    assert [t.data_ptr() for t in copied] == places


# The cache


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_cache_is_as_large_as_its_formula_says(precision: str) -> None:
    cache = decoder_of(make("qwen3", precision, head_dim=16), precision, columns=37).make_cache(slots=5)
    numbers = 2 * 2 * 5 * 37 * 2 * 16  # keys and values · layers · slots · columns · kv heads · head size
    nbytes = sum(part.untyped_storage().nbytes() for part in (cache.keys, cache.values))
    assert nbytes == numbers * (4 if precision == "32-true" else 2)
    assert (cache.keys == 0).all()
    assert (cache.values == 0).all()
    assert not reads_by_length(cache)  # no GPU here


class LargestResult(TorchDispatchMode):
    """Notes how many numbers the largest tensor has that comes into being."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given, made = (
            {t.untyped_storage().data_ptr(): t for t in tree_flatten(values)[0] if isinstance(t, Tensor)}
            for values in (args, result)
        )
        new = [tensor.numel() for place, tensor in made.items() if place not in given]  # no view, nor written in place
        self.numel = max([self.numel, *new])
        return result


def test_copies_in_the_cache_need_little_memory_beside_it() -> None:
    """A layer's worth at a time: with many layers, next to nothing."""
    cache = KVCache((6, 8, 10, 2, 4), torch.float32, torch.device("cpu"))
    prompts = torch.randn(6, 3, 7, 2, 4)
    prefilled = Prefilled(torch.full((3,), 7), torch.zeros(3, 1), list(zip(prompts, prompts, strict=True)))
    with LargestResult() as largest:
        cache.write_prompts(1, prefilled, torch.tensor([0, 0, 2, 1, 1]))
    assert torch.equal(cache.keys[:, 1:6, :7], prompts[:, [0, 0, 2, 1, 1]])
    assert torch.equal(cache.values, cache.keys)
    assert largest.numel == 5 * 7 * 2 * 4
    with LargestResult() as largest:
        cache.move([4, 5], [0, 7], columns=7)
    assert torch.equal(cache.values[:, [0, 7], :7], prompts[:, [1, 1]])
    assert largest.numel == 0


def test_moving_slots_takes_the_columns_asked_for_and_leaves_the_others() -> None:
    cache = KVCache((2, 4, 6, 1, 2), torch.float32, torch.device("cpu"))
    cache.keys.copy_(torch.arange(cache.keys.numel()).view(cache.keys.shape))
    cache.values.copy_(-cache.keys)
    before = cache.keys.clone()
    cache.move([3, 2], [0, 1], columns=4)
    assert torch.equal(cache.keys[:, [0, 1], :4], before[:, [3, 2], :4])
    assert torch.equal(cache.keys[:, :2, 4:], before[:, :2, 4:])
    assert torch.equal(cache.keys[:, 2:], before[:, 2:])
    assert torch.equal(cache.values, -cache.keys)
