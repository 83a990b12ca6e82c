"""Lean layers compute what transformers' own do, values and gradients, and leave everything else as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm, apply_rotary_pos_emb

from rlvr_pl.pretrained import checkpoint_activations
from rlvr_pl.rollout.weights import why_not_covered
from rlvr_pl.scoring import PackedGroups, TokenScores, score
from rlvr_pl.scoring.attention import PACKED_GROUPS
from rlvr_pl.scoring.choice import why_not_packed
from rlvr_pl.scoring.layers import gate, norm, rotate, use_lean_layers
from tests.helpers.policies import FAMILIES, tiny_model

torch.set_num_threads(1)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def assert_same(actual: Callable[..., Tensor], expected: Callable[..., Tensor], *inputs: Tensor) -> None:
    """Of like values, and of like gradients of a random weighting of them."""
    torch.manual_seed(1)
    results = []
    for function in (actual, expected):
        leaves = [x.clone().requires_grad_() for x in inputs]
        results.append((function(*[leaf * 1 for leaf in leaves]), leaves))
    (value, leaves), (wanted, others) = results
    torch.testing.assert_close(value, wanted, rtol=1e-13, atol=1e-13)
    weight = torch.randn_like(wanted)
    for ours, theirs in zip(
        torch.autograd.grad(value, leaves, weight), torch.autograd.grad(wanted, others, weight), strict=True
    ):
        assert theirs.abs().max() > 0.1
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


# Functions


@pytest.mark.parametrize("shape", [(7, 16), (1, 7, 16), (7, 3, 16)])
def test_the_norm_is_that_of_transformers(shape: tuple[int, ...]) -> None:
    module = Qwen2RMSNorm(16, eps=0.1)  # large enough to be seen

    def theirs(x: Tensor, weight: Tensor) -> Tensor:
        return exact_norm(SimpleNamespace(weight=weight, variance_epsilon=0.1), x)

    x, weight = normal(*shape), normal(16)
    module.weight.data = weight
    torch.testing.assert_close(norm(x, weight, 0.1), module(x), rtol=1e-5, atol=1e-5)
    assert_same(lambda x, w: norm(x, w, 0.1), theirs, x, weight)


def test_a_weight_that_does_not_learn_has_no_gradient_computed() -> None:
    weight = normal(16)
    x = normal(5, 16).requires_grad_()
    norm(x, weight, 1e-6).sum().backward()
    assert x.grad is not None
    assert weight.grad is None


def test_rotation_is_that_of_transformers() -> None:
    angles = normal(7, 1, 4).repeat(1, 1, 2)
    cos, sin = angles.cos(), angles.sin()

    def theirs(x: Tensor) -> Tensor:
        heads_first = x.transpose(0, 1).unsqueeze(0)
        rotated, _ = apply_rotary_pos_emb(heads_first, heads_first, cos[None, :, 0], sin[None, :, 0])
        return rotated[0].transpose(0, 1)

    assert_same(lambda x: rotate(x, cos, sin), theirs, normal(7, 3, 8))


def test_gating_is_that_of_transformers() -> None:
    assert_same(gate, lambda g, u: F.silu(g) * u, normal(2, 5, 16), normal(2, 5, 16))


def test_a_second_backward_pass_through_what_was_written_over_is_refused() -> None:
    """A wrong gradient would be worse: the first pass writes over what forward has kept."""
    g, u = normal(3, 4).requires_grad_(), normal(3, 4).requires_grad_()
    loss = gate(g * 1, u * 1).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# Policies


def scored(policy: PreTrainedModel) -> TokenScores:
    """Of two groups, whose completions have 1, 5, 3 and 4 tokens."""
    completions = torch.arange(20).view(4, 5) % 50
    return score(policy, PackedGroups().lay_out([[1, 2, 3], [4]], [0, 0, 1, 1], completions, [1, 5, 3, 4]), 0.7)


def plain_and_lean(family: str) -> tuple[PreTrainedModel, PreTrainedModel]:
    plain = tiny_model(family).train()
    plain.set_attn_implementation(PACKED_GROUPS)
    lean = copy.deepcopy(plain)
    use_lean_layers(lean)
    return plain, lean


def exact_norm(module: Any, x: Tensor) -> Tensor:
    return module.weight * x * (x.square().mean(-1, keepdim=True) + module.variance_epsilon).rsqrt()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_policy_computes_the_same_in_lean_layers(family: str, checkpointing: bool) -> None:
    plain, lean = (policy.double() for policy in plain_and_lean(family))
    for module in plain.modules():
        if hasattr(module, "variance_epsilon"):
            module.forward = partial(exact_norm, module)  # transformers' computes in float32
    if checkpointing:
        checkpoint_activations(lean)
    logprobs = []
    for policy in (plain, lean):
        scores = scored(policy)
        (scores.logprobs * torch.arange(20).view(4, 5)).sum().backward()
        logprobs.append(scores.logprobs)
    torch.testing.assert_close(logprobs[1], logprobs[0], rtol=0, atol=1e-12)
    for (name, theirs), ours in zip(plain.named_parameters(), lean.parameters(), strict=True):
        assert theirs.grad is not None
        assert ours.grad is not None
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-10, msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_in_bfloat16_too(family: str) -> None:
    """Under autocast, and with weights in it, where norms are transformers' own: rounding is theirs to choose."""
    plain, lean = plain_and_lean(family)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        difference = (scored(lean).logprobs - scored(plain).logprobs).abs().max()
    assert difference < 0.2, "of log-probabilities about −4: a few roundings"
    plain, lean = plain.bfloat16(), lean.bfloat16()
    x = torch.randn(3, 32).bfloat16()
    assert torch.equal(lean.model.norm(x), plain.model.norm(x))
    with torch.no_grad():
        assert (scored(lean).logprobs - scored(plain).logprobs).abs().max() < 0.3


