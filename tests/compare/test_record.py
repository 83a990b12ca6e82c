"""Runs of one configuration are never mixed with runs of another."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from rlvr_pl.compare.plan import Run
from rlvr_pl.compare.record import begin, check_unchanged
from rlvr_pl.run.comparison import read_comparison
from rlvr_pl.run.declaration import read_declaration
from rlvr_pl.run.lock import try_lock
from rlvr_pl.types import ConfigError
from tests.helpers.comparisons import QUICKSTART, plan


def touch_checkpoint(run: Run) -> None:
    run.checkpoint.parent.mkdir(parents=True)
    run.checkpoint.touch()


def test_the_record_holds_what_the_report_needs(tmp_path: Path) -> None:
    comparison = plan(tmp_path)
    begin(comparison)
    record = read_comparison(tmp_path / "runs")
    assert record is not None
    assert (record["base"], record["seeds"], record["overrides"]) == ([QUICKSTART], [0, 1], {})
    assert record["arms"] == {"GSPO": {"model.loss": "GSPO"}, "GRPO": {"model.loss": "GRPO"}}
    assert record["resolved"]["GRPO"]["model.loss.init_args.clip_low"] == 0.2
    assert record["resolved"]["GSPO"]["model.loss.init_args.clip_low"] == 3e-4


def test_a_changed_configuration_is_refused_with_the_difference(tmp_path: Path) -> None:
    comparison = plan(tmp_path)
    begin(comparison)
    changed = plan(tmp_path, overrides={"model.optimizer.lr": 1e-4, "data.max_rollouts": 12})
    check_unchanged(changed)  # nothing has been run yet
    for run in comparison.runs():
        touch_checkpoint(run)
    before = (tmp_path / "runs" / "comparison.yaml").read_text()
    with pytest.raises(ConfigError) as refused:
        begin(changed)
    assert str(refused.value).splitlines()[1:3] == [
        "  GRPO, GSPO: data.max_rollouts: 24 → 12",
        "  GRPO, GSPO: model.optimizer.init_args.lr: 0.0003 → 0.0001",
    ]
    assert (tmp_path / "runs" / "comparison.yaml").read_text() == before


def test_a_setting_that_did_not_exist_yet_and_is_not_used_is_no_change(tmp_path: Path) -> None:
    comparison = plan(tmp_path)
    begin(comparison)
    touch_checkpoint(comparison.runs()[0])
    file = tmp_path / "runs" / "comparison.yaml"
    record = yaml.safe_load(file.read_text())
    for resolved in record["resolved"].values():
        assert resolved.pop("evaluate.also_after", "") is None
        assert resolved.pop("data.verifier") == "number"
        resolved.pop("model.group_size")
    file.write_text(yaml.safe_dump(record))
    with pytest.raises(ConfigError) as refused:
        check_unchanged(comparison)
    assert str(refused.value).splitlines()[1:-1] == ["  GSPO: model.group_size: (not set) → 16"]


def test_the_margin_is_declared_before_the_first_run(tmp_path: Path) -> None:
    comparison = plan(tmp_path)
    begin(comparison)
    declared = plan(tmp_path, margin=1.5)
    begin(declared)  # nothing has been run yet
    record = read_comparison(tmp_path / "runs")
    assert record is not None
    assert record["margin"] == 1.5
    touch_checkpoint(comparison.runs()[0])
    begin(declared)
    with pytest.raises(ConfigError, match=r"margin is 2, and was declared as 1\.5 before the runs in .*another folder"):
        begin(comparison)


def test_what_is_declared_stays_once_a_run_or_a_trial_has_begun(tmp_path: Path) -> None:
    tune = {"grid": {"model.optimizer.lr": [1e-4, 2e-4]}, "seeds": [100]}
    first = begin(plan(tmp_path, tune=tune))
    assert first is not None
    assert begin(plan(tmp_path, tune=tune)) == first, "said again, it is the same"
    declared = begin(plan(tmp_path, tune=tune, thresholds=[70, 50], metric="flexible", checkpoint="last"))
    assert declared is not None
    assert (declared.metric, declared.checkpoint, declared.thresholds) == ("flexible", "last", (50.0, 70.0))
    assert declared.sha256 != first.sha256
    assert declared.plan["tune"] == tune
    record = read_comparison(tmp_path / "runs")
    assert record is not None
    assert read_declaration(record) == (declared, True)
    assert read_declaration(record | {"declaration": record["declaration"] | {"seeds": [0]}})[1] is False
    touch_checkpoint(Run("GSPO+lr=0.0001", 100, tmp_path / "runs" / "tuning" / "GSPO+lr=0.0001" / "seed_100"))
    with pytest.raises(ConfigError, match="metric is strict, and was declared as flexible before the runs in"):
        begin(plan(tmp_path, tune=tune, thresholds=[70, 50], checkpoint="last"))
    added = plan(tmp_path, tune=tune, thresholds=[70, 50], metric="flexible", checkpoint="last", seeds=[0, 1, 2])
    assert begin(added) == declared, "a seed may be added, and is none of what was declared"


def test_runs_that_were_there_before_anything_was_declared(tmp_path: Path) -> None:
    comparison = plan(tmp_path)
    begin(comparison)
    file = tmp_path / "runs" / "comparison.yaml"
    record = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump({key: value for key, value in record.items() if key != "declaration"}))
    touch_checkpoint(comparison.runs()[0])
    assert begin(comparison) is None


def test_only_the_arms_that_have_runs_are_bound(tmp_path: Path) -> None:
    comparison = plan(tmp_path)
    begin(comparison)
    touch_checkpoint(comparison.runs()[0])  # of GSPO
    gspo, grpo = comparison.arms.values()
    changed = plan(tmp_path, arms={"GSPO": gspo, "GRPO": {**grpo, "model.loss.beta": 1}})
    begin(changed)
    changed = plan(tmp_path, arms={"GSPO": {**gspo, "model.loss.beta": 1}, "GRPO": grpo})
    with pytest.raises(ConfigError, match=r"GSPO: model\.loss\.init_args\.beta: 0\.0 → 1\.0"):
        begin(changed)


def test_a_run_at_work_is_bound_before_its_first_checkpoint(tmp_path: Path) -> None:
    comparison = plan(tmp_path)
    begin(comparison)
    assert try_lock(comparison.runs()[0].lock) is not None
    changed = plan(tmp_path, overrides={"model.temperature": 0.5})
    with pytest.raises(ConfigError, match=r"GSPO: model\.temperature: 1\.0 → 0\.5"):
        begin(changed)


def test_arms_and_seeds_can_be_added_and_the_old_ones_stay_with_their_runs(tmp_path: Path) -> None:
    comparison = plan(tmp_path)
    begin(comparison)
    touch_checkpoint(comparison.runs()[3])  # GRPO seed 1
    other = plan(tmp_path, arms={"DrGRPO": {"model.loss": "DrGRPO"}}, seeds=[2], processes=2, devices=[0, 1])
    begin(other)
    record = read_comparison(tmp_path / "runs")
    assert record is not None
    assert (list(record["arms"]), record["seeds"]) == (["DrGRPO", "GRPO"], [2, 1]), "GSPO never ran"
    assert list(record["resolved"]) == ["DrGRPO", "GRPO"]


def test_runs_of_unknown_configuration_are_left_alone(tmp_path: Path) -> None:
    comparison = plan(tmp_path)
    touch_checkpoint(comparison.runs()[0])
    with pytest.raises(ConfigError, match=r"holds runs \(GSPO seed 0\) but no comparison\.yaml"):
        begin(comparison)


def test_a_changed_offset_is_refused_like_any_change(tmp_path: Path) -> None:
    comparison = plan(tmp_path, arms={"a": {}, "b": {"seed_offset": 1000}})
    begin(comparison)
    touch_checkpoint(comparison.runs()[1])
    changed = plan(tmp_path, arms={"a": {}, "b": {"seed_offset": 2000}})
    with pytest.raises(ConfigError, match="b: seed_offset: 1000 → 2000"):
        begin(changed)


@pytest.mark.parametrize("content", ["arms: [", "arms: {}", "arms: {}\nseeds: []"])
def test_a_record_that_cannot_be_read_is_refused_with_the_remedy(content: str, tmp_path: Path) -> None:
    comparison = plan(tmp_path)
    begin(comparison)
    (tmp_path / "runs" / "comparison.yaml").write_text(content)
    with pytest.raises(ConfigError, match=r"runs: comparison\.yaml: unreadable \(.*Restore the file, or give"):
        begin(comparison)
