"""What a run on the embedded problems unlearned, slip by slip: ``python -m rlvr_pl.embedded.slips RUN_FOLDER``.

Accuracy says how many problems came out right. This reads the arithmetic of each completion that an evaluation recorded
and says of every kind of step how often it was done right, with its typical slip, or in neither way.
"""

from __future__ import annotations

import argparse
import itertools
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from rich.table import Table

from rlvr_pl.data.problems import problem_stream
from rlvr_pl.embedded.annotators import SLIP_RATES, Done, read_steps
from rlvr_pl.run.records import Record, find_records, read_records
from rlvr_pl.run.terminal import make_console

SOURCE: dict[str, Literal["train", "test"]] = {"val": "train", "test": "test"}  # val is held out of the train problems

Counts = dict[str, Counter[Done]]
"""By kind of step, how often it was done in each way."""


def count_slips(stage: str, records: Iterable[Record]) -> Counts:
    """Count how each kind of step was done.

    Args:
        stage: ``val`` or ``test``.
        records: of one evaluation on the embedded problems.

    Raises:
        ValueError: if they are of other problems.
    """
    records = list(records)
    last = max((record["question"] for record in records), default=-1)
    problems = list(itertools.islice(problem_stream(SOURCE[stage], 0), last + 1))
    counts: Counts = {kind: Counter() for kind in SLIP_RATES}
    for record in records:
        problem = problems[record["question"]]
        if str(problem.work.quantity) != record["gold"]:
            raise ValueError(
                f"these are no answers to the embedded {stage} problems: question {record['question']} has the answer "
                f"{problem.work.quantity} there, and {record['gold']} here"
            )
        for kind, how in read_steps(problem.steps, record["completion"]):
            if kind in counts:
                counts[kind][how] += 1
    return counts


def slip_table(stage: str, evaluations: dict[int, Counts]) -> Table:
    """Tabulate the shares of steps done right, by kind of step and rollouts done."""
    table = Table(title=f"{stage}: steps that are done right (with their typical slip), %")
    table.add_column("step")
    table.add_column("slips in the corpus", justify="right")
    for rollout in evaluations:
        table.add_column(f"after {rollout}" if rollout else "before", justify="right")
    for kind, rate in SLIP_RATES.items():
        table.add_row(kind, f"{rate:.0%}", *(_shares(counts[kind]) for counts in evaluations.values()))
    return table


def _shares(done: Counter[Done]) -> str:
    total = done.total()
    return f"{done['right'] / total:.0%} ({done['slip'] / total:.0%})" if total else "–"


def main() -> None:
    parser = argparse.ArgumentParser(description="What a run on the embedded problems unlearned, slip by slip.")
    parser.add_argument("run", type=Path, help="a run's folder, with evaluations/*.jsonl in it")
    folder: Path = parser.parse_args().run
    stages: dict[str, dict[int, Counts]] = {}
    for stage, rollout, file in find_records(folder):
        if stage in SOURCE:
            try:
                stages.setdefault(stage, {})[rollout] = count_slips(stage, read_records(file))
            except ValueError as error:
                parser.error(f"{file}: {error}")
    if not stages:
        parser.error(f"{folder} has no evaluations/val-*.jsonl or test-*.jsonl")
    for stage, evaluations in stages.items():
        make_console().print(slip_table(stage, evaluations))


if __name__ == "__main__":
    main()
