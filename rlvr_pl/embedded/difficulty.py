"""Where objectives differ, by how hard a problem is: ``python -m rlvr_pl.embedded.difficulty COMPARISON_FOLDER``.

How hard an embedded problem is for the untrained policy is known beforehand: the chance that an annotator slips in none
of its steps. A division by the group's standard deviation (GRPO, GSPO) weighs questions with rare successes more than
no division does (Dr.GRPO). If that matters here, arms differ more on the hard third than on the easy one.
"""

from __future__ import annotations

import argparse
import itertools
import math
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from rlvr_pl.data.problems import problem_stream
from rlvr_pl.data.solutions import Step
from rlvr_pl.embedded.annotators import SLIP_RATES
from rlvr_pl.report.outcomes import Outcomes, collect_outcomes
from rlvr_pl.report.statistics import compare_pair, mean_accuracy
from rlvr_pl.report.study import load_study
from rlvr_pl.report.wording import with_interval
from rlvr_pl.types import ConfigError

THIRDS = ("hard", "middle", "easy")


def chance_right(steps: list[Step]) -> float:
    """Compute the chance that an annotator slips in none of a problem's steps."""
    return math.prod(1 - SLIP_RATES.get(step.kind, 0.0) for step in steps)


def thirds(outcomes: Outcomes) -> dict[str, NDArray[np.int64]]:
    """Sort the columns of the outcomes into thirds by the chance that an annotator is right; ties by their number.

    Raises:
        ValueError: if the questions are none of the embedded test problems.
    """
    last = max((question for question, _ in outcomes.golds), default=-1)
    problems = list(itertools.islice(problem_stream("test", 0), last + 1))
    for question, gold in outcomes.golds:
        if str(problems[question].work.quantity) != gold:
            raise ValueError(
                f"question {question} has the answer {gold}, and {problems[question].work.quantity} among the embedded "
                "test problems: this is another data set"
            )
    chances = [chance_right(problems[question].steps) for question, _ in outcomes.golds]
    return dict(zip(THIRDS, np.array_split(np.argsort(chances, kind="stable"), len(THIRDS)), strict=True))


def difficulty_table(outcomes: Outcomes, metric: str) -> Table:
    """Tabulate final accuracies and differences on each third of the questions, and by how much those differ."""
    columns = thirds(outcomes)
    table = Table(title=f"Final {outcomes.split} accuracy, {metric}, by how hard a problem is at the start, %")
    for name in ("", *(f"{name} ({len(questions):,})" for name, questions in columns.items()), "hard − easy"):
        table.add_column(name)
    for arm in outcomes.arms:
        final = outcomes.final[arm, metric]
        table.add_row(arm, *(with_interval(mean_accuracy(final[:, which])) for which in columns.values()), "")
    for a, b in combinations(outcomes.arms, 2):
        of_a, of_b = outcomes.paired(a, b, metric)
        differences = [compare_pair(of_a[:, which], of_b[:, which]).difference for which in columns.values()]
        # Of equally many questions each, drawn apart: the two thirds as one difference, question by question.
        most = min(len(columns["hard"]), len(columns["easy"]))
        hard, easy = (columns[name][:most] for name in ("hard", "easy"))
        change = compare_pair(of_a[:, hard] - of_b[:, hard], of_a[:, easy] - of_b[:, easy])
        table.add_row(
            f"{a} − {b}",
            *(with_interval(difference, signed=True) for difference in differences),
            with_interval(change.difference, signed=True),
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description="Where the arms of a comparison differ, by how hard a problem is.")
    parser.add_argument("folder", type=Path, help="a comparison on the embedded problems")
    folder: Path = parser.parse_args().folder
    try:
        study = load_study(folder)
        outcomes = collect_outcomes(study)
        if outcomes.split != "test" or not outcomes.golds:
            parser.error(f"{folder} has no finished runs with answers to the test questions")
        Console().print(difficulty_table(outcomes, study.rules.metric))
    except (ConfigError, ValueError) as error:
        parser.error(f"{folder}: {error}")


if __name__ == "__main__":
    main()
