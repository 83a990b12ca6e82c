"""What a plan says, against counts of the real thing: operators, parameters, files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PretrainedConfig, Qwen2Config

from rlvr_pl.lora import LoRA, add_adapter
from rlvr_pl.main import main
from rlvr_pl.memory import MemoryEstimate
from rlvr_pl.plan.advice import advise
from rlvr_pl.plan.settings import PlannedRun
from rlvr_pl.plan.storage import count_storage
from rlvr_pl.plan.work import Device, Lengths, Seconds, Work, count_work, estimate_seconds, tokens
from rlvr_pl.pretrained import checkpoint_activations
from rlvr_pl.scoring import PackedGroups, choose_layout, score
from tests.helpers.paths import CONFIGS
from tests.helpers.policies import tiny_model

torch.set_num_threads(1)

B, G, P, T = 3, 4, 5, 20
LENGTHS = Lengths(P, T)
LAYERS = 3
QKV = 32 * 32 + 2 * 16 * 32  # numbers of the tiny policy's first three projections
DOWN = 64 * 32


def planned(config: PretrainedConfig, **changes: Any) -> PlannedRun:
    settings = {
        "precision": "32-true",
        "devices": 1,
        "sharded": False,
        "prompts_per_rollout": B,
        "group_size": G,
        "prompt_tokens": P,
        "completion_tokens": T,
        "max_rollouts": 10,
        "minibatches": 4,
        "epochs": 1,
        "rescored": False,
        "reference": False,
        "rollout_slots": 8,
        "micro_batch_tokens": 1000,
        "gradient_checkpointing": False,
        "release_rollout_memory": False,
        "lora": None,
    }
    return PlannedRun(config=config, **(settings | changes))  # type: ignore[arg-type]


def tiny(**changes: Any) -> PlannedRun:
    return planned(tiny_model(num_hidden_layers=LAYERS).config, **changes)


def qwen(**changes: Any) -> PlannedRun:
    """Qwen2.5-1.5B under its recipe."""
    config = Qwen2Config(
        vocab_size=151_936,
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    recipe = {"precision": "bf16-mixed", "prompts_per_rollout": 128, "group_size": 8, "rollout_slots": 256}
    return planned(config, **(recipe | changes))


# Work


def pairs() -> float:
    """Each token with each that it looks at, itself by half."""
    of_prompt = sum(i + 0.5 for i in range(P))
    return B * (of_prompt + G * sum(P + i + 0.5 for i in range(T)))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("lora", [None, LoRA(r=4)], ids=["weights", "adapter"])
def test_an_update_s_products_are_those_that_are_run(lora: LoRA | None, checkpointing: bool) -> None:
    policy = tiny_model(num_hidden_layers=LAYERS).train()
    if lora is not None:
        add_adapter(policy, lora, seed=0)
    if checkpointing:
        checkpoint_activations(policy)
    choose_layout(policy)
    members = [prompt for prompt in range(B) for _ in range(G)]
    ids = torch.ones(B * G, T, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        score(policy, PackedGroups().lay_out([[1] * P] * B, members, ids, [T] * (B * G)), 1.0).logprobs.sum().backward()
    run = tiny(lora=lora, gradient_checkpointing=checkpointing)
    attention = 4 * (LAYERS * 32) * pairs()  # which the counter does not know on a CPU
    counted = counter.get_total_flops() + attention * (1 + 2.5 + checkpointing)
    row = B * P + B * G * T
    if lora is None:
        counted += 2 * run.head * B * G * T  # nor an addition in place, to the head's gradient
    else:  # nothing below the first adapters learns; a checkpoint stops before the last one's B
        counted += 2 * (QKV + 3 * 4 * 32) * row + (2 * LAYERS * 4 * 32 * row if checkpointing else 0)
    assert count_work(run, LENGTHS).update == pytest.approx(counted, rel=1e-9)


def test_what_a_rollout_s_work_is_made_of() -> None:
    run = tiny()
    assert tokens(run, LENGTHS) == (15, 240)
    work = count_work(run, LENGTHS)
    body = LAYERS * (QKV + 32 * 32 + 3 * DOWN)
    assert (run.body, run.head) == (body, 64 * 32)
    attention = 4 * LAYERS * 32
    assert work.prefill == 2 * body * 15 + attention * 15 * P / 2 + 2 * run.head * B
    assert work.decode == 2 * (body + run.head) * 240 + attention * 240 * (P + T / 2)
    assert work.prefill - 2 * run.head * B + work.decode == pytest.approx(
        2 * body * 255 + attention * pairs() + 2 * run.head * 240
    )
    forward = 2 * body * 255 + attention * pairs() + 2 * run.head * 240
    assert (work.old_policy, work.reference) == (0, 0)
    assert count_work(replace(run, rescored=True), LENGTHS).old_policy == pytest.approx(0.75 * forward)
    assert count_work(replace(run, reference=True), LENGTHS).reference == pytest.approx(forward)
    assert count_work(replace(run, epochs=2), LENGTHS).update == 2 * work.update
    assert work.total == work.prefill + work.decode + work.update


def test_the_time_is_that_of_the_slower_of_memory_and_products() -> None:
    run = tiny(devices=2, prompts_per_rollout=4)
    weights = (run.body + run.head) * 4
    cached = 2 * LAYERS * 16 * 4 * (P + T / 2)  # bytes of a row's mean keys and values
    slow_memory = estimate_seconds(run, LENGTHS, Device(flops=1e15, bandwidth=1e6))
    assert slow_memory.decode == pytest.approx(T * (weights + 8 * cached) / 1e6), "8 rows on each of two devices"
    assert slow_memory.optimizer == pytest.approx(4 * 7 * run.learning / 1e6)
    slow_products = estimate_seconds(run, LENGTHS, Device(flops=1e6, bandwidth=1e15))
    work: Work = count_work(run, LENGTHS)
    expected = Seconds(work.prefill / 2e6, work.decode / 2e6, 0.0, work.update / 2e6, slow_products.optimizer)
    assert slow_products == expected
    fewer = replace(run, rollout_slots=2)
    four_times = estimate_seconds(fewer, LENGTHS, Device(1e15, 1e6)).decode
    assert four_times == pytest.approx(4 * T * (weights + 2 * cached) / 1e6), "one after another"


# Counts


def test_the_counts_of_qwen() -> None:
    """Its card: 1.54 billion parameters, 1.31 without the embedding."""
    run = qwen()
    assert (round(run.weights / 4e9, 2), round(run.body / 1e9, 2)) == (1.54, 1.31)
    assert run.learning == run.weights
    assert run.cached_bytes == 28 * 2 * 256 * 2
    storage = count_storage(run)
    assert round(storage.checkpoint / 1e9, 1) == 18.5
    assert storage.saving == 151_936 * 1536 * 4
    assert storage.resuming == 4 * run.weights
    adapted = qwen(lora=LoRA(r=8))
    layer = 2 * (1536 + 1536) + 2 * (1536 + 256) + 3 * (1536 + 8960)
    assert adapted.adapter == 28 * 8 * layer
    assert adapted.learning == 4 * adapted.adapter
    assert (adapted.weights, adapted.body) == (run.weights, run.body)
    assert count_storage(adapted).checkpoint == 12 * adapted.adapter


# What to change


def test_what_does_not_fit_is_made_to_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes come in order, and only for the phase that is too large."""

    def memory(run: PlannedRun) -> MemoryEstimate:
        learning = 4e9 if run.lora is None else 0.1e9
        cache = 20e9 * run.rollout_slots / 256
        activations = (2e9 if run.gradient_checkpointing else 9e9) * run.micro_batch_tokens / 16384
        standing = {"weights": 4e9, "AdamW's moments": 2 * learning}
        update = {**standing, "gradients": learning, "activations and logits": activations}
        if not run.release_rollout_memory:
            update["cache of keys and values"] = cache
        return MemoryEstimate({**standing, "cache of keys and values": cache}, update)  # type: ignore[arg-type]

    monkeypatch.setattr(PlannedRun, "memory", memory)
    run = qwen(micro_batch_tokens=16384, prompt_tokens=512, completion_tokens=1024)

    def settings(gigabytes: float) -> list[str]:
        return [change.setting for change in advise(run, memory(run), gigabytes * 1e9)]

    assert settings(60) == []
    assert settings(35) == ["--model.release_rollout_memory true"]
    assert settings(25) == [
        "--model.release_rollout_memory true",
        "--model.gradient_checkpointing true",
        "--model.rollout_slots 128",
    ]
    assert settings(15) == [
        "--config configs/lora.yaml",
        "--model.release_rollout_memory true",
        "--model.rollout_slots 64",
    ]
    assert settings(2)[0] == "--config configs/lora.yaml", "and then whatever there is"
    assert advise(run, memory(run), 2e9)[-1].memory.peak > 2e9


