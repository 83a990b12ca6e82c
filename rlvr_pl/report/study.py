"""A folder of runs → tidy tables: what the report, the notebooks and people's own analyses stand on.

It need not come from ``compare``: any folder with runs of ``fit`` in it will do. An arm is then the folder that holds
its runs, and a run's seed is what its configuration says.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from rlvr_pl.report.run_files import RECORD_COLUMNS, read_evaluation, read_scalars
from rlvr_pl.run.comparison import (
    COMPARISON_FILE,
    SEED_OFFSET,
    TUNING,
    Trial,
    read_comparison,
    seed_of,
)
from rlvr_pl.run.configuration import flatten, read_config, samples_per_rollout, settings_of, updates_per_rollout
from rlvr_pl.run.declaration import Declaration, read_declaration
from rlvr_pl.run.folder import BEST_MODEL, CONFIG, EVALUATIONS, RUN_FILE
from rlvr_pl.run.records import find_records
from rlvr_pl.run.state import read_run_file
from rlvr_pl.types import ConfigError

EVALUATION_COLUMNS = ["arm", "seed", "split", "rollout", *RECORD_COLUMNS]
CURVE_COLUMNS = ["arm", "seed", "rollout", "samples", "completion_tokens", "train_seconds", "tag", "value"]
_COUNTS = ("rollouts_done", "max_rollouts", "completion_tokens", "optimizer_steps", "samples", "best_rollout")


@dataclass(frozen=True)
class Study:
    """Everything that a folder of runs tells.

    Attributes:
        folder: where it lies.
        arms: their names, in the order of ``comparison.yaml``, else sorted.
        runs: a row per run: arm, seed, path (relative to the folder), state, rollouts_done, max_rollouts, samples,
            completion_tokens, optimizer_steps, train_seconds, wall_seconds, best_rollout, objective, and
            ``environment.*``. ``state`` is run.json's, or ``not started``.
        evaluations: a row per record: ``EVALUATION_COLUMNS``. No completions: they are read on demand.
        curves: a row per logged value: ``CURVE_COLUMNS``, the three budgets cumulative.
        settings: of each arm, flat ``key: value``, without what is a run's own: seed, logger, checkpoint.
        comparison: ``comparison.yaml``; empty where there is none.
        problems: what could not be read or used, each naming the file and the consequence.
    """

    folder: Path
    arms: list[str]
    runs: pd.DataFrame
    evaluations: pd.DataFrame
    curves: pd.DataFrame
    settings: dict[str, dict[str, Any]]
    comparison: dict[str, Any]
    problems: list[str]

    @property
    def finished(self) -> pd.DataFrame:
        """The rows of ``runs`` that final statistics may use."""
        return self.runs[self.runs.state == "finished"]

    @property
    def interim(self) -> bool:
        """Whether a run is still to finish; one that has failed is not waited for."""
        return not bool(self.runs.state.isin(("finished", "failed")).all())

    @property
    def failed(self) -> Counter[str]:
        """The number of failed runs of each arm."""
        return Counter(self.runs.loc[self.runs.state == "failed", "arm"])

    @property
    def trials(self) -> list[Trial]:
        """What the arms tried before the result's runs; empty where they did not."""
        return [Trial.read(row) for row in self.comparison.get(TUNING, [])]

    @property
    def declaration(self) -> Declaration | None:
        """What was declared before the first run."""
        return read_declaration(self.comparison)[0]

    @property
    def rules(self) -> Declaration:
        """By what it is judged: as declared, else as ``comparison.yaml`` has it, else as usual."""
        if self.declaration is not None:
            return self.declaration
        return Declaration.of_comparison(self.comparison)

    @property
    def margin(self) -> float:
        """The difference in accuracy, in 0…1, under which arms count as equivalent."""
        return self.rules.margin / 100


@dataclass(frozen=True)
class _RunTables:
    row: dict[str, Any]
    settings: dict[str, Any]
    evaluations: list[pd.DataFrame]
    curves: pd.DataFrame
    problems: list[str]


