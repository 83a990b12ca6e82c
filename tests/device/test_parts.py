"""The engine and the update on a simulated GPU: the CPU's tokens, and no wait but those that are accounted for."""

from __future__ import annotations

import inspect
import math
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import varlen

from rlvr_pl.losses import GRPO, GSPO
from rlvr_pl.pretrained import checkpoint_activations
from rlvr_pl.rollout import GenerateEngine, LeanEngine, choose_engine
from rlvr_pl.scoring import PackedGroups, choose_layout, score
from rlvr_pl.types import Rollout
from rlvr_pl.update import Update, cut_into_minibatches
from tests.helpers.engines import PROMPTS, assert_same, completions, sample_with
from tests.helpers.policies import FAMILIES, tiny_model
from tests.helpers.simulated_gpu import GPU, SimulatedCapture, SimulatedGPU, simulated_gpu
from tests.helpers.varlen import slow_varlen_attn

torch.set_num_threads(1)

VOCABULARY = 16_512  # above 128², so that sampling looks for a token's block first
TOKENS = 20
# Budgets. A regression that adds a wait to a loop breaks them.
WAITS_A_CUT = 1  # the lengths
UPLOADS_A_CUT = 1  # the advantages
UPLOADS_A_MICRO_BATCH = 2  # which rows, and where each of their tokens goes
UPLOADS_MASKED = 8  # at the first forward pass, for masked attention: four tensors each for prompts and completions
UPLOADS_BY_LENGTH = 2  # at the first forward pass, the bounds of segments, and where their keys are
WAITS_A_ROLLOUT = 5  # what was written, the longest, and whether all is finite
STEPS_A_WAIT = 8  # decode steps between two looks at which rows have ended


def total(counter: Any) -> int:
    return sum(counter.values())