def test_in_parts_a_device_holds_its_share_and_the_engine_all() -> None:
    """Qwen2.5-1.5B on 4 devices: weights, gradients and moments in float32, and a bfloat16 copy to generate with."""
    alone, shared = qwen().memory(), qwen(devices=4, sharded=True).memory()
    for part in ("weights", "AdamW's moments", "gradients"):
        assert shared.update[part] == alone.update[part] // 4
    assert shared.update["weights"] == qwen().weights // 4
    embedding = 151_936 * 1536
    copy = 2 * (qwen().body + embedding) + 4 * embedding  # a tied head is a copy of its own in bfloat16
    assert shared.rollout["weights' copy for decoding"] == copy
    layer = qwen().body // 28 * 4
    whole = shared.update["weights and gradients of a pass"] / 2
    assert whole == pytest.approx(4 * embedding + 2 * layer, rel=1e-3), "biases and norms beside them"
    assert (
        "weights' copy for decoding" not in qwen(devices=4, sharded=True, release_rollout_memory=True).memory().update
    )
    assert qwen(devices=4).memory().update["gradients on their way to other devices"] == qwen().learning


def test_several_devices_are_advised_to_share() -> None:
    run = qwen(devices=4, prompt_tokens=512, completion_tokens=512, micro_batch_tokens=2048, rollout_slots=16)
    changes = advise(run, run.memory(), 24e9)
    assert changes[0].setting == "--config configs/sharded.yaml"
    assert "--config configs/lora.yaml" not in [change.setting for change in changes], "which has no shards"