def load_study(folder: Path) -> Study:
    """Read a folder of runs, finished or not.

    Raises:
        ConfigError: if there is no such folder, or no run in it.
    """
    if not folder.is_dir():
        raise ConfigError(f"there is no folder {str(folder)!r} to report on")
    comparison, problems = _read_comparison(folder)
    runs: dict[tuple[str, int], _RunTables] = {}
    for path in _run_folders(folder):
        run = _read_run(folder, path)
        key = run.row["arm"], run.row["seed"]
        if not run.evaluations and run.curves.empty and not run.row["state"]:
            problems.append(f"{run.row['path']}: has neither records nor events nor run.json; it is left out")
            continue
        if key in runs:
            runs[key], problem = _choose(runs[key], run)
            problems.append(problem)
        else:
            runs[key] = run
    problems += [problem for run in runs.values() for problem in run.problems]
    if not runs:
        raise ConfigError(
            f"{str(folder)!r} contains no run of fit to report on (a folder with {CONFIG} or {RUN_FILE}). "
            "Give the folder that `compare` or `fit` wrote into"
        )
    planned = [(arm, seed) for arm in comparison.get("arms", {}) for seed in comparison.get("seeds", [])]
    rows = [run.row for run in runs.values()]
    rows += [{"arm": a, "seed": s, "path": None, "state": "not started"} for a, s in planned if (a, s) not in runs]
    arms = [*comparison.get("arms", {}), *sorted({arm for arm, _ in runs} - set(comparison.get("arms", {})))]
    settings, differing = _settings_of_arms(runs, comparison)
    return Study(
        folder=folder,
        arms=arms,
        runs=_tidy_runs(rows, arms),
        evaluations=_concatenate([e for run in runs.values() for e in run.evaluations], EVALUATION_COLUMNS),
        curves=_concatenate([run.curves for run in runs.values()], CURVE_COLUMNS),
        settings=settings,
        comparison=comparison,
        problems=problems + differing,
    )


def _read_comparison(folder: Path) -> tuple[dict[str, Any], list[str]]:
    try:
        return read_comparison(folder) or {}, []
    except ConfigError as error:
        return {}, [f"{error}; arms and seeds are taken from the folders"]


def _choose(earlier: _RunTables, later: _RunTables) -> tuple[_RunTables, str]:
    """Choose between two runs of one arm and seed: a finished one before others, a failed one last, else the later.

    Returns:
        The one to use, and the problem that names the other.
    """
    rank = {"failed": 0, "finished": 2}
    ranks = [rank.get(run.row["state"], 1) for run in (earlier, later)]
    used, other = (earlier, later) if ranks[0] > ranks[1] else (later, earlier)
    reason = "the later one" if ranks[0] == ranks[1] else "the finished one" if 2 in ranks else "the one not failed"
    return used, f"{other.row['path']}: has the same arm and seed as {used.row['path']}; {reason} is used"


def _run_folders(folder: Path) -> list[Path]:
    """Every folder with a run of fit in it, in an order in which version_10 comes after version_9; no tuning trials.

    Only ``fit`` writes a configuration and run.json; test, validate and predict leave records alone. A folder that is
    called tuning is one if it is a comparison; else it is somebody's own, with runs like any other.
    """
    found = []
    for path, names, files in os.walk(folder):
        if CONFIG in files or RUN_FILE in files:
            found.append(Path(path))
            names.clear()
        trials = TUNING if Path(path, TUNING, COMPARISON_FILE).is_file() else None
        names[:] = [name for name in names if not name.startswith(".") and name != trials]
    return sorted(found, key=lambda path: [(len(part), part) for part in path.parts])


def _read_run(root: Path, folder: Path) -> _RunTables:
    path = folder.relative_to(root)
    problems: list[str] = []

    def note(file: str | None, problem: str | None, consequence: str = "") -> None:
        if problem:
            problems.append(f"{path / file if file else path}: {problem}{consequence}")

    config, problem = read_config(folder)
    note(None, problem, "; its budget and seed are taken from run.json and the folder's name")
    state, problem = read_run_file(folder)
    note(None, problem, "; its state is taken from its records")
    scalars, torn = read_scalars(folder)
    if state.get("state") not in ("baseline", "training", "testing"):  # of a running one the end is still to come
        for text in torn:
            note(None, text, "; what was logged after the tear is missing from the curves")

    arm = path.parent.as_posix() if path.parent != Path() else root.resolve().name
    if path == Path():
        arm = root.resolve().parent.name
    # Its place in the comparison: an arm with a seed_offset was run with another number.
    seed = seed_of(folder.resolve())
    if seed is None:
        seed = state.get("seed", config.get("seed_everything"))
    if not isinstance(seed, int) or isinstance(seed, bool):
        _, _, digits = folder.resolve().name.rpartition("_")
        seed = int(digits) if digits.isdigit() else 0
    identity = {"arm": arm, "seed": seed}

    evaluations = []
    for split, rollout, file in find_records(folder):
        if split not in ("val", "test"):
            continue
        records, problem = read_evaluation(file)
        note(f"{EVALUATIONS}/{file.name}", problem)
        if len(records):
            place = identity | {"split": split, "rollout": rollout}
            evaluations.append(records.assign(**place)[EVALUATION_COLUMNS])
    if not evaluations:
        note(None, "has no records", "; it is in the curves at most, and not in the statistics")

    curves, gap = _with_budgets(scalars, config)
    note(None, gap)
    row = identity | {"path": path.as_posix(), **_describe(state, config, curves, evaluations, folder)}
    return _RunTables(row, settings_of(config), evaluations, curves.assign(**identity)[CURVE_COLUMNS], problems)