@pytest.mark.parametrize("temperature", [1.0, 0.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, "mixed"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_rollout_is_that_of_the_cpu(family: str, dtype: torch.dtype | str, temperature: float) -> None:
    model = tiny_model(family, tied=True, vocab_size=VOCABULARY)
    if isinstance(dtype, torch.dtype):
        model.to(dtype)

    def rollout(device: str) -> Rollout:
        mixed = torch.autocast(device, torch.bfloat16) if dtype == "mixed" else nullcontext()
        with mixed:
            return sample_with(LeanEngine, model, group_size=3, tokens=TOKENS, temperature=temperature, slots=5)

    expected = rollout("cpu")
    with simulated_gpu():
        model.to("cuda")
        actual = rollout("cuda")
        assert actual.completion_ids.device == actual.sampling_logprobs.device == GPU
        assert SimulatedCapture.captured > 0
    if dtype == torch.float32:  # in half precision a captured step, which is masked, rounds otherwise
        assert_same(actual, expected)


def attention_by_length(
    q: Tensor, k: Tensor, v: Tensor, boundaries: Tensor, starts: Tensor, one: int, columns: int, **settings: Any
) -> Tensor:
    """What ``torch.nn.attention.varlen.varlen_attn`` computes for a decode step, without a wait."""
    assert (one, settings.pop("enable_gqa")) == (1, True)
    used = settings.pop("seqused_k")
    assert not settings
    assert boundaries.is_cuda
    assert starts.is_cuda
    keys, values = (x.view(-1, columns, *x.shape[1:])[: len(q)].transpose(1, 2) for x in (k, v))
    mask = (torch.arange(columns, device=q.device) < used.unsqueeze(1))[:, None, None]
    attended = torch.nn.functional.scaled_dot_product_attention(q.unsqueeze(2), keys, values, mask, enable_gqa=True)
    return attended.squeeze(2)


def test_attention_by_length_on_a_gpu_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(vocab_size=VOCABULARY).to(torch.bfloat16)
    signature = inspect.signature(varlen.varlen_attn)
    with simulated_gpu():
        model.to("cuda")
        masked = sample_with(LeanEngine, model, group_size=3, tokens=TOKENS, slots=5)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
        monkeypatch.setattr(varlen, "varlen_attn", attention_by_length)
        monkeypatch.setattr(attention_by_length, "__signature__", signature, raising=False)
        SimulatedCapture.captured = 0
        by_length = sample_with(LeanEngine, model, group_size=3, tokens=TOKENS, slots=5)
        assert SimulatedCapture.captured == 5, "one for each number of rows, whatever the columns"
    assert completions(by_length)[0][0] == completions(masked)[0][0], "the first token comes from the prompt alone"


@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_generate_on_a_gpu(temperature: float) -> None:
    model = tiny_model(vocab_size=VOCABULARY)
    expected = sample_with(GenerateEngine, model, group_size=2, tokens=TOKENS, temperature=temperature)
    with simulated_gpu():
        model.to("cuda")
        actual = sample_with(GenerateEngine, model, group_size=2, tokens=TOKENS, temperature=temperature)
        assert actual.completion_ids.device == GPU
    assert_same(actual, expected)


def test_decode_steps_wait_for_nothing_and_the_host_looks_every_few(monkeypatch: pytest.MonkeyPatch) -> None:
    with simulated_gpu() as gpu:
        model = tiny_model(vocab_size=VOCABULARY).to("cuda")
        engine = choose_engine(model, (-1,), 0, slots=64)
        sample_with(engine, model, group_size=2, tokens=40)
        gpu.clear()
        sample_with(engine, model, group_size=2, tokens=40)
    assert total(gpu.waits) <= math.ceil(40 / STEPS_A_WAIT) + WAITS_A_ROLLOUT


def update_of(gpu: SimulatedGPU, beta: float, autocast: bool, checkpointing: bool, by_length: bool = False) -> None:
    model = tiny_model(tied=True, vocab_size=VOCABULARY).train().to("cuda")
    if checkpointing:
        checkpoint_activations(model)
    reference = tiny_model(tied=True, vocab_size=VOCABULARY, seed=1).to("cuda")
    loss = GRPO(beta=beta) if beta else GSPO()
    rollout = sample_with(LeanEngine, model, group_size=4, tokens=TOKENS)
    advantages = loss.advantages(torch.arange(len(PROMPTS) * 4.0).view(-1, 4) % 3).flatten()
    mixed = torch.autocast("cuda", torch.bfloat16, cache_enabled=False) if autocast else nullcontext()
    with mixed:
        layout = choose_layout(model, *([reference] if beta else []))
    assert isinstance(layout, PackedGroups)
    gpu.clear()
    minibatches = cut_into_minibatches(rollout, advantages, loss, layout, 2, 60, TOKENS)
    micro_batches = sum(len(minibatch.micro_batches) for minibatch in minibatches)
    assert total(gpu.waits) == WAITS_A_CUT
    assert total(gpu.uploads) == UPLOADS_A_CUT + UPLOADS_A_MICRO_BATCH * micro_batches
    gpu.clear()
    with mixed:
        update = Update(minibatches, loss, model, [reference] if beta else [], 1.0, GPU)
        for minibatch in minibatches:
            for numerator in update.losses(minibatch):
                (numerator / minibatch.denominator).backward()
    if not by_length:  # what stands for its kernel waits
        assert total(gpu.waits) == 0
    assert total(gpu.uploads) == (UPLOADS_BY_LENGTH if by_length else UPLOADS_MASKED) * micro_batches
    assert all(parameter.grad is not None and parameter.grad.is_cuda for parameter in model.parameters())
    update.stats.add_step(1.0)
    assert math.isfinite(update.stats.means()["kl"])


@pytest.mark.parametrize(
    ("beta", "autocast", "checkpointing"), [(0.0, False, False), (0.1, True, False), (0.0, True, True)]
)
def test_an_update_keeps_its_budget_of_waits_and_uploads(beta: float, autocast: bool, checkpointing: bool) -> None:
    with simulated_gpu() as gpu:
        update_of(gpu, beta, autocast, checkpointing)


def test_an_update_on_a_gpu_whose_attention_reads_by_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlen, "varlen_attn", slow_varlen_attn)
    with simulated_gpu() as gpu:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
        monkeypatch.setattr("rlvr_pl.rollout.cache.reads_by_length", lambda cache: False)
        update_of(gpu, beta=0.1, autocast=True, checkpointing=True, by_length=True)


def test_a_rollout_that_teaches_nothing_has_an_empty_micro_batch_on_the_gpu() -> None:
    with simulated_gpu():
        model = tiny_model(tied=True).train().to("cuda")
        rollout = sample_with(LeanEngine, model, group_size=2, tokens=4)
        layout = choose_layout(model)
        (minibatch,) = cut_into_minibatches(rollout, torch.zeros(len(PROMPTS) * 2), GSPO(), layout, 1, 100, 4)
        assert len(minibatch.micro_batches) == 1
        for numerator in Update([minibatch], GSPO(), model, [], 1.0, GPU).losses(minibatch):
            (numerator / minibatch.denominator).backward()
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        assert gradients
        assert all(gradient.device == GPU and not gradient.any() for gradient in gradients)


def test_under_half_precision_the_head_is_multiplied_in_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    matmul = Tensor.__matmul__

    def spy(a: Tensor, b: Tensor) -> Tensor:
        seen.append(torch.backends.cuda.matmul.fp32_precision)
        return matmul(a, b)

    with simulated_gpu():
        model = tiny_model(tied=True).train().to("cuda")
        layout = choose_layout(model)
        rows = layout.lay_out([[5, 6], [7]], [0, 1], torch.tensor([[3, 4], [6, 7]], device="cuda"), [2, 1])
        monkeypatch.setattr("torch.Tensor.__matmul__", spy)
        score(model, rows, 1.0)
        assert seen == [torch.backends.cuda.matmul.fp32_precision], "32-true multiplies as PyTorch is set to"
        with torch.autocast("cuda", torch.bfloat16):
            score(model, rows, 1.0)
    assert seen[-1:] == ["tf32"]


@pytest.mark.parametrize("vocabulary", [64, VOCABULARY])
def test_sampling_is_deterministic_where_that_is_asked_for(vocabulary: int) -> None:
    """CUDA's cumulative sum is refused then: the tokens come without one, and are the same."""
    model = tiny_model(vocab_size=vocabulary)
    expected = sample_with(LeanEngine, model, group_size=3, tokens=TOKENS, slots=5)
    torch.use_deterministic_algorithms(True)
    try:
        with simulated_gpu():
            model.to("cuda")
            actual = sample_with(LeanEngine, model, group_size=3, tokens=TOKENS, slots=5)
            with pytest.raises(RuntimeError, match="cumsum"):
                torch.ones(3, device="cuda").cumsum(0)
    finally:
        torch.use_deterministic_algorithms(False)
    assert_same(actual, expected)