# The command


@pytest.fixture
def shape(tmp_path: Path) -> str:
    """A folder with a config.json and nothing else."""
    tiny_model(max_position_embeddings=2048).config.save_pretrained(tmp_path / "shape")
    return str(tmp_path / "shape")


def small(shape: str, *more: str) -> list[str]:
    settings = {
        "model.policy": shape,
        "data.max_prompt_tokens": 64,
        "model.max_completion_tokens": 32,
        "model.micro_batch_tokens": 600,
        "model.rollout_slots": 64,
    }
    flags = [f"--{key}={value}" for key, value in settings.items()]
    return ["plan", f"--config={CONFIGS / 'quickstart.yaml'}", *flags, *more]


def test_a_plan_needs_a_config_json_alone(shape: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(small(shape, "--tflops", "2", "--utilization", "0.5", "--bandwidth", "100", "--prompt_tokens", "40"))
    shown = capsys.readouterr().out
    assert "Qwen2ForCausalLM" in shown
    assert "16 prompts × 16 completions: 640 prompt tokens, 8,192 completion tokens (40 and 32 each)" in shown
    assert "at 1 TFLOP/s reached and 100 GB/s" in shown
    assert "24 rollouts take" in shown
    assert "cache of keys and values" in shown


def test_the_overlay_is_planned(shape: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(small(shape, f"--config={CONFIGS / 'sharded.yaml'}", "--trainer.devices=2"))
    shown = capsys.readouterr().out
    assert "32-true, devices: 2, each with its part of the policy" in shown
    assert "weights and gradients of a pass" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tflops", "2"], "a time needs both --tflops and --bandwidth"),
        (["--memory", "0"], "argument --memory: 0 is not a number above 0. See python -m rlvr_pl plan --help"),
        (["--prompt_tokens", "65"], "--prompt_tokens is 65; it must be from 1 to the longest, 64"),
        (
            ["--trainer.precision=64-true"],
            "trainer.precision is 64-true; a plan knows 32-true, bf16-mixed and bf16-true",
        ),
        (
            ["--model.lora.target_modules=[query]"],
            "model.lora.target_modules: 'query' cannot be adapted: the policy has ",
        ),
        (["--model.polcy=x"], "Did you mean model.policy?"),
    ],
)
def test_a_mistake_ends_in_one_line(
    arguments: list[str], message: str, shape: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(small(shape, *arguments))
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
