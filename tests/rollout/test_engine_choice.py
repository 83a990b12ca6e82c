"""Which policies the lean decoder covers, and what happens with the others."""

from __future__ import annotations

import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import varlen
from torch.nn.utils import parametrize
from transformers import AutoModelForCausalLM, GemmaConfig, GPT2Config, PretrainedConfig, PreTrainedModel

from rlvr_pl import rollout
from rlvr_pl.losses import GSPO
from rlvr_pl.module import GroupPolicyModule
from rlvr_pl.rollout import GenerateEngine, LeanEngine, Progress, Sampling, choose_engine
from rlvr_pl.rollout.cache import reads_by_length
from rlvr_pl.rollout.weights import why_not_covered
from tests.helpers.engines import PROMPTS, STOP_IDS, assert_same, sample_with, uniforms
from tests.helpers.policies import FAMILIES, VOCABULARY, make_tiny_policy, tiny_model

torch.set_num_threads(1)


class LowRank(nn.Module):
    """A linear layer and what an adapter adds to it."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear
        self.down = nn.Linear(linear.in_features, 2, bias=False)
        self.up = nn.Linear(2, linear.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.up(self.down(x))


class OtherLinear(nn.Linear):
    """A linear layer that computes something else: a quantised one, say."""


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def other_model(config: type[PretrainedConfig], **settings: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    settings = {"vocab_size": VOCABULARY, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None} | settings
    return AutoModelForCausalLM.from_config(config(**settings)).eval()


def gpt2() -> PreTrainedModel:
    return other_model(GPT2Config, n_embd=32, n_layer=2, n_head=4, n_positions=64)


def gemma() -> PreTrainedModel:
    return other_model(
        GemmaConfig,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
    )


def changed(change: Callable[[Any], Any], family: str = "qwen2") -> PreTrainedModel:
    """A covered model with a change made to it, or to its layer 1."""
    model = tiny_model(family)
    assert why_not_covered(model) is None
    change(model)
    return model


def layer(model: Any) -> Any:
    return model.model.layers[1]


def wrap(model: Any) -> None:
    layer(model).self_attn.q_proj = LowRank(layer(model).self_attn.q_proj)


def override(model: Any) -> None:
    """As libraries do that place layers on devices."""
    layer(model).forward = types.MethodType(type(layer(model)).forward, layer(model))


class SubclassOfQwen2(type(tiny_model("qwen2"))):  # type: ignore[misc]
    pass


DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0}
NOT_COVERED: dict[str, tuple[Callable[[], PreTrainedModel], str]] = {
    "GPT-2": (gpt2, "its class is GPT2LMHeadModel"),
    "Gemma": (gemma, "its class is GemmaForCausalLM"),
    "a subclass": (
        lambda: changed(lambda m: setattr(m, "__class__", SubclassOfQwen2)),
        "its class is SubclassOfQwen2",
    ),
    "sliding windows": (
        lambda: tiny_model("qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=1),
        "it has sliding-window layers",
    ),
    "dynamic rotary": (lambda: tiny_model("llama", rope_parameters=DYNAMIC), "its rotary embedding is 'dynamic'"),
    "GELU": (lambda: tiny_model("qwen3", hidden_act="gelu"), "its activation is 'gelu'"),
    "GELU in a layer": (
        lambda: changed(lambda m: setattr(layer(m).mlp, "act_fn", nn.GELU())),
        "model.layers.1.mlp.act_fn is a GELU",
    ),
    "an adapter": (lambda: changed(wrap), "model.layers.1.self_attn.q_proj is a LowRank"),
    "another linear layer": (
        lambda: changed(lambda m: setattr(layer(m).mlp, "up_proj", OtherLinear(32, 64, bias=False))),
        "model.layers.1.mlp.up_proj is a OtherLinear",
    ),
    "no norm": (
        lambda: changed(lambda m: setattr(layer(m), "input_layernorm", nn.Identity())),
        "model.layers.1.input_layernorm is a Identity",
    ),
    "a parametrization": (
        lambda: changed(lambda m: parametrize.register_parametrization(layer(m).mlp.down_proj, "weight", Doubled())),
        "model.layers.1.mlp.down_proj is a ParametrizedLinear",
    ),
    "a forward hook": (
        lambda: changed(lambda m: layer(m).mlp.register_forward_hook(lambda *_: None)),
        "model.layers.1.mlp has a forward hook",
    ),
    "a forward pre-hook": (
        lambda: changed(lambda m: m.lm_head.register_forward_pre_hook(lambda *_: None)),
        "lm_head has a forward hook",
    ),
    "a hook of the whole": (
        lambda: changed(lambda m: m.register_forward_hook(lambda *_: None)),
        "the model has a forward hook",
    ),
    "another forward": (lambda: changed(override), "model.layers.1 has a forward hook"),
    "mixed precisions": (
        lambda: changed(lambda m: layer(m).mlp.up_proj.bfloat16()),
        "model.layers.1.mlp.up_proj.weight is a Parameter of torch.bfloat16",
    ),
}


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is told to the user."""
    messages: list[str] = []
    monkeypatch.setattr(rollout, "rank_zero_info", messages.append)
    return messages


