"""The table at the end of a fit, and the accuracies that it shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlvr_pl.run.records import records_path, write_records
from rlvr_pl.run.summary import Accuracy, measures, print_evaluation, print_summary, read_accuracy
from rlvr_pl.verifiers import Number
from tests.helpers.records import record


def test_accuracies_of_an_evaluation(tmp_path: Path) -> None:
    write_records(
        records_path(tmp_path, "val", 20),
        [record(5, strict=True), record(2, flexible=True), record(7, strict=True, flexible=True), record(1)],
    )
    write_records(records_path(tmp_path, "val", 0), [record(0, flexible=True)])
    assert read_accuracy(tmp_path, "val", 20) == Accuracy(strict=0.5, flexible=0.5, questions=4)
    assert read_accuracy(tmp_path, "val", 0) == Accuracy(strict=0.0, flexible=1.0, questions=1)


def test_samples_are_averaged_and_questions_counted_once(tmp_path: Path) -> None:
    right = {(0, 0), (0, 1), (0, 2), (4, 1)}
    write_records(
        records_path(tmp_path, "test", 60),
        [record(q, s, strict=(q, s) in right, flexible=q == 0) for q in (0, 4) for s in range(4)],
    )
    assert read_accuracy(tmp_path, "test", 60) == Accuracy(strict=4 / 8, flexible=4 / 8, questions=2)


def test_an_evaluation_that_did_not_take_place_has_no_accuracy(tmp_path: Path) -> None:
    write_records(records_path(tmp_path, "val", 20), [record(0)])
    assert read_accuracy(tmp_path, "val", 0) is None
    assert read_accuracy(tmp_path, "test", 20) is None
    assert read_accuracy(tmp_path / "absent", "val", 20) is None


def test_the_summary_shows_before_after_and_the_difference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    write_records(records_path(tmp_path, "val", 0), [record(i, strict=i < 1, flexible=i < 3) for i in range(8)])
    write_records(records_path(tmp_path, "val", 40), [record(i, strict=i < 6, flexible=i < 2) for i in range(8)])
    write_records(records_path(tmp_path, "test", 40), [record(i, strict=i < 1) for i in range(3)])
    print_summary(tmp_path, "GSPO", best_rollout=40, seconds=12.3, rollouts=60, tokens=1234567, verifier=Number())
    lines = [" ".join(line.replace("│", " ").split()) for line in capsys.readouterr().out.splitlines()]
    assert "GSPO: 60 rollouts, 1,234,567 completion tokens, 12 s" in lines
    assert "val 8 strict (in the tags) 12.5% 75.0% +62.5" in lines
    assert "val 8 flexible (last number) 37.5% 25.0% -12.5" in lines
    assert "test 3 strict (in the tags) – 33.3% –" in lines
    assert f"records: {tmp_path / 'evaluations'}" in lines


def test_the_summary_prints_any_folder_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "x[/y]z :smile: [red]"
    write_records(records_path(folder, "val", 0), [record(0)])
    print_summary(folder, "GSPO", best_rollout=0, seconds=1.0, rollouts=1, tokens=1, verifier=Number())
    lines = capsys.readouterr().out.splitlines()
    assert f"logs:            {folder}" in lines
    assert "TensorBoard:" not in "".join(lines), "it has nothing to show"
    (folder / "events.out.tfevents.1").touch()
    print_summary(folder, "GSPO", best_rollout=0, seconds=1.0, rollouts=1, tokens=1, verifier=Number())
    lines = capsys.readouterr().out.splitlines()
    assert f"TensorBoard:     tensorboard --logdir '{folder}'" in lines


def test_an_evaluation_is_told_with_its_interval_and_its_records(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = records_path(tmp_path, "test", 0)
    write_records(path, [record(q, strict=q < 8, flexible=True) for q in range(10)])
    print_evaluation(path, "test", "some/[model]", Number())
    lines = [" ".join(line.replace("│", " ").split()) for line in capsys.readouterr().out.splitlines()]
    assert "test: some/[model]" in lines
    assert "strict (in the tags) 10 80.0% 49.0% to 94.3%" in lines
    assert "flexible (last number) 10 100.0% 72.2% to 100.0%" in lines
    assert f"records: {path}" in lines


def test_several_samples_have_measures_of_their_own() -> None:
    right = {0: 2, 1: 1, 2: 0}
    records = [
        record(q, s, strict=s < right[q]) | {"extracted": "18" if s < right[q] else "7"}
        for q in right
        for s in range(3)
    ]
    assert measures(records, Number()) == {
        "strict (in the tags), avg@3": [2 / 3, 1 / 3, 0.0],
        "flexible (last number), avg@3": [0.0, 0.0, 0.0],
        "strict, pass@2": [1.0, pytest.approx(2 / 3), 0.0],
        "strict, pass@3": [1.0, 1.0, 0.0],
        "strict, maj@3": [1.0, 0.0, 0.0],
    }
