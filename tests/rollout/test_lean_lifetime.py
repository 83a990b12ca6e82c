"""What the lean engine keeps from call to call, and what an interruption leaves of it."""

from __future__ import annotations

import gc
import weakref
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from rlvr_pl.rollout import LeanEngine, graphs
from rlvr_pl.rollout.decoder import Decoder
from rlvr_pl.scoring import score
from tests.helpers.engines import (
    STOP_IDS,
    assert_same,
    completions,
    sample,
    sample_again,
    sequences_of,
    uniforms,
)
from tests.helpers.policies import tiny_model

torch.set_num_threads(1)


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


def test_what_is_released_is_free_and_made_anew_by_the_next_call() -> None:
    engine = LeanEngine(tiny_model(), STOP_IDS, 0)
    expected = sample_again(engine)
    cache, copy = weakref.ref(engine.rows.cache), weakref.ref(engine.weights)
    gc.disable()
    try:
        engine.release()
        assert cache() is copy() is None
    finally:
        gc.enable()
    engine.release()
    assert_same(sample_again(engine), expected)


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
    scores = score(model, sequences_of(trained), 1.0)
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
