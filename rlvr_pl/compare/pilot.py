"""What a comparison would find, by how much the runs of an earlier one varied: a part of the dry run."""

from __future__ import annotations

from math import comb
from pathlib import Path

from rich.table import Table

from rlvr_pl.report.outcomes import collect_outcomes
from rlvr_pl.report.planning import MOST_SEEDS, POWER, pilot_components, seeds_needed
from rlvr_pl.report.study import load_study
from rlvr_pl.types import ConfigError

_DIFFERENCES = (1, 2, 3)  # points of accuracy
_QUESTIONS = (512, 1319, 4096)  # the embedded default, GSM8K's test split, and what makes the seeds count


def pilot_table(folder: Path, arms: int) -> Table:
    """Tabulate the seeds of each arm that find differences in strict accuracy, by the questions that are asked.

    Args:
        folder: of runs of at least two arms with at least two seeds each.
        arms: of the comparison that is planned.

    Raises:
        ConfigError: if the folder has too little in it.
    """
    study = load_study(folder)
    outcomes = collect_outcomes(study)
    parts = pilot_components(outcomes)
    if parts is None:
        raise ConfigError(
            f"--pilot: {folder} has no two arms with two seeds that both finished; take a comparison that has"
        )
    if not parts.seed + parts.question + parts.rest > 0:
        raise ConfigError(f"--pilot: the arms in {folder} gave the same answers throughout; take another comparison")
    pairs = max(1, comb(arms, 2))
    table = Table(
        title=f"Seeds of each arm that find a difference with a probability of {POWER:.0%}",
        caption=(
            f"By how much the runs in {folder} varied ({outcomes.split}, strict; {len(study.finished)} runs), with "
            f"intervals that hold for {pairs} {'pair' if pairs == 1 else 'pairs'} together. A pilot of few seeds "
            "knows this only roughly."
        ),
    )
    table.add_column("questions", justify="right")
    for points in _DIFFERENCES:
        table.add_column(f"{points} {'point' if points == 1 else 'points'}", justify="right")
    for questions in sorted({*_QUESTIONS, len(outcomes.golds)}):
        needed = (seeds_needed(points / 100, questions, parts, pairs) for points in _DIFFERENCES)
        table.add_row(f"{questions:,}", *(f"over {MOST_SEEDS}" if n is None else str(n) for n in needed))
    return table
