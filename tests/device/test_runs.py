"""Whole runs on a simulated GPU, through the command line and Lightning's own accelerator, strategy and precision."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from rlvr_pl.main import main
from rlvr_pl.module import GroupPolicyModule
from rlvr_pl.pretrained import load_config, load_policy
from tests.helpers.paths import CONFIGS
from tests.helpers.policies import make_tiny_policy
from tests.helpers.runs import last_state, read_scalars
from tests.helpers.simulated_gpu import SimulatedCapture, simulated_gpu

VOCABULARY = 16_512  # above the size from which sampling looks for a token's block first


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny policy with a large vocabulary."""
    return make_tiny_policy(tmp_path_factory.mktemp("large"), vocabulary=VOCABULARY)


def arguments(command: str, save_dir: Path, policy: str, **overrides: Any) -> list[str]:
    """A command with the shipped configuration for a GPU, made small."""
    settings = {
        "trainer.enable_progress_bar": "false",
        "trainer.logger.save_dir": save_dir,
        "model.policy": policy,
        "model.rewards": '[{"function": "tests.helpers.runs.text_length"}]',
        "model.group_size": 4,
        "model.max_completion_tokens": 6,
        "model.minibatches_per_rollout": 2,
        "model.micro_batch_tokens": 600,
        "model.rollout_slots": 12,
        "data.source": "rlvr_pl.data.EmbeddedProblems",
        "data.source.train_size": 24,
        "data.source.test_size": 4,
        "data.val_size": 4,
        "data.prompts_per_rollout": 4,
        "data.max_rollouts": 2,
        **overrides,
    }
    return [command, f"--config={CONFIGS}/gspo.yaml", *(f"--{key}={value}" for key, value in settings.items())]


def test_a_policy_loads_under_the_training_device_without_accelerate(
    large: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "accelerate" else find(name, *a))
    with simulated_gpu(), torch.device("cuda", 0):
        assert load_policy(large, load_config(large)).device.type == "cpu", "the strategy moves it, once"


@pytest.mark.parametrize(
    ("precision", "beta"), [("32-true", 0.04), ("bf16-mixed", 0.0), ("bf16-mixed", 0.04), ("bf16-true", 0.04)]
)
def test_fit_with_its_baseline_and_its_last_test(precision: str, beta: float, large: str, tmp_path: Path) -> None:
    with simulated_gpu():
        settings = {"trainer.precision": precision, "model.loss.beta": beta}
        main(arguments("fit", tmp_path, large, **settings))
        assert SimulatedCapture.captured > 0, "decode steps were captured"
        run = tmp_path / "gspo" / "version_0"
        scalars = read_scalars(run)
        assert set(scalars["train/reward"]) == {1, 2}
        assert set(scalars["val/accuracy"]) == set(scalars["test/accuracy"]) == {0, 2}
        assert all(norm > 0 for norm in scalars["train/grad_norm"].values())
        assert (run / "best_model" / "config.json").is_file()


def test_fit_with_an_adapter(large: str, tmp_path: Path) -> None:
    """Merged into the copy that captured steps read; the reference is the policy without it."""
    with simulated_gpu():
        settings = {"trainer.precision": "bf16-mixed", "model.loss.beta": 0.04, "model.lora.r": 4}
        main(arguments("fit", tmp_path, large, **settings, report_test="false"))
        assert SimulatedCapture.captured > 0
    run = tmp_path / "gspo" / "version_0"
    scalars = read_scalars(run)
    assert all(norm > 0 for norm in scalars["train/grad_norm"].values())
    assert set(scalars["train/kl_ref"]) == {1, 2}
    assert (run / "best_model" / "config.json").is_file()


def test_resume_validate_test_and_predict(large: str, tmp_path: Path) -> None:
    with simulated_gpu():
        main(arguments("fit", tmp_path, large, **{"data.max_rollouts": 1}))
        main([*arguments("fit", tmp_path, large), "--ckpt_path=last"])
        assert last_state(tmp_path / "gspo" / "version_0")["rollouts_done"] == 2
        for command in ("validate", "test", "predict"):
            main([*arguments(command, tmp_path, large), "--ckpt_path=best"])
    assert list((tmp_path / "gspo").glob("version_*/evaluations/predict-*.jsonl"))


def test_a_training_step_keeps_its_budget_of_waits(large: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside what the parts wait for, which test_parts.py counts: the loggers' numbers and the gradient's norm."""
    training_step, seen = GroupPolicyModule.training_step, []

    def counted(module: GroupPolicyModule, *args: Any) -> Any:
        gpu.clear()
        result = training_step(module, *args)
        seen.append(dict(gpu.waits))
        return result

    monkeypatch.setattr(GroupPolicyModule, "training_step", counted)
    with simulated_gpu() as gpu:
        main(arguments("fit", tmp_path, large, **{"report_test": "false", "data.max_rollouts": 2}))
    waits: dict[str, int] = {}
    for place, count in seen[1].items():
        file = place.split(" at ")[1].split(":")[0].removeprefix("rlvr_pl/")
        waits[file] = waits.get(file, 0) + count
    assert waits.pop("rollout/rows.py") <= 3, "whether rows have ended, two times; the longest completion"
    assert waits == {
        "rollout/engine.py": 1,  # whether all is finite
        "module.py": 3 + 2 * 2,  # lengths, tokens, truncation; gradient norms
        "update.py": 1 + 2,  # lengths; sums and maxima
    }


def test_a_run_is_that_of_the_cpu(large: str, tmp_path: Path) -> None:
    settings = {"trainer.precision": "32-true", "report_test": "false"}
    with simulated_gpu():
        main(arguments("fit", tmp_path / "gpu", large, **settings))
    main(arguments("fit", tmp_path / "cpu", large, **settings, **{"trainer.accelerator": "cpu"}))
    states = [last_state(tmp_path / device / "gspo" / "version_0") for device in ("gpu", "cpu")]
    torch.testing.assert_close(states[0]["state_dict"], states[1]["state_dict"], rtol=1e-5, atol=1e-6)
    assert states[0]["completion_tokens"] == states[1]["completion_tokens"]
