"""Accuracy by how hard a problem is for the untrained policy."""

from __future__ import annotations

import io
import itertools
from collections import Counter

import numpy as np
import pytest
from rich.console import Console

from rlvr_pl.data.problems import problem_stream
from rlvr_pl.data.solutions import Step
from rlvr_pl.embedded.difficulty import chance_right, difficulty_table, thirds
from rlvr_pl.report.outcomes import Outcomes

QUESTIONS = 30
PROBLEMS = list(itertools.islice(problem_stream("test", 0), QUESTIONS))
GOLDS = [(number, str(problem.work.quantity)) for number, problem in enumerate(PROBLEMS)]


def test_the_chance_is_that_of_no_slip() -> None:
    assert chance_right([Step("owns", (3,)), Step("gives", (2,)), Step("shares", (4,))]) == pytest.approx(0.7 * 0.15)


def test_thirds_are_sorted_and_hold_every_question_once() -> None:
    columns = thirds(Outcomes("test", "last", GOLDS, {}))
    assert sorted(np.concatenate(list(columns.values()))) == list(range(QUESTIONS))
    chances = {name: [chance_right(PROBLEMS[q].steps) for q in which] for name, which in columns.items()}
    assert max(chances["hard"]) <= min(chances["middle"]) <= max(chances["middle"]) <= min(chances["easy"])


def test_another_data_set_is_refused() -> None:
    with pytest.raises(ValueError, match=r"question 1 has the answer -7, and .* this is another data set"):
        thirds(Outcomes("test", "last", [GOLDS[0], (1, "-7")], {}))


def test_an_arm_that_is_better_on_hard_problems_alone_shows_there() -> None:
    hard = thirds(Outcomes("test", "last", GOLDS, {}))["hard"]
    worse = np.ones((3, QUESTIONS))
    worse[:, hard] = 0
    answers = {("A", "strict"): np.ones((3, QUESTIONS)), ("B", "strict"): worse}
    outcomes = Outcomes("test", "last", GOLDS, {"A": [0, 1, 2], "B": [0, 1, 2]}, answers, {"last": answers})
    shown = io.StringIO()
    Console(width=250, file=shown).print(difficulty_table(outcomes, "strict"))
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.getvalue().splitlines() if "│" in line]
    starts = {row[0]: [cell.split(" ")[0] for cell in row[1:]] for row in rows}
    assert starts["A"] == ["100.0", "100.0", "100.0", ""]
    assert starts["B"] == ["0.0", "100.0", "100.0", ""]
    assert starts["A − B"] == ["+100.0", "+0.0", "+0.0", "+100.0"]
    assert Counter(len(row) for row in rows) == {5: 3}
