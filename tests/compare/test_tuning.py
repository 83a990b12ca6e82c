"""Every arm tries the same grid on seeds of its own, and takes what is best on val."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlvr_pl.compare.plan import Comparison, Run
from rlvr_pl.compare.record import begin, check_unchanged
from rlvr_pl.compare.tuning import plan_trials, with_recorded_trials, with_trials
from rlvr_pl.run.comparison import Trial, read_comparison
from rlvr_pl.types import ConfigError
from tests.helpers.comparisons import plan
from tests.helpers.studies import write_run, write_scalars

LR = "model.optimizer.lr"
RATES = [1e-4, 2e-4, 4e-4]


def tuned(folder: Path, **changes: Any) -> Comparison:
    return plan(folder, **{"tune": {"grid": {LR: RATES}, "seeds": [100, 101]}, **changes})


def planned_trials(comparison: Comparison) -> Comparison:
    trials = plan_trials(comparison)
    assert trials is not None
    return trials


def finish(run: Run, course: dict[int, float]) -> None:
    """A finished trial whose val accuracy went like this."""
    state = {"val_accuracy": course[4], "evaluation_seconds": {}}
    folder = write_run(run.folder.parents[1], run.arm, run.seed, rollouts=4, val_every=2, questions=4, state=state)
    write_scalars(folder, {"val/accuracy": course})


def test_the_trials_are_all_combinations_with_their_own_seeds_and_without_the_test_split(tmp_path: Path) -> None:
    grid = {LR: [1e-4, 2e-4], "model.minibatches_per_rollout": [1, 4]}
    trials = planned_trials(tuned(tmp_path, tune={"grid": grid, "seeds": [7]}))
    assert trials.folder == tmp_path / "runs" / "tuning"
    assert [str(run) for run in trials.runs()][:3] == [
        "GSPO+lr=0.0001+minibatches_per_rollout=1 seed 7",
        "GSPO+lr=0.0001+minibatches_per_rollout=4 seed 7",
        "GSPO+lr=0.0002+minibatches_per_rollout=1 seed 7",
    ]
    resolved = trials.resolved
    assert len(resolved) == 2 * 4
    settings = resolved["GRPO+lr=0.0002+minibatches_per_rollout=1"]
    assert settings["model.loss.class_path"] == "rlvr_pl.losses.GRPO"
    assert (settings["model.optimizer.init_args.lr"], settings["model.minibatches_per_rollout"]) == (2e-4, 1)
    assert settings["report_test"] is False


def test_keys_that_end_alike_are_named_in_full(tmp_path: Path) -> None:
    grid = {"model.loss.eps": [1], "model.optimizer.eps": [2, 3]}
    names = [run.arm for run in planned_trials(tuned(tmp_path, tune={"grid": grid, "seeds": [7]})).runs()]
    assert names[0] == "GSPO+model.loss.eps=1+model.optimizer.eps=2"


def test_the_best_mean_of_best_checkpoints_is_chosen_and_a_failed_setting_never(tmp_path: Path) -> None:
    comparison = tuned(tmp_path)
    course = {  # of the best checkpoints GSPO has .5, .6 and, where one run failed, .9; GRPO .4, .4 and .3
        ("GSPO", 1e-4): ({0: 0.1, 2: 0.5, 4: 0.2}, {0: 0.1, 2: 0.3, 4: 0.5}),
        ("GSPO", 2e-4): ({0: 0.1, 2: 0.5, 4: 0.7}, {0: 0.1, 2: 0.5, 4: 0.4}),
        ("GSPO", 4e-4): ({0: 0.1, 2: 0.9, 4: 0.9}, None),
        ("GRPO", 1e-4): ({0: 0.1, 2: 0.4, 4: 0.4}, {0: 0.1, 2: 0.4, 4: 0.4}),
        ("GRPO", 2e-4): ({0: 0.1, 2: 0.4, 4: 0.4}, {0: 0.1, 2: 0.4, 4: 0.4}),
        ("GRPO", 4e-4): ({0: 0.1, 2: 0.3, 4: 0.3}, {0: 0.1, 2: 0.3, 4: 0.3}),
    }
    planned = planned_trials(comparison)
    for run in planned.runs():
        arm, _, rate = run.arm.partition("+lr=")
        values = course[arm, float(rate)][run.seed - 100]
        if values is not None:
            finish(run, values)
    chosen = with_trials(comparison, planned)
    assert [(t.arm, t.settings[LR], t.mean) for t in chosen.trials] == [
        ("GSPO", 1e-4, pytest.approx(0.5)),
        ("GSPO", 2e-4, pytest.approx(0.6)),
        ("GSPO", 4e-4, None),
        ("GRPO", 1e-4, pytest.approx(0.4)),
        ("GRPO", 2e-4, pytest.approx(0.4)),
        ("GRPO", 4e-4, pytest.approx(0.3)),
    ]
    assert chosen.chosen == {"GSPO": {LR: 2e-4}, "GRPO": {LR: 1e-4}}  # the first of equals
    resolved = chosen.resolved
    assert [resolved[arm]["model.optimizer.init_args.lr"] for arm in ("GSPO", "GRPO")] == [2e-4, 1e-4]


def test_an_arm_whose_every_setting_fails_is_named(tmp_path: Path) -> None:
    comparison = tuned(tmp_path)
    planned = planned_trials(comparison)
    for run in planned.runs():
        if run.arm.startswith("GSPO"):
            finish(run, {0: 0.1, 4: 0.2})
    with pytest.raises(ConfigError, match=r"tune: each setting of GRPO failed .*runs/tuning"):
        with_trials(comparison, planned)


def trials_of(comparison: Comparison, best: float) -> tuple[Trial, ...]:
    return tuple(
        Trial(arm, {LR: lr}, (0.5, 0.6 if lr == best else 0.4) if lr != 4e-4 else (0.5, None))
        for arm in comparison.arms
        for lr in RATES
    )


def test_a_choice_is_recorded_and_stays(tmp_path: Path) -> None:
    comparison = tuned(tmp_path)
    chosen = replace(comparison, trials=trials_of(comparison, best=2e-4))
    begin(chosen)
    record = read_comparison(tmp_path / "runs")
    assert record is not None
    assert record["tune"] == {"grid": {LR: RATES}, "seeds": [100, 101]}
    assert record["arms"] == comparison.arms  # as the file has them: it can be run again
    assert [row["chosen"] for row in record["tuning"]] == [False, True, False] * 2
    assert record["tuning"][2] == {"arm": "GSPO", "settings": {LR: 4e-4}, "val": [0.5, None], "chosen": False}
    again = with_recorded_trials(tuned(tmp_path))
    assert (again.chosen, again.trials) == (chosen.chosen, chosen.trials)
    check_unchanged(again)
    wider = with_recorded_trials(tuned(tmp_path, tune={"grid": {LR: [*RATES, 8e-4]}, "seeds": [100, 101]}))
    assert wider.chosen == {}


def test_a_new_arm_is_tuned_alone(tmp_path: Path) -> None:
    comparison = tuned(tmp_path)
    chosen = replace(comparison, trials=trials_of(comparison, best=2e-4))
    begin(chosen)
    more = with_recorded_trials(tuned(tmp_path, arms={**comparison.arms, "DrGRPO": {"model.loss": "DrGRPO"}}))
    assert {run.arm.partition("+")[0] for run in planned_trials(more).runs()} == {"DrGRPO"}


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({"arms": {"GSPO": {"model.loss": "GSPO"}, "GRPO": {"model.loss": "GRPO", "model.loss.beta": 0.1}}}, {"GSPO"}),
        ({"overrides": {"data.max_rollouts": 12}}, set()),
    ],
)
def test_what_was_chosen_for_other_settings_is_chosen_anew(
    changes: dict[str, Any], kept: set[str], tmp_path: Path
) -> None:
    comparison = tuned(tmp_path)
    chosen = replace(comparison, trials=trials_of(comparison, best=2e-4))
    begin(chosen)
    assert set(with_recorded_trials(tuned(tmp_path, **changes)).chosen) == kept


def test_another_grid_is_refused_once_there_are_runs(tmp_path: Path) -> None:
    comparison = tuned(tmp_path)
    chosen = replace(comparison, trials=trials_of(comparison, best=2e-4))
    begin(chosen)
    checkpoint = chosen.runs()[0].checkpoint
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    before = (tmp_path / "runs" / "comparison.yaml").read_text()
    for other in (plan(tmp_path), tuned(tmp_path, tune={"grid": {LR: [1e-4, 3e-4]}, "seeds": [100, 101]})):
        with pytest.raises(ConfigError, match=r"tune is .*, and was .* before the runs in .*another folder"):
            begin(other)
    assert yaml.safe_load((tmp_path / "runs" / "comparison.yaml").read_text()) == yaml.safe_load(before)
