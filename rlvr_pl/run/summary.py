"""The tables at the end of a command: what ``fit`` gained and cost, what an evaluation found, and where it all lies."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import fmean

from rich.table import Table

from rlvr_pl.evaluation import majority_ties, pass_at, passes
from rlvr_pl.proportion import mean_interval
from rlvr_pl.run.folder import BEST, BEST_MODEL, CHECKPOINTS, EVALUATIONS, EVENTS
from rlvr_pl.run.records import Record, read_records, records_path
from rlvr_pl.run.terminal import make_console
from rlvr_pl.verifiers import Verifier


@dataclass(frozen=True)
class Accuracy:
    """Shares of right answers in one evaluation."""

    strict: float
    flexible: float
    questions: int


def read_accuracy(log_dir: Path, split: str, rollout: int) -> Accuracy | None:
    """Read the accuracy of the evaluation after ``rollout`` rollouts; None where it did not take place."""
    path = records_path(log_dir, split, rollout)
    if not path.is_file():
        return None
    records = read_records(path)
    return Accuracy(
        strict=sum(r["correct"] for r in records) / len(records),
        flexible=sum(r["correct_flexible"] for r in records) / len(records),
        questions=len({r["question"] for r in records}),
    )


def kinds(verifier: Verifier) -> dict[str, str]:
    """Name the two accuracies, by their fields in records."""
    return {"correct": f"strict ({verifier.strict})", "correct_flexible": f"flexible ({verifier.flexible})"}


def measures(records: Sequence[Record], verifier: Verifier) -> dict[str, list[float]]:
    """Compute each measure of an evaluation, question by question.

    Args:
        records: of the evaluation, each question with as many samples as another.
        verifier: that graded them.

    Returns:
        By the measure's name, a value in [0, 1] for each question.
    """
    questions = [list(samples) for _, samples in groupby(records, key=lambda record: record["question"])]
    n = len(questions[0])
    suffix = f", avg@{n}" if n > 1 else ""
    found = {
        f"{name}{suffix}": [fmean(record[key] for record in samples) for samples in questions]
        for key, name in kinds(verifier).items()
    }
    if n == 1:
        return found
    right = [sum(record["correct"] for record in samples) for samples in questions]
    for k in passes(n):
        found[f"strict, pass@{k}"] = [pass_at(k, n, count) for count in right]
    ties = [
        majority_ties([r["extracted"] for r in samples], [r["correct"] for r in samples], verifier)
        for samples in questions
    ]
    found[f"strict, maj@{n}"] = [1 / tied if tied else 0.0 for tied in ties]
    return found


def print_evaluation(path: Path, stage: str, policy: str, verifier: Verifier) -> None:
    """Print what an evaluation found, with 95 % intervals over questions.

    Args:
        path: of its records.
        stage: val, test or predict.
        policy: what was evaluated.
        verifier: that graded it.
    """
    console = make_console()
    records = read_records(path)
    graded = [record for record in records if record["correct"] is not None]
    questions = {record["question"] for record in records}
    ungraded = questions - {record["question"] for record in graded}
    if graded:
        console.print(_table_of(measures(graded, verifier), f"{stage}: {policy}"))
    if ungraded:
        console.print(f"{stage}: {len(ungraded):,} of {len(questions):,} questions have no gold answer to be graded by")
    console.print(f"records: {path}", soft_wrap=True)


def _table_of(found: dict[str, list[float]], title: str) -> Table:
    table = Table(title=title)
    for column in ("accuracy", "questions", "value", "95 % interval"):
        table.add_column(column, justify="left" if column == "accuracy" else "right")
    for name, values in found.items():
        low, high = mean_interval(values)
        table.add_row(name, f"{len(values):,}", f"{fmean(values):.1%}", f"{low:.1%} to {high:.1%}")
    return table


def print_summary(
    log_dir: Path,
    objective: str,
    best_rollout: int,
    seconds: float,
    rollouts: int,
    tokens: int,
    verifier: Verifier,
) -> None:
    """Print the table of a finished ``fit``.

    Args:
        log_dir: the run's folder.
        objective: the loss strategy's name.
        best_rollout: after how many rollouts the best checkpoint was taken.
        seconds: wall-clock time of the whole run, as run.json counts it.
        rollouts, tokens: trained on, over the whole run.
        verifier: that graded it.
    """
    table = Table(title=f"{objective}: {rollouts} rollouts, {tokens:,} completion tokens, {seconds:.0f} s")
    for column in ("split", "questions", "accuracy", "before", "after", "Δ"):
        table.add_column(column, justify="left" if column in ("split", "accuracy") else "right")
    for split in ("val", "test"):
        before, after = read_accuracy(log_dir, split, 0), read_accuracy(log_dir, split, best_rollout)
        if after is None:
            continue
        for kind, name in zip(("strict", "flexible"), kinds(verifier).values(), strict=True):
            end = getattr(after, kind)
            start = None if before is None else getattr(before, kind)
            table.add_row(
                split,
                str(after.questions),
                name,
                "–" if start is None else f"{start:.1%}",
                f"{end:.1%}",
                "–" if start is None else f"{100 * (end - start):+.1f}",
            )
    console = make_console()
    console.print(table)
    console.print(f"after: the best checkpoint by val/accuracy, taken after {best_rollout} rollouts")
    for name, place in {
        "logs": log_dir,
        "best checkpoint": log_dir / CHECKPOINTS / BEST,
        "exported model": log_dir / BEST_MODEL,
        "records": log_dir / EVALUATIONS,
    }.items():
        console.print(f"{name + ':':17}{place}", soft_wrap=True)
    if any(log_dir.glob(EVENTS)):
        console.print(f"{'TensorBoard:':17}tensorboard --logdir {shlex.quote(str(log_dir))}", soft_wrap=True)
