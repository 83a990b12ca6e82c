"""An equal chance for every arm: each tries the same grid on seeds of its own, and takes what is best on val.

What is best goes by the metric and the checkpoint that were declared.

The trials are a comparison of their own in the folder ``tuning``: arms × settings × tuning seeds, which are none of the
seeds of the result. They never see the test split. What was chosen is written into ``comparison.yaml`` with the whole
grid's accuracies, and stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rich.table import Table

from rlvr_pl.compare.plan import Comparison, Run
from rlvr_pl.report.run_files import read_scalars
from rlvr_pl.run.comparison import TUNE, TUNING, Trial, choices, read_comparison
from rlvr_pl.run.configuration import Flat
from rlvr_pl.run.declaration import Metric
from rlvr_pl.types import ConfigError

_VAL: dict[Metric, str] = {"strict": "val/accuracy", "flexible": "val/accuracy_flexible"}


def plan_trials(comparison: Comparison) -> Comparison | None:
    """Make the comparison of every arm without a choice at every point of the grid; None where nothing is to choose."""
    if comparison.tune is None or set(comparison.arms) <= set(comparison.chosen):
        return None
    arms = {
        _name(arm, point): overrides | point | {"report_test": False}
        for arm, overrides in comparison.arms.items()
        if arm not in comparison.chosen
        for point in comparison.tune.points()
    }
    return replace(
        comparison,
        folder=comparison.folder / TUNING,
        arms=arms,
        seeds=comparison.tune.seeds,
        tune=None,
    )


def _name(arm: str, point: Flat) -> str:
    """Name an arm at a point after the last parts of its keys, ``GSPO+lr=0.0001``; the whole keys where those clash."""
    short = {key.rpartition(".")[2]: value for key, value in point.items()}
    return "+".join([arm, *(f"{key}={value}" for key, value in (short if len(short) == len(point) else point).items())])


def with_trials(comparison: Comparison, planned: Comparison) -> Comparison:
    """Add what the planned trials reached on val, of each run the accuracy that it would report; so arms choose.

    Raises:
        ConfigError: if every setting of an arm has failed with some seed.
    """
    assert comparison.tune is not None
    runs = {(run.arm, run.seed): run for run in planned.runs()}
    found = list(comparison.trials)
    for arm in comparison.arms:
        if arm in comparison.chosen:
            continue
        of_arm = [
            Trial(
                arm, point, tuple(_on_val(comparison, runs[_name(arm, point), seed]) for seed in comparison.tune.seeds)
            )
            for point in comparison.tune.points()
        ]
        if all(trial.mean is None for trial in of_arm):
            raise ConfigError(
                f"tune: each setting of {arm} failed with some seed; see output.log of the runs in "
                f"{comparison.folder / TUNING}"
            )
        found += of_arm
    return replace(comparison, trials=tuple(found))


def _on_val(comparison: Comparison, run: Run) -> float | None:
    """Find the accuracy of the checkpoint that the run would report; None where it has not finished."""
    if not run.finished:
        return None
    scalars, _ = read_scalars(run.folder)
    on_val = scalars.pivot(index="rollout", columns="tag", values="value")[list(_VAL.values())].dropna()
    rollout = on_val[_VAL["strict"]].idxmax() if comparison.checkpoint == "best" else on_val.index.max()
    return float(on_val.loc[rollout, _VAL[comparison.metric]])


def with_recorded_trials(comparison: Comparison) -> Comparison:
    """Take the trials that ``comparison.yaml`` records, of arms that are still what they were then."""
    if comparison.tune is None:
        return comparison
    record = read_comparison(comparison.folder) or {}
    now = (comparison.tune.as_written(), list(comparison.base), comparison.overrides)
    if (record.get(TUNE), record.get("base"), record.get("overrides")) != now:
        return comparison
    same = [arm for arm, settings in comparison.arms.items() if record["arms"].get(arm) == settings]
    return replace(comparison, trials=tuple(Trial.read(row) for row in record.get(TUNING, []) if row["arm"] in same))


def trial_table(trials: Sequence[Trial]) -> Table:
    """Tabulate the grid: what each arm reached on val with each setting, and what it takes."""
    chosen = choices(trials)
    table = Table(title="Tuning: accuracy on val, mean over tuning seeds")
    table.add_column("arm")
    keys = list(trials[0].settings)
    for key in keys:
        table.add_column(key, justify="right")
    table.add_column("accuracy", justify="right")
    table.add_column("")
    for trial in trials:
        settings = (str(trial.settings[key]) for key in keys)
        mean = "failed" if trial.mean is None else f"{trial.mean:.1%}"
        table.add_row(trial.arm, *settings, mean, "chosen" if chosen[trial.arm] == trial.settings else "")
    return table
