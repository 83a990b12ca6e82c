"""``comparison.yaml``: what the runs in a comparison's folder were run with, so that nothing else is added to them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from rlvr_pl.compare.plan import Comparison, Run
from rlvr_pl.run.comparison import COMPARISON_FILE, COMPARISON_LOCK, TUNE, TUNING, read_comparison, seed_of
from rlvr_pl.run.configuration import BROUGHT, settings_of
from rlvr_pl.run.declaration import CHECKPOINTS, DECLARATION, MARGIN, METRICS, Declaration, read_declaration
from rlvr_pl.run.files import whole_file
from rlvr_pl.run.lock import locked
from rlvr_pl.types import ConfigError


def begin(comparison: Comparison) -> Declaration | None:
    """Write ``comparison.yaml``, once it is sure that the runs in the folder are of this configuration.

    What is declared is what the comparison says before the first run, a trial included, and stays as it was then. Arms
    and seeds that the file no longer names stay in it as long as their runs lie in the folder.

    Returns:
        What is declared; None where runs were there before anything was.

    Raises:
        ConfigError: with the differences, if there are runs of another configuration.
    """
    with locked(comparison.folder / COMPARISON_LOCK):
        check_unchanged(comparison)
        old = _recorded(comparison.folder) or {"arms": {}, "resolved": {}}
        present = _begun_runs(comparison.folder)
        declaration = _declare(comparison, old, bool(present))
        arms = comparison.arms | {
            a: o for a, o in old["arms"].items() if a not in comparison.arms and any(run.arm == a for run in present)
        }
        seeds = dict.fromkeys((*comparison.seeds, *sorted(run.seed for run in present if run.arm in arms)))
        record = {
            "folder": str(comparison.folder),
            "base": list(comparison.base),
            "overrides": comparison.overrides,
            "arms": arms,
            "seeds": list(seeds),
            "allow_unequal_budgets": comparison.allow_unequal_budgets,
            "metric": comparison.metric,
            "checkpoint": comparison.checkpoint,
            "margin": comparison.margin,
            "thresholds": list(comparison.thresholds),
            **_tuning(comparison),
            DECLARATION: None if declaration is None else declaration.as_written(),
            "resolved": {arm: comparison.resolved.get(arm) or old["resolved"][arm] for arm in arms},
        }
        with whole_file(comparison.folder / COMPARISON_FILE) as file:
            file.write_text(yaml.safe_dump(record, sort_keys=False, allow_unicode=True), encoding="utf-8")
        return declaration


def _declare(comparison: Comparison, old: dict[str, Any], present: bool) -> Declaration | None:
    """The declaration that is there, once anything has begun; else what the comparison says now."""
    made, _ = read_declaration(old)
    if present or _begun_runs(comparison.folder / TUNING):
        return made
    said = Declaration(
        arms=comparison.arms,
        seeds=comparison.seeds,
        metric=comparison.metric,
        checkpoint=comparison.checkpoint,
        margin=comparison.margin,
        thresholds=comparison.thresholds,
        plan={
            "base": list(comparison.base),
            "overrides": comparison.overrides,
            "allow_unequal_budgets": comparison.allow_unequal_budgets,
            TUNE: None if comparison.tune is None else comparison.tune.as_written(),
        },
        made=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    # Said again before the first run, by the next process of a cluster's array say, it stays the same.
    return made if made is not None and replace(made, made=said.made).sha256 == said.sha256 else said


def check_unchanged(comparison: Comparison) -> None:
    """Refuse to add to runs of another configuration.

    Raises:
        ConfigError: with the differences, by arm and key.
    """
    old = _recorded(comparison.folder)
    present = [run for run in _begun_runs(comparison.folder) if run.arm in comparison.resolved]
    if old is None and present:
        raise ConfigError(
            f"{comparison.folder} holds runs ({present[0]}) but no {COMPARISON_FILE}, so that their "
            "settings are unknown. Give the comparison another folder"
        )
    if old is not None and (present or _begun_runs(comparison.folder / TUNING)):
        _check_declared(comparison, old)
    changes: dict[str, list[str]] = {}  # difference: the arms that have it
    for arm in dict.fromkeys(run.arm for run in present):
        before = settings_of(old["resolved"].get(arm, {})) if old is not None else {}
        after = yaml.safe_load(yaml.safe_dump(comparison.resolved[arm]))  # as it would be read back
        for key in sorted(before.keys() | after.keys()):
            # One that a later version has brought is what it then was by itself, or null.
            if before.get(key, BROUGHT.get(key)) != after.get(key):
                a, b = (config.get(key, "(not set)") for config in (before, after))
                changes.setdefault(f"{key}: {a} → {b}", []).append(arm)
    if changes:
        lines = "".join(f"\n  {', '.join(arms)}: {change}" for change, arms in changes.items())
        raise ConfigError(
            f"{comparison.folder} holds runs with another configuration:{lines}\n"
            "Give the comparison another folder, or move these arms' runs elsewhere"
        )


def _check_declared(comparison: Comparison, old: dict[str, Any]) -> None:
    """Refuse other rules than those that were declared; where arms and seeds are others, the report says so."""
    declared = {
        "metric": (old.get("metric", METRICS[0]), comparison.metric),
        "checkpoint": (old.get("checkpoint", CHECKPOINTS[0]), comparison.checkpoint),
        "margin": (old.get("margin", MARGIN), comparison.margin),
        "thresholds": (old.get("thresholds", []), list(comparison.thresholds)),
        TUNE: (old.get(TUNE), None if comparison.tune is None else comparison.tune.as_written()),
    }
    for key, (before, now) in declared.items():
        if before != now:
            raise ConfigError(
                f"{key} is {_short(now)}, and was declared as {_short(before)} before the runs in {comparison.folder}. "
                "Leave it, or give the comparison another folder"
            )


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _tuning(comparison: Comparison) -> dict[str, Any]:
    if comparison.tune is None:
        return {}
    trials = [trial.as_written() for trial in comparison.trials]
    for trial in trials:
        trial["chosen"] = comparison.chosen[trial["arm"]] == trial["settings"]
    return {TUNE: comparison.tune.as_written(), TUNING: trials}


def _recorded(folder: Path) -> dict[str, Any] | None:
    """Read ``comparison.yaml``, without which no run may be added to those in the folder."""
    try:
        return read_comparison(folder)
    except ConfigError as error:
        raise ConfigError(f"{folder}: {error}. Restore the file, or give the comparison another folder") from error


def _begun_runs(folder: Path) -> list[Run]:
    """Find the begun runs of any arm and seed, whether or not the comparison names them."""
    runs = (
        Run(path.parent.name, seed, path) for path in sorted(folder.glob("*/*")) if (seed := seed_of(path)) is not None
    )
    return [run for run in runs if run.begun]