@pytest.mark.parametrize("family", FAMILIES)
def test_norms_rotation_and_gating_are_all_replaced(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the test above would compare transformers with itself."""
    _, lean = plain_and_lean(family)
    called = []
    for function in (norm, rotate, gate):
        name = function.__name__
        monkeypatch.setattr(
            f"rlvr_pl.scoring.layers.{name}",
            lambda *inputs, f=function, n=name: (called.append(n), f(*inputs))[1],
        )
    scored(lean)
    norms_of_heads = 4 if family == "qwen3" else 0
    assert {n: called.count(n) for n in set(called)} == {"norm": 5 + norms_of_heads, "rotate": 4, "gate": 2}


def test_everyone_else_sees_the_policy_as_it_was() -> None:
    plain, lean = plain_and_lean("qwen2")
    assert repr(lean) == repr(plain)
    assert isinstance(lean.model.norm, Qwen2RMSNorm)
    assert why_not_covered(lean) is None, "the rollout engine serves it"
    assert lean.state_dict().keys() == plain.state_dict().keys()
    once = [type(module) for module in lean.modules()]
    use_lean_layers(lean)
    assert [type(module) for module in lean.modules()] == once, "once is enough"
    copied = copy.deepcopy(lean)
    with torch.no_grad():
        copied.model.norm.weight.mul_(2)
        assert not torch.allclose(scored(copied).logprobs, scored(lean).logprobs), "a copy has weights of its own"
    ids = torch.tensor([[1, 2, 3]])
    torch.testing.assert_close(lean(input_ids=ids).logits, plain(input_ids=ids).logits, rtol=0, atol=1e-5)


def test_a_limited_window_is_still_refused() -> None:
    shape = tiny_model("qwen2").config.to_dict()
    config = Qwen2Config(**{**shape, "use_sliding_window": True, "sliding_window": 4, "layer_types": None})
    config.layer_types = ["sliding_attention"] * config.num_hidden_layers
    windowed = AutoModelForCausalLM.from_config(config)
    use_lean_layers(windowed)
    assert "sliding_window" in str(why_not_packed(windowed))


def test_another_activation_stays_what_it_is() -> None:
    plain = tiny_model("qwen2", hidden_act="gelu").train()
    plain.set_attn_implementation(PACKED_GROUPS)
    lean = copy.deepcopy(plain)
    use_lean_layers(lean)
    with torch.no_grad():
        torch.testing.assert_close(scored(lean).logprobs, scored(plain).logprobs, rtol=0, atol=1e-5)
