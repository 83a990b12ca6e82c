"""Records on disk: what is written comes back, whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlvr_pl.run.records import find_records, read_records, records_path, write_records
from tests.helpers.records import record


@pytest.mark.parametrize(
    ("stage", "rollout", "name"),
    [("val", 0, "val-000000.jsonl"), ("test", 20, "test-000020.jsonl"), ("predict", 1234567, "predict-1234567.jsonl")],
)
def test_where_records_lie(stage: str, rollout: int, name: str, tmp_path: Path) -> None:
    assert records_path(tmp_path, stage, rollout) == tmp_path / "evaluations" / name
    assert records_path(str(tmp_path), stage, rollout) == tmp_path / "evaluations" / name


def test_records_are_a_json_object_a_line_ordered_by_question_and_sample(tmp_path: Path) -> None:
    path = records_path(tmp_path, "val", 20)
    places = [(10, 1), (9, 0), (10, 0), (0, 2), (100, 0), (0, 10), (0, 0)]
    write_records(path, (record(question, sample) for question, sample in places))
    ordered = [(0, 0), (0, 2), (0, 10), (9, 0), (10, 0), (10, 1), (100, 0)]
    assert read_records(path) == [record(question, sample) for question, sample in ordered]
    text = path.read_text(encoding="utf-8")
    assert [json.loads(line) for line in text.split("\n")[:-1]] == [record(*place) for place in ordered]
    assert text.endswith("}\n")


TEXTS = ["", "a\nb\r\nc\ttab", '"quoted" \\ {"json": 1}', "½ − 3 €, 数学, 🙂", "\x00\x0b\x0c\x1c\x1d\x1e\x1f\x7f", "�"]


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_comes_back_as_it_was(text: str, tmp_path: Path) -> None:
    path = tmp_path / "val.jsonl"
    write_records(path, [record(0, text=text), record(1, text="next")])
    assert read_records(path) == [record(0, text=text), record(1, text="next")]


@pytest.mark.parametrize("separator", ["\x85", "\u2028", "\u2029"])
def test_unicode_line_separators_come_back_too(separator: str, tmp_path: Path) -> None:
    path = tmp_path / "val.jsonl"
    write_records(path, [record(0, text=f"a{separator}b")])
    assert read_records(path) == [record(0, text=f"a{separator}b")]


def test_texts_are_readable_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "val.jsonl"
    write_records(path, [record(0, text="½ − 3 €")])
    assert "½ − 3 €".encode() in path.read_bytes()


def test_no_records_are_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "val.jsonl"
    write_records(path, [])
    assert path.read_bytes() == b""
    assert read_records(path) == []


def test_the_evaluations_of_a_run_are_found_by_stage_and_rollout(tmp_path: Path) -> None:
    assert list(find_records(tmp_path)) == []
    paths = {place: records_path(tmp_path, *place) for place in (("test", 0), ("val", 0), ("val", 1234567))}
    for path in paths.values():
        write_records(path, [record(0)])
    for other in ("notes.jsonl", "val-late.jsonl", "val-000003.txt"):
        (tmp_path / "evaluations" / other).touch()
    assert {(stage, rollout): path for stage, rollout, path in find_records(tmp_path)} == paths
