"""The table at the end of ``fit``: before and after, what it cost, and where everything lies."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from rlvr_pl.run.folder import BEST, BEST_MODEL, CHECKPOINTS, EVALUATIONS
from rlvr_pl.run.records import read_records, records_path
from rlvr_pl.run.terminal import make_console


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


def print_summary(log_dir: Path, objective: str, best_rollout: int, seconds: float, rollouts: int, tokens: int) -> None:
    """Print the table of a finished ``fit``.

    Args:
        log_dir: the run's folder.
        objective: the loss strategy's name.
        best_rollout: after how many rollouts the best checkpoint was taken.
        seconds: wall-clock time of this call, evaluations included.
        rollouts, tokens: trained on, over the whole run.
    """
    table = Table(title=f"{objective}: {rollouts} rollouts, {tokens:,} completion tokens, {seconds:.0f} s")
    for column in ("split", "questions", "accuracy", "before", "after", "Δ"):
        table.add_column(column, justify="left" if column in ("split", "accuracy") else "right")
    for split in ("val", "test"):
        before, after = read_accuracy(log_dir, split, 0), read_accuracy(log_dir, split, best_rollout)
        if after is None:
            continue
        for kind, name in (("strict", "strict (in the tags)"), ("flexible", "flexible (last number)")):
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
    console.print(f"{'TensorBoard:':17}tensorboard --logdir {shlex.quote(str(log_dir))}", soft_wrap=True)