def _with_budgets(scalars: pd.DataFrame, config: dict[str, Any]) -> tuple[pd.DataFrame, str | None]:
    """Add what had been spent when each value was logged: samples, completion tokens, seconds of training."""
    wide = scalars.pivot(index="rollout", columns="tag", values="value")
    nothing = pd.Series(float("nan"), index=wide.index)
    spent = pd.DataFrame(
        {
            "tokens": wide.get("train/tokens_mean", nothing),
            "seconds": wide.get("wall/rollout_s", nothing)
            + wide.get("wall/update_s", nothing)
            + wide.get("wall/reward_s", nothing).fillna(0),  # older runs count it in their update
        },
        index=wide.index,
        dtype=float,
    )
    last = int(wide.index.max()) if len(wide) else 0
    spent = spent.reindex(range(1, last + 1))
    lost = int(spent["tokens"].isna().sum())
    gap = f"{lost} of {last} rollouts are missing from its events; their tokens and seconds are interpolated"
    # What a kill took from the log was spent nevertheless.
    spent = spent.interpolate(limit_direction="both").cumsum()
    spent.loc[0] = 0.0
    per_rollout = samples_per_rollout(config)
    curves = scalars.assign(
        samples=scalars["rollout"] * per_rollout,
        completion_tokens=(scalars["rollout"].map(spent["tokens"]) * per_rollout).round(),
        train_seconds=scalars["rollout"].map(spent["seconds"]),
    )
    return curves, gap if lost and len(wide) else None


def _describe(
    state: dict[str, Any], config: dict[str, Any], curves: pd.DataFrame, evaluations: list[pd.DataFrame], folder: Path
) -> dict[str, Any]:
    """What ``run.json`` says of a run; where it is silent, what events, records and configuration say."""
    done = int(curves["rollout"].max()) if len(curves) else 0
    accuracy: dict[str, dict[int, float]] = {"val": {}, "test": {}}  # by rollout
    for evaluation in evaluations:
        accuracy[evaluation["split"].iloc[0]][int(evaluation["rollout"].iloc[0])] = evaluation["correct"].mean()
    planned = config.get("data.max_rollouts")
    # The last test is of the best checkpoint, which is the first with the highest accuracy on val.
    on_val = accuracy["val"]
    best = max(accuracy["test"]) if accuracy["test"] else max(on_val, key=lambda rollout: on_val[rollout], default=None)
    tested_last = max(accuracy["test"], default=0) > 0 or (folder / BEST_MODEL).is_dir()  # exported after that test
    guess = {
        "state": "finished" if planned in accuracy["val"] and tested_last else "unfinished" if curves.size else None,
        "objective": str(config.get("model.loss.class_path", "")).rpartition(".")[2] or None,
        "rollouts_done": done,
        "max_rollouts": planned,
        "samples": curves["samples"].max(),
        "completion_tokens": curves["completion_tokens"].max(),
        "optimizer_steps": done * updates_per_rollout(config),
        "train_seconds": curves["train_seconds"].max(),
        "wall_seconds": None,
        "best_rollout": best,
        "updated": None,
    }
    row = {key: guess[key] if state.get(key) is None else state[key] for key in guess}
    if row["state"] != "finished":
        row["best_rollout"] = None
    environment = state.get("environment")
    if isinstance(environment, dict):
        row |= {f"environment.{key}": value for key, value in environment.items()}
    return row


def _settings_of_arms(
    runs: dict[tuple[str, int], _RunTables], comparison: dict[str, Any]
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Each arm's settings, and a problem for each run whose own are others than its arm's first run's."""
    settings: dict[str, dict[str, Any]] = {}
    problems = []
    for arm, resolved in comparison.get("resolved", {}).items():
        settings[arm] = {k: v for k, v in settings_of(flatten(resolved)).items() if k != SEED_OFFSET}
    first: dict[str, _RunTables] = {}
    for (arm, _), run in runs.items():
        if not run.settings:
            continue
        reference = first.setdefault(arm, run)
        settings.setdefault(arm, run.settings)
        keys = [k for k in run.settings | reference.settings if run.settings.get(k) != reference.settings.get(k)]
        if keys:
            problems.append(
                f"{run.row['path']}: has other settings than {reference.row['path']} ({', '.join(keys)}), though "
                "both are runs of one arm; it is used all the same"
            )
    return settings, problems


def _tidy_runs(rows: list[dict[str, Any]], arms: list[str]) -> pd.DataFrame:
    runs = pd.DataFrame(rows)
    environment = [column for column in runs if column.startswith("environment.")]
    runs[environment] = runs[environment].convert_dtypes()  # a missing value makes no float of a whole number
    runs[list(_COUNTS)] = runs[list(_COUNTS)].astype(float).round().astype("Int64")
    order = {arm: i for i, arm in enumerate(arms)}
    return runs.sort_values(["arm", "seed"], key=lambda c: c.map(order) if c.name == "arm" else c, ignore_index=True)


def _concatenate(frames: list[pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    frames = [frame for frame in frames if len(frame)]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=columns)
