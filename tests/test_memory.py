"""The memory estimate, against counts by hand and against what a run really holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen2Config

from rlvr_pl.lora import LoRA
from rlvr_pl.main import main
from rlvr_pl.memory import LiveMemory, MemoryEstimate, estimate_memory
from rlvr_pl.module import GroupPolicyModule
from rlvr_pl.pretrained import load_config
from rlvr_pl.types import PromptBatch
from tests.helpers.policies import make_tiny_policy
from tests.helpers.runs import tiny_run

torch.set_num_threads(1)

SETTINGS: dict[str, Any] = {
    "precision": "bf16-mixed",
    "prompt_tokens": 80,
    "completion_tokens": 140,
    "group_size": 8,
    "rollout_slots": 64,
    "micro_batch_tokens": 3000,
    "gradient_checkpointing": True,
    "reference": False,
    "release_rollout_memory": True,
}


def qwen2(hidden: int, intermediate: int, layers: int, heads: int) -> Qwen2Config:
    return Qwen2Config(
        vocab_size=151_936,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )


def test_the_counts_of_qwen_by_hand() -> None:
    """Qwen2.5-0.5B, whose card says 0.49B parameters, 0.36B without the embedding."""
    body = 24 * (
        (896 * 896 + 896)  # q
        + 2 * (896 * 128 + 128)  # k and v
        + 896 * 896  # o
        + 3 * 896 * 4864  # gate, up, down
        + 2 * 896  # norms
    )
    parameters = body + 896 + 151_936 * 896
    assert round(parameters / 1e9, 2) == 0.49
    memory = estimate_memory(qwen2(896, 4864, 24, 14), **SETTINGS)
    assert memory.rollout["weights"] == memory.update["gradients"] == 4 * parameters
    assert memory.rollout["AdamW's moments"] == 8 * parameters
    cosines_and_sines = 2 * 256 * 64 * 4
    assert memory.rollout["cache of keys and values"] == 2 * 24 * 64 * 256 * 128 * 2 + cosines_and_sines
    norms = 24 * 2 * 896 + 896
    assert memory.rollout["weights' copy for decoding"] == pytest.approx(2 * (parameters - norms), rel=1e-3)


def test_the_recipe_fits_where_it_says() -> None:
    """configs/qwen_gsm8k.yaml: under 40 GB; with Qwen2.5-0.5B in a GPU of 24 GB."""
    recipe = {
        **SETTINGS,
        "prompt_tokens": 512,
        "completion_tokens": 1024,
        "rollout_slots": 256,
        "micro_batch_tokens": 16384,
    }
    assert 30e9 < estimate_memory(qwen2(1536, 8960, 28, 12), **recipe).peak < 40e9
    assert estimate_memory(qwen2(896, 4864, 24, 14), **recipe).peak < 20e9


def test_what_each_setting_adds() -> None:
    shape = qwen2(64, 128, 2, 4)
    base = estimate_memory(shape, **SETTINGS)

    def changed(**changes: Any) -> MemoryEstimate:
        return estimate_memory(shape, **{**SETTINGS, **changes})

    kept = changed(release_rollout_memory=False)
    engine = base.rollout["weights' copy for decoding"] + base.rollout["cache of keys and values"]
    assert sum(kept.update.values()) - sum(base.update.values()) == engine
    assert changed(reference=True).update["reference policy"] == base.update["weights"]
    exact = changed(precision="32-true").rollout
    assert exact["weights' copy for decoding"] == 0, "it reads the policy's own"
    assert exact["cache of keys and values"] == pytest.approx(2 * base.rollout["cache of keys and values"], rel=0.01)
    assert 2 * changed(precision="bf16-true").update["weights"] == base.update["weights"]
    adapter = 2 * 8 * ((64 + 64) + 2 * (64 + 32) + (64 + 64) + 3 * (64 + 128)) * 4
    adapted = changed(lora=LoRA(r=8), reference=True)
    assert adapted.update["weights"] - base.update["weights"] == adapted.update["gradients"] == adapter
    assert adapted.rollout["AdamW's moments"] == 2 * adapter
    assert "reference policy" not in adapted.update, "the policy without its adapter is the reference"
    prompts = 64 // 8 * 80 * 2 * 2 * 32 * 2  # so many groups, tokens, layers, keys and values, and bytes of a bfloat16
    on_cpu = changed(on_cpu=True).rollout["cache of keys and values"]
    assert on_cpu - base.rollout["cache of keys and values"] == pytest.approx(prompts, rel=0.01)
    without = changed(gradient_checkpointing=False).update["activations and logits"]
    assert without > base.update["activations and logits"]


def test_a_deep_policy_needs_what_shallow_ones_say(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {**SETTINGS, "micro_batch_tokens": 500, "group_size": 2}
    shape = qwen2(64, 128, 5, 4)
    said = estimate_memory(shape, **settings)
    monkeypatch.setattr("rlvr_pl.memory._LAYERS_RUN", (5, 6))  # all five are run
    assert said == estimate_memory(shape, **settings)


class Phases(GroupPolicyModule):
    """Notes the peak of each phase of its last training step."""

    memory: LiveMemory
    rollout = update_ = 0

    def generate(self, prompts: PromptBatch) -> Any:
        self.memory.restart()
        result = super().generate(prompts)
        type(self).rollout = self.memory.peak
        return result

    def update(self, *args: Any) -> Any:
        self.memory.restart()
        result = super().update(*args)
        type(self).update_ = self.memory.peak
        return result


@pytest.mark.parametrize(
    ("precision", "beta", "release", "checkpointing", "rank"),
    [
        ("32-true", 0.0, False, False, None),
        ("bf16-mixed", 0.0, True, True, None),
        ("bf16-mixed", 0.1, False, False, None),
        ("bf16-true", 0.1, True, True, None),
        ("bf16-mixed", 0.1, False, True, 16),
        ("32-true", 0.0, False, False, 16),
    ],
)
def test_a_run_holds_what_was_estimated(
    precision: str,
    beta: float,
    release: bool,
    checkpointing: bool,
    rank: int | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy = make_tiny_policy(
        tmp_path / "policy", vocabulary=2000, hidden_size=96, head_dim=24, intermediate_size=256, num_hidden_layers=4
    )
    shared = {"gradient_checkpointing": checkpointing, "release_rollout_memory": release}
    expected = estimate_memory(
        load_config(policy),
        **{**SETTINGS, **shared, "precision": precision, "reference": beta > 0, "group_size": 2},
        lora=None if rank is None else LoRA(rank),
        on_cpu=True,
    )
    settings = {f"model.{key}": str(value).lower() for key, value in shared.items()}
    if rank is not None:
        settings["model.lora.r"] = str(rank)
    with LiveMemory() as memory:
        monkeypatch.setattr(Phases, "memory", memory, raising=False)
        monkeypatch.setattr("rlvr_pl.cli.GroupPolicyModule", Phases)
        main(
            tiny_run(
                policy,
                tmp_path,
                **settings,
                **{
                    "trainer.precision": precision,
                    "model.loss.beta": beta,
                    "model.rewards": '[{"function": "tests.helpers.runs.text_length"}]',
                    "model.optimizer.fused": "true",
                    "model.rollout_slots": SETTINGS["rollout_slots"],
                    "model.group_size": 2,
                    "model.max_completion_tokens": SETTINGS["completion_tokens"],
                    "model.micro_batch_tokens": SETTINGS["micro_batch_tokens"],
                    "data.source.train_size": 80,
                    "data.prompts_per_rollout": 32,
                    "data.max_rollouts": 2,
                },
            )
        )
    assert Phases.rollout == pytest.approx(sum(expected.rollout.values()), rel=0.1)
    assert Phases.update_ == pytest.approx(sum(expected.update.values()), rel=0.1)
    saved = (tmp_path / "run" / "version_0" / "checkpoints" / "last.ckpt").stat().st_size
    assert saved == pytest.approx(3 * expected.update["gradients"], rel=0.15), "what learns, and two moments"
