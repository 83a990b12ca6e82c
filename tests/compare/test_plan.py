"""A comparison is checked to its last arm before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlvr_pl.types import ConfigError
from tests.helpers.comparisons import QUICKSTART, plan


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ({"good": {}, "bad": {"model.grop_size": 8}}, r"arm bad: .*model\.grop_size.*Did you mean model\.group_size"),
        ({"good": {}, "bad": {"model.loss": "GSPPO"}}, r"arm bad: .*GSPPO.*Choose from DrGRPO,.*GRPO, GSPO"),
        ({"good": {}, "bad": {"model.loss.clip_low": -1}}, r"arm bad: model\.loss\.clip_low is -1\.0"),
        ({"good": {}, "bad": {"model.minibatches_per_rollout": 5}}, "arm bad: .*not divisible by 5 minibatches"),
        ({"good": {}, "bad": {"data.max_rollouts": 12}}, r"data\.max_rollouts is 24 for good, 12 for bad"),
        ({"good": {}, "bad": {"data.prompts_per_rollout": 32}}, r"prompts_per_rollout is 16 for good, 32 for bad"),
        ({"good": {}, "bad": {"model.group_size": 8}}, r"group_size is 16 for good, 8 for bad.*allow_unequal_budgets"),
    ],
)
def test_an_arm_that_fit_would_refuse_or_that_has_another_budget_is_named(
    arms: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        _ = plan(tmp_path, arms=arms).resolved


def test_a_missing_base_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        _ = plan(tmp_path, base=["nowhere.yaml"]).resolved


def test_unequal_budgets_can_be_allowed(tmp_path: Path) -> None:
    arms = {"long": {}, "short": {"data.max_rollouts": 12}}
    resolved = plan(tmp_path, arms=arms, allow_unequal_budgets=True).resolved
    assert [config["data.max_rollouts"] for config in resolved.values()] == [24, 12]


def test_an_arm_is_the_base_then_the_overrides_then_its_own(tmp_path: Path) -> None:
    arms = {
        "A": {"model.loss": "GSPO"},
        "B": {"model.loss": "GRPO", "model.loss.beta": 0.1, "model.optimizer.lr": "2e-4"},
    }
    rewards = [{"function": "rlvr_pl.rewards.correctness", "weight": 0.5}]
    overrides = {"model.optimizer.lr": 1e-4, "model.rewards": rewards}
    a, b = plan(tmp_path, arms=arms, overrides=overrides).resolved.values()
    assert {key: (a.get(key), b.get(key)) for key in a.keys() | b.keys() if a.get(key) != b.get(key)} == {
        "model.loss.class_path": ("rlvr_pl.losses.GSPO", "rlvr_pl.losses.GRPO"),
        "model.loss.init_args.clip_low": (3e-4, 0.2),  # each objective's own
        "model.loss.init_args.clip_high": (4e-4, 0.2),
        "model.loss.init_args.beta": (0.0, 0.1),
        "model.optimizer.init_args.lr": (1e-4, 2e-4),
    }
    assert a["model.rewards"] == b["model.rewards"] == rewards
    assert not [key for key in a if key.startswith(("seed_everything", "trainer.logger", "ckpt_path"))]


def test_an_offset_gives_an_arm_other_seeds_in_the_folders_of_the_same_numbers(tmp_path: Path) -> None:
    comparison = plan(tmp_path, arms={"a": {}, "b": {"seed_offset": 1000}}, seeds=[0, 3])
    runs = {str(run): comparison.fit_arguments(run) for run in comparison.runs()}
    seeds = {name: [a for a in arguments if a.startswith("--seed")] for name, arguments in runs.items()}
    assert seeds == {
        "a seed 0": ["--seed_everything=0"],
        "b seed 0": ["--seed_everything=1000"],
        "a seed 3": ["--seed_everything=3"],
        "b seed 3": ["--seed_everything=1003"],
    }
    assert not [flag for arguments in runs.values() for flag in arguments if "seed_offset" in flag]
    assert comparison.runs()[3].folder == tmp_path / "runs" / "b" / "seed_3"
    a, b = comparison.resolved.values()
    assert b == a | {"seed_offset": 1000}


def test_runs_come_seed_by_seed_in_folders_of_their_own(tmp_path: Path) -> None:
    comparison = plan(tmp_path)
    assert [(run.arm, run.seed) for run in comparison.runs()] == [("GSPO", 0), ("GRPO", 0), ("GSPO", 1), ("GRPO", 1)]
    run = comparison.runs()[3]
    assert run.folder == tmp_path / "runs" / "GRPO" / "seed_1"
    arguments = comparison.fit_arguments(run)
    assert arguments[:3] == ["fit", f"--config={QUICKSTART}", "--model.loss=GRPO"]
    for flag in ("seed_everything=1", f"trainer.logger.save_dir={tmp_path / 'runs'}", "trainer.logger.version=seed_1"):
        assert f"--{flag}" in arguments


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        (["GRPO"], [("GRPO", 0), ("GRPO", 1)]),
        (["GRPO,1"], [("GRPO", 1)]),
        (["GRPO,1", "GSPO,0"], [("GSPO", 0), ("GRPO", 1)]),
        (["GRPO", "GRPO,1"], [("GRPO", 0), ("GRPO", 1)]),
    ],
)
def test_only_takes_a_part(only: list[str], expected: list[tuple[str, int]], tmp_path: Path) -> None:
    assert [(run.arm, run.seed) for run in plan(tmp_path).runs(only)] == expected


@pytest.mark.parametrize(
    ("only", "message"),
    [
        ("DrGRPO", r"no arm 'DrGRPO'\. Choose from GSPO, GRPO"),
        ("GRPO,7", r"no seed '7'\. Choose from 0, 1"),
        ("GRPO,", "no seed ''"),
    ],
)
def test_only_refuses_what_is_not_there(only: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(tmp_path).runs([only])