@pytest.mark.parametrize("case", NOT_COVERED)
def test_what_is_not_covered_is_named_and_generate_does_it(case: str, told: list[str]) -> None:
    make, reason = NOT_COVERED[case]
    policy = make()
    assert why_not_covered(policy) == reason
    engine = choose_engine(policy, STOP_IDS, 0, slots=5)
    assert isinstance(engine, GenerateEngine)
    assert engine.slots == 5
    assert told == [f"The decoder does not cover this policy: {reason}. Rollouts use generate(), which is slower."]


@pytest.mark.parametrize("case", ["GPT-2", "Gemma", "sliding windows", "an adapter", "GELU in a layer"])
def test_rollouts_of_what_is_not_covered(case: str, told: list[str]) -> None:
    policy = NOT_COVERED[case][0]()
    engine = choose_engine(policy, STOP_IDS, 0, slots=5)
    first = sample_with(engine, policy)
    sample_with(engine, policy, temperature=0.0)
    assert first.lengths.min() >= 1
    assert len(told) == 1  # not at every rollout


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"tied": True},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.0}},
        {"sliding_window": 4, "use_sliding_window": False},
        {"attention_dropout": 0.1},
    ],
    ids=str,
)
def test_what_is_covered_gets_the_lean_engine_without_a_word(
    family: str, settings: dict[str, Any], told: list[str]
) -> None:
    policy = tiny_model(family, **settings).train().requires_grad_(False)
    engine = choose_engine(policy, STOP_IDS, 7, slots=5)
    assert isinstance(engine, LeanEngine)
    assert (engine.policy, engine.stop_ids, engine.pad_id, engine.slots) == (policy, STOP_IDS, 7, 5)
    assert told == []


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_a_module_with_gradient_checkpointing_gets_the_lean_engine(
    gradient_checkpointing: bool, told: list[str], tmp_path: Path
) -> None:
    """Transformers hooks the embedding when checkpointing is turned on."""
    module = GroupPolicyModule(make_tiny_policy(tmp_path), GSPO(), gradient_checkpointing=gradient_checkpointing)
    module.configure_model()
    assert module.policy.is_gradient_checkpointing == gradient_checkpointing
    assert isinstance(module.engine, LeanEngine)
    assert told == []


def test_a_policy_that_a_subclass_wraps_after_loading_it_falls_back_and_says_so_once(
    told: list[str], tmp_path: Path
) -> None:
    class WithAdapters(GroupPolicyModule):
        def configure_model(self) -> None:
            super().configure_model()
            wrap(self.policy)

    module = WithAdapters(make_tiny_policy(tmp_path), GSPO())
    module.configure_model()
    assert isinstance(module.engine, GenerateEngine)
    assert module.engine is module.engine
    assert len(told) == 1
    assert "self_attn.q_proj is a LowRank" in told[0]


# generate(), a part at a time


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("slots", [1, 3, 8, 20, 100])
def test_generate_in_parts_gives_the_same(slots: int, temperature: float) -> None:
    model = tiny_model(seed=2)
    call: dict[str, Any] = {"group_size": 5, "tokens": 14, "temperature": temperature}
    whole = sample_with(GenerateEngine, model, slots=20, **call)
    parts = sample_with(GenerateEngine, model, slots=slots, **call)
    assert_same(parts, whole)
    assert parts.completion_ids.tolist() == whole.completion_ids.tolist()
    assert parts.sampling_logprobs.shape == whole.sampling_logprobs.shape


def test_generate_reports_each_part_and_counts_no_pads() -> None:
    engine = GenerateEngine(tiny_model(seed=2), STOP_IDS, 0, slots=8)
    reports: list[Progress] = []
    engine.on_progress = reports.append
    sequences = engine.generate(PROMPTS, 5, Sampling(14), uniforms(20, 14))
    lengths = sequences.lengths.tolist()
    assert [(r.ended, r.sequences) for r in reports] == [(8, 20), (16, 20), (20, 20)]
    assert [r.tokens for r in reports] == [sum(lengths[:8]), sum(lengths[:16]), sum(lengths)]
    assert 0 < reports[0].seconds < reports[1].seconds < reports[2].seconds
    assert sum(lengths) < 20 * 14


# Attention by length


@pytest.mark.parametrize(
    ("dtype", "is_cuda", "capability", "head_size", "expected"),
    [
        (torch.bfloat16, True, (9, 0), 128, True),
        (torch.float16, True, (8, 0), 8, True),
        (torch.float32, True, (9, 0), 128, False),
        (torch.float16, True, (7, 5), 128, False),  # the kernel needs an Ampere GPU
        (torch.bfloat16, True, (9, 0), 256, True),
        (torch.bfloat16, True, (9, 0), 264, False),
        (torch.bfloat16, True, (9, 0), 100, False),  # no multiple of 8
        (torch.bfloat16, False, (9, 0), 128, False),
    ],
)
def test_attention_reads_by_length_where_the_kernel_exists(
    dtype: torch.dtype,
    is_cuda: bool,
    capability: tuple[int, int],
    head_size: int,
    expected: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    keys = types.SimpleNamespace(dtype=dtype, is_cuda=is_cuda, device="cuda:0", shape=(28, 256, 640, 2, head_size))
    cache: Any = types.SimpleNamespace(keys=keys)
    assert reads_by_length(cache) == expected

    def without_lengths(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """As before torch 2.12."""
        return query

    monkeypatch.setattr(varlen, "varlen_attn", without_lengths)
    assert not reads_by_length(cache)
