"""A comparison is checked to its last arm before anything runs, and never mixed with runs of another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from rlvr_pl.compare.comparison_file import load_comparison
from rlvr_pl.compare.lock import is_locked, try_lock
from rlvr_pl.compare.plan import Comparison, Run
from rlvr_pl.compare.progress import Costs, Row, Workload, duration, estimate, total_seconds
from rlvr_pl.compare.record import begin, check_unchanged, read_comparison
from rlvr_pl.run_state import RunState
from rlvr_pl.types import ConfigError

QUICKSTART = str(Path(__file__).parents[1] / "configs" / "quickstart.yaml")


def write(folder: Path, **changes: Any) -> Path:
    """A comparison file; a change to None leaves the key out."""
    values = {
        "folder": str(folder / "runs"),
        "base": [QUICKSTART],
        "arms": {"GSPO": {"model.loss": "GSPO"}, "GRPO": {"model.loss": "GRPO"}},
        "seeds": [0, 1],
        **changes,
    }
    file = folder / "compare.yaml"
    file.write_text(yaml.safe_dump({k: v for k, v in values.items() if v is not None}, sort_keys=False))
    return file


def plan(folder: Path, **changes: Any) -> Comparison:
    return load_comparison(write(folder, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": [0]}, r"unknown key 'seed'\. Did you mean seeds\?"),
        ({"colour": "red"}, r"unknown key 'colour'\. Choose from folder, base, arms, seeds"),
        ({"arms": None}, "arms is missing"),
        ({"arms": {}}, "arms is empty"),
        ({"arms": {"a/b": {}}}, r"arms: 'a/b' cannot name a folder"),
        ({"arms": {"..": {}}}, r"arms: '\.\.' cannot name a folder"),
        ({"arms": {"figures": {}}}, "arms: 'figures' cannot name a folder of its own"),
        ({"arms": {"a,1": {}}}, "arms: 'a,1' cannot name"),
        ({"arms": {1: {}}}, "arms: YAML takes the name 1 for no text; put it in quotes"),
        ({"arms": {"GRPO": {}, "grpo": {}}}, "differ in case alone"),
        ({"arms": {"A": ["model.loss"]}}, "arms: A is .* must map dotted keys"),
        ({"arms": {"A": {"seed_everything": 3}}}, "arms: A: seed_everything is set for each run"),
        ({"arms": {"A": {"seed_offset": -1}}}, "arms: A: seed_offset is -1; it must be a number from 0 on"),
        ({"overrides": {"trainer.logger.name": "x"}}, r"overrides: trainer\.logger\.name is set for each run"),
        ({"seeds": []}, r"seeds is \[\]; it must be a list"),
        ({"seeds": [0, 1, 0]}, "seeds: 0 stands there twice"),
        ({"seeds": [-1]}, r"seeds is \[-1\]"),
        ({"seeds": [True]}, r"seeds is \[True\]"),
        ({"base": "quickstart.yaml"}, "base is 'quickstart.yaml'; it must be a list"),
        ({"processes": 0}, "processes is 0; it must be a number of at least 1"),
        ({"devices": ["cuda:0"]}, r"devices is \['cuda:0'\]; it must be a list of GPU numbers"),
        ({"allow_unequal_budgets": "yes"}, "allow_unequal_budgets is 'yes'; it must be true or false"),
    ],
)
def test_a_mistake_in_the_file_is_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"compare\.yaml: .*{message}"):
        plan(tmp_path, **changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("arms: {A: {}, A: {model.loss: GRPO}}", "'A' stands there twice"),
        ("arms: [", "compare.yaml: while parsing"),
        ("- arms", "a comparison is a mapping"),
        ("", "a comparison is a mapping"),
    ],
)
def test_what_is_no_comparison_is_refused(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "compare.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_comparison(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--config: there is no file .*nowhere\.yaml"):
        load_comparison(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ({"good": {}, "bad": {"model.grop_size": 8}}, r"arm bad: .*model\.grop_size.*Did you mean model\.group_size"),
        ({"good": {}, "bad": {"model.loss": "GSPPO"}}, r"arm bad: .*GSPPO.*Choose from DrGRPO, GRPO"),
        ({"good": {}, "bad": {"model.loss.clip_low": -1}}, r"arm bad: model\.loss\.clip_low is -1\.0"),
        ({"good": {}, "bad": {"model.minibatches_per_rollout": 5}}, "arm bad: .*does not divide by 5 minibatches"),
        ({"good": {}, "bad": {"data.max_rollouts": 12}}, r"data\.max_rollouts is 24 for good, 12 for bad"),
        ({"good": {}, "bad": {"data.prompts_per_rollout": 32}}, r"prompts_per_rollout is 16 for good, 32 for bad"),
        ({"good": {}, "bad": {"model.group_size": 8}}, r"group_size is 16 for good, 8 for bad.*allow_unequal_budgets"),
    ],
)
def test_an_arm_that_fit_would_refuse_or_that_has_another_budget_is_named(
    arms: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(tmp_path, arms=arms).resolve()


def test_a_missing_base_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        plan(tmp_path, base=["nowhere.yaml"]).resolve()


def test_unequal_budgets_can_be_allowed(tmp_path: Path) -> None:
    arms = {"long": {}, "short": {"data.max_rollouts": 12}}
    resolved = plan(tmp_path, arms=arms, allow_unequal_budgets=True).resolve()
    assert [config["data.max_rollouts"] for config in resolved.values()] == [24, 12]


def test_an_arm_is_the_base_then_the_overrides_then_its_own(tmp_path: Path) -> None:
    arms = {"A": {}, "B": {"model.loss": "GRPO", "model.loss.beta": 0.1, "model.optimizer.lr": "2e-4"}}
    rewards = [{"function": "rlvr_pl.rewards.correctness", "weight": 0.5}]
    overrides = {"model.optimizer.lr": 1e-4, "model.rewards": rewards}
    a, b = plan(tmp_path, arms=arms, overrides=overrides).resolve().values()
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
    a, b = comparison.resolve().values()
    assert b == a | {"seed_offset": 1000}


def test_a_changed_offset_is_refused_like_any_change(tmp_path: Path) -> None:
    comparison = plan(tmp_path, arms={"a": {}, "b": {"seed_offset": 1000}})
    begin(comparison, comparison.resolve())
    touch_checkpoint(comparison.runs()[1])
    changed = plan(tmp_path, arms={"a": {}, "b": {"seed_offset": 2000}})
    with pytest.raises(ConfigError, match="b: seed_offset: 1000 → 2000"):
        begin(changed, changed.resolve())


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


# comparison.yaml


def touch_checkpoint(run: Run) -> None:
    run.checkpoint.parent.mkdir(parents=True)
    run.checkpoint.touch()


def test_the_record_holds_what_the_report_needs(tmp_path: Path) -> None:
    comparison = plan(tmp_path)
    begin(comparison, comparison.resolve())
    record = read_comparison(tmp_path / "runs")
    assert record is not None
    assert (record["base"], record["seeds"], record["overrides"]) == ([QUICKSTART], [0, 1], {})
    assert record["arms"] == {"GSPO": {"model.loss": "GSPO"}, "GRPO": {"model.loss": "GRPO"}}
    assert record["resolved"]["GRPO"]["model.loss.init_args.clip_low"] == 0.2
    assert record["resolved"]["GSPO"]["model.loss.init_args.clip_low"] == 3e-4


def test_a_changed_configuration_is_refused_with_the_difference(tmp_path: Path) -> None:
    comparison = plan(tmp_path)
    begin(comparison, comparison.resolve())
    changed = plan(tmp_path, overrides={"model.optimizer.lr": 1e-4, "data.max_rollouts": 12})
    check_unchanged(changed, changed.resolve())  # nothing has been run yet
    for run in comparison.runs():
        touch_checkpoint(run)
    before = (tmp_path / "runs" / "comparison.yaml").read_text()
    with pytest.raises(ConfigError) as refused:
        begin(changed, changed.resolve())
    assert str(refused.value).splitlines()[1:3] == [
        "  GRPO, GSPO: data.max_rollouts: 24 → 12",
        "  GRPO, GSPO: model.optimizer.init_args.lr: 6e-05 → 0.0001",
    ]
    assert (tmp_path / "runs" / "comparison.yaml").read_text() == before


def test_only_the_arms_that_have_runs_are_bound(tmp_path: Path) -> None:
    comparison = plan(tmp_path)
    begin(comparison, comparison.resolve())
    touch_checkpoint(comparison.runs()[0])  # of GSPO
    gspo, grpo = comparison.arms.values()
    changed = plan(tmp_path, arms={"GSPO": gspo, "GRPO": {**grpo, "model.loss.beta": 1}})
    begin(changed, changed.resolve())
    changed = plan(tmp_path, arms={"GSPO": {**gspo, "model.loss.beta": 1}, "GRPO": grpo})
    with pytest.raises(ConfigError, match=r"GSPO: model\.loss\.init_args\.beta: 0\.0 → 1\.0"):
        begin(changed, changed.resolve())


def test_a_run_at_work_is_bound_before_its_first_checkpoint(tmp_path: Path) -> None:
    comparison = plan(tmp_path)
    begin(comparison, comparison.resolve())
    assert try_lock(comparison.runs()[0].lock) is not None
    changed = plan(tmp_path, overrides={"model.temperature": 0.5})
    with pytest.raises(ConfigError, match=r"GSPO: model\.temperature: 1\.0 → 0\.5"):
        begin(changed, changed.resolve())


def test_arms_and_seeds_can_be_added_and_the_old_ones_stay_with_their_runs(tmp_path: Path) -> None:
    comparison = plan(tmp_path)
    begin(comparison, comparison.resolve())
    touch_checkpoint(comparison.runs()[3])  # GRPO seed 1
    other = plan(tmp_path, arms={"DrGRPO": {"model.loss": "DrGRPO"}}, seeds=[2], processes=2, devices=[0, 1])
    begin(other, other.resolve())
    record = read_comparison(tmp_path / "runs")
    assert record is not None
    assert (list(record["arms"]), record["seeds"]) == (["DrGRPO", "GRPO"], [2, 1]), "GSPO never ran"
    assert list(record["resolved"]) == ["DrGRPO", "GRPO"]


def test_runs_of_unknown_configuration_are_left_alone(tmp_path: Path) -> None:
    comparison = plan(tmp_path)
    touch_checkpoint(comparison.runs()[0])
    with pytest.raises(ConfigError, match=r"holds runs \(GSPO seed 0\) but no comparison\.yaml"):
        begin(comparison, comparison.resolve())


def test_a_lock_is_held_by_one(tmp_path: Path) -> None:
    lock = tmp_path / "folder" / "run.lock"
    assert not is_locked(lock)
    assert not lock.parent.exists(), "to ask leaves nothing behind"
    assert try_lock(lock) is not None
    assert is_locked(lock)
    assert try_lock(lock) is None


# Estimates


def test_the_workload_counts_what_fit_does() -> None:
    config = {
        "data.max_rollouts": 10,
        "data.prompts_per_rollout": 16,
        "model.group_size": 4,
        "model.minibatches_per_rollout": 4,
        "model.epochs_per_rollout": 2,
        "trainer.val_check_interval": 4,
        "report_test": True,
    }
    load = Workload.of(config)
    assert (load.rollouts, load.samples, load.optimizer_steps) == (10, 640, 80)
    assert [load.evaluations_after(done) for done in (0, 3, 4, 8, 9, 10)] == [3, 3, 2, 1, 1, 0]
    assert Workload.of({**config, "trainer.val_check_interval": 5}).evaluations_after(0) == 2
    costs = Costs(rollout=2.0, val=3.0, test=5.0)
    assert load.seconds_after(8, costs) == 2 * 2 + 3 + 5
    assert load.seconds(costs) == (3 + 5) + 10 * 2 + 3 * 3 + 5
    assert Workload.of({**config, "report_test": False}).seconds(costs) == 3 + 10 * 2 + 3 * 3


def test_time_left_comes_from_the_run_or_its_arm_or_any(tmp_path: Path) -> None:
    load = Workload(rollouts=10, samples=0, optimizer_steps=0, val_interval=10, tests=False)
    a0, a1, b0 = (Run(arm, seed, tmp_path) for arm, seed in (("A", 0), ("A", 1), ("B", 0)))
    started = RunState(rollouts_done=4, train_seconds=8.0, evaluation_seconds={"val": 1.0})
    faster = RunState(rollouts_done=10, train_seconds=10.0, evaluation_seconds={"val": 1.0})
    waiting = [row.seconds_left for row in estimate([Row(a0, "waiting", load), Row(b0, "waiting", load)])]
    assert waiting == [None, None]
    assert total_seconds([Row(a0, "waiting", load)], 1) is None
    rows = estimate([Row(a0, "training", load, started), Row(a1, "waiting", load), Row(b0, "finished", load, faster)])
    assert [row.seconds_left for row in rows] == [6 * 2 + 1, 1 + 10 * 2 + 1, 0]
    assert total_seconds(rows, processes=1) == 35
    assert total_seconds(rows, processes=4) == 22, "no sooner than the longest of them"
    rows = estimate([Row(a0, "training", load, started), Row(b0, "finished", load, faster), Row(b0, "waiting", load)])
    assert rows[2].seconds_left == 1 + 10 * 1 + 1


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "–"), (41.6, "42 s"), (245, "4 min 05 s"), (59.7, "1 min 00 s"), (11225, "3 h 07 min")]
)
def test_durations_read_well(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text
