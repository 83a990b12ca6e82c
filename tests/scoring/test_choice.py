"""Which policies have their groups packed, and what is said of the others."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, MistralConfig, PreTrainedModel, Qwen2Config

from rlvr_pl.pretrained import EMBEDDED_MODEL, load_config, load_policy
from rlvr_pl.scoring import PackedGroups, PaddedRows, choose_layout, score
from rlvr_pl.scoring.attention import PACKED_GROUPS
from rlvr_pl.scoring.choice import why_not_packed
from tests.helpers.policies import FAMILIES, tiny_model

torch.set_num_threads(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_decoder_s_families_have_their_groups_packed(family: str, dtype: torch.dtype) -> None:
    model = tiny_model(family).to(dtype)
    assert isinstance(choose_layout(model), PackedGroups)
    assert model.config._attn_implementation == PACKED_GROUPS


def test_the_embedded_policy_too_under_autocast() -> None:
    policy = load_policy("embedded", load_config("embedded"))
    with torch.autocast("cpu", torch.bfloat16):
        assert isinstance(choose_layout(policy), PackedGroups)


def tiny(config: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config)


SMALL = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
}


def test_a_limited_window_is_not_packed_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    windowed = tiny(MistralConfig(**SMALL, sliding_window=4))
    assert why_not_packed(tiny(MistralConfig(**SMALL, sliding_window=None))) is None
    with caplog.at_level(logging.INFO):
        assert isinstance(choose_layout(windowed), PaddedRows)
    (message,) = [record.message for record in caplog.records if "packed" in record.message]
    assert "its attention has a sliding_window" in message
    assert windowed.config._attn_implementation == "sdpa", "as it was"


def test_a_layer_that_mixes_tokens_by_other_means_is_found_out() -> None:
    """As recurrent layers and convolutions do: the last token of another sequence leaks into the next one."""

    class Leaky(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            before = torch.cat((torch.zeros_like(x[:, :1]), x[:, :-1]), dim=1)
            return self.inner(x + before)

    model = tiny(Qwen2Config(**SMALL))
    model.model.layers[1].mlp = Leaky(model.model.layers[1].mlp)
    reason = why_not_packed(model)
    assert reason is not None
    assert "differ from those of single sequences" in reason
    assert model.config._attn_implementation == "sdpa"


def test_a_model_whose_attention_cannot_be_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    monkeypatch.setattr(type(model), "_supports_attention_backend", False)
    assert why_not_packed(model) == "its attention cannot be replaced"


def test_the_reference_decides_too() -> None:
    assert isinstance(choose_layout(tiny_model(), tiny(MistralConfig(**SMALL, sliding_window=4))), PaddedRows)


def test_without_a_packing_the_model_attends_as_before() -> None:
    """generate() and padded rows go through the same function."""
    model = load_policy(str(EMBEDDED_MODEL), load_config("embedded"))
    ids = torch.randint(5, 400, (3, 17), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :9] = 0
    expected = [model(ids).logits, model(ids, attention_mask=mask).logits]
    assert why_not_packed(model) is None
    assert model.config._attn_implementation == PACKED_GROUPS
    actual = [model(ids).logits, model(ids, attention_mask=mask).logits]
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@pytest.mark.parametrize("grad", [False, True])
def test_the_same_micro_batch_has_the_same_scores_with_and_without_gradient(grad: bool) -> None:
    """To the bit, so that the ratio of an unchanged policy is exactly 1."""
    policy = load_policy("embedded", load_config("embedded")).train()
    layout = choose_layout(policy)
    ids = torch.randint(5, 400, (6, 40), generator=torch.Generator().manual_seed(0))
    sequences = layout.lay_out([[5, 6, 7] * 9, [8] * 11], [0, 0, 0, 1, 1, 1], ids, [40, 3, 17, 29, 1, 12])
    with torch.no_grad():
        expected = score(policy, sequences, 1.0).logprobs
    with torch.set_grad_enabled(grad):
        assert torch.equal(score(policy, sequences, 1.0).logprobs, expected)
