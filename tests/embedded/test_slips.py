"""What a run unlearned, slip by slip."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest

from rlvr_pl.data.problems import problem_stream
from rlvr_pl.data.solutions import SLIPS, answer_text, solve
from rlvr_pl.embedded.annotators import SLIP_RATES
from rlvr_pl.embedded.slips import count_slips, main
from rlvr_pl.run.records import records_path, write_records

PROBLEMS = list(itertools.islice(problem_stream("test", 0), 200))


def completions(slipping: bool) -> list[str]:
    """Every problem solved right, or with every slip that there is."""
    return [
        answer_text(solve(p.steps, [i for i, step in enumerate(p.steps) if slipping and step.kind in SLIPS]))
        for p in PROBLEMS
    ]


@pytest.mark.parametrize("slipping", [False, True])
def test_each_step_is_counted_as_it_was_done(slipping: bool) -> None:
    golds = [str(problem.work.quantity) for problem in PROBLEMS]
    texts = completions(slipping)
    records = [{"question": i, "gold": golds[i], "completion": text} for i, text in enumerate(texts)]
    counts = count_slips("test", records)
    assert counts.keys() == SLIP_RATES.keys()
    for kind, done in counts.items():
        occurs = sum(step.kind == kind for problem in PROBLEMS for step in problem.steps)
        assert 0 < done.total() <= occurs
        assert done["other"] == 0
        # A step that reads alike both ways (2+2 and 2*2) is read as right.
        assert done["slip" if slipping else "right"] / done.total() > (0.9 if slipping else 0.99), kind


def test_the_table_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for rollout in (0, 8):
        records = [
            {"question": i, "sample": 0, "gold": str(p.work.quantity), "completion": text}
            for i, (p, text) in enumerate(zip(PROBLEMS, completions(slipping=rollout == 0), strict=True))
        ]
        write_records(records_path(tmp_path, "test", rollout), records)
    monkeypatch.setattr(sys, "argv", ["slips", str(tmp_path)])
    main()
    shown = capsys.readouterr().out
    assert "before" in shown
    assert "after 8" in shown
    (price,) = (line for line in shown.splitlines() if " price " in line)
    assert [cell.strip() for cell in price.split("│")[1:-1]] == ["price", "85%", "0% (100%)", "100% (0%)"]


def test_a_folder_without_evaluations_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["slips", str(tmp_path)])
    with pytest.raises(SystemExit):
        main()
    assert f"{tmp_path} has no evaluations/val-*.jsonl" in capsys.readouterr().err


def test_answers_to_other_questions_are_refused() -> None:
    with pytest.raises(ValueError, match="question 0 has the answer"):
        count_slips("test", [{"question": 0, "gold": "-1", "completion": ""}])
