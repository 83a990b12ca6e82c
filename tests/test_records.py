"""Records on disk, the files of a run, and the accuracies read from them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from rlvr_pl.records import read_records, records_path, write_records
from rlvr_pl.run import find_checkpoint, next_config_path
from rlvr_pl.summary import Accuracy, print_summary, read_accuracy
from rlvr_pl.types import ConfigError


def record(
    question: int, sample: int = 0, strict: bool = False, flexible: bool = False, text: str = ""
) -> dict[str, Any]:
    return {
        "question": question,
        "sample": sample,
        "gold": "18",
        "extracted": None,
        "correct": strict,
        "correct_flexible": flexible,
        "completion": text,
    }


# Records


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


def test_a_file_is_replaced_at_once_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "er" / "val.jsonl"
    write_records(path, [record(0)])
    seen: list[tuple[list[Any], list[Any]]] = []
    replace = os.replace

    def spy(source: Path, target: Path) -> None:
        seen.append((read_records(Path(source)), read_records(Path(target))))
        assert Path(source).parent == Path(target).parent  # a rename is atomic within one file system
        replace(source, target)

    monkeypatch.setattr(os, "replace", spy)
    write_records(path, [record(2), record(1)])
    assert seen == [([record(1), record(2)], [record(0)])]
    assert read_records(path) == [record(1), record(2)]
    assert [p.name for p in path.parent.iterdir()] == ["val.jsonl"]


@pytest.mark.parametrize("failure", ["serialize", "write", "replace"])
def test_a_failed_write_leaves_the_old_file(failure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "val.jsonl"
    write_records(path, [record(0)])
    records = [record(1), record(2)]

    def full_disk(*args: Any, **kwargs: Any) -> None:
        raise OSError("no space left on device")

    if failure == "serialize":
        records[1]["gold"] = object()
    elif failure == "write":
        monkeypatch.setattr(Path, "write_text", full_disk)
    else:
        monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(TypeError if failure == "serialize" else OSError):
        write_records(path, records)
    assert read_records(path) == [record(0)]


# Checkpoints


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_last_and_best_are_those_of_the_newest_run_that_has_one(tmp_path: Path) -> None:
    for version in (0, 2, 9, 10):
        touch(tmp_path / f"version_{version}" / "checkpoints" / "last.ckpt")
    for version in (0, 2, 9):
        touch(tmp_path / f"version_{version}" / "checkpoints" / "best.ckpt")
    (tmp_path / "version_11" / "checkpoints").mkdir(parents=True)
    assert find_checkpoint("last", tmp_path) == tmp_path / "version_10" / "checkpoints" / "last.ckpt"
    assert find_checkpoint("best", tmp_path) == tmp_path / "version_9" / "checkpoints" / "best.ckpt"


def test_a_version_that_is_no_number_is_the_oldest(tmp_path: Path) -> None:
    touch(tmp_path / "version_old" / "checkpoints" / "last.ckpt")
    assert find_checkpoint("last", tmp_path) == tmp_path / "version_old" / "checkpoints" / "last.ckpt"
    touch(tmp_path / "version_0" / "checkpoints" / "last.ckpt")
    assert find_checkpoint("last", tmp_path) == tmp_path / "version_0" / "checkpoints" / "last.ckpt"


@pytest.mark.parametrize("name", ["last", "best"])
def test_without_a_checkpoint_the_message_names_the_folder_and_the_remedy(name: str, tmp_path: Path) -> None:
    touch(tmp_path / "version_0" / "checkpoints" / "other.ckpt")
    touch(tmp_path / f"{name}.ckpt")
    with pytest.raises(ConfigError) as error:
        find_checkpoint(name, tmp_path)
    assert str(tmp_path) in str(error.value)
    assert f"{name}.ckpt" in str(error.value)
    assert "--ckpt_path" in str(error.value)
    with pytest.raises(ConfigError):
        find_checkpoint(name, tmp_path / "no runs here")


def test_a_path_is_that_file(tmp_path: Path) -> None:
    touch(tmp_path / "version_0" / "checkpoints" / "last.ckpt")
    mine = touch(tmp_path / "elsewhere" / "mine.ckpt")
    assert find_checkpoint(str(mine), tmp_path) == mine
    with pytest.raises(ConfigError, match=r"there is no file .*absent\.ckpt"):
        find_checkpoint(str(tmp_path / "absent.ckpt"), tmp_path)


def test_each_start_in_a_folder_has_a_config_of_its_own(tmp_path: Path) -> None:
    names = []
    for _ in range(4):
        path = next_config_path(tmp_path)
        assert not path.exists()
        path.touch()
        names.append(path.name)
    assert names == ["config.yaml", "config-1.yaml", "config-2.yaml", "config-3.yaml"]
    assert next_config_path(str(tmp_path)) == tmp_path / "config-4.yaml"


def test_other_files_are_no_configs(tmp_path: Path) -> None:
    for name in ("hparams.yaml", "config.json", "last.ckpt"):
        touch(tmp_path / name)
    assert next_config_path(tmp_path) == tmp_path / "config.yaml"


@pytest.mark.parametrize("names", [["config-1.yaml"], ["config.yaml", "config-2.yaml"]])
def test_an_existing_config_is_never_named(names: list[str], tmp_path: Path) -> None:
    for name in names:
        touch(tmp_path / name)
    assert not next_config_path(tmp_path).exists()


# Accuracies


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
    print_summary(tmp_path, "GSPO", best_rollout=40, seconds=12.3, rollouts=60, tokens=1234567)
    lines = [" ".join(line.replace("│", " ").split()) for line in capsys.readouterr().out.splitlines()]
    assert "GSPO: 60 rollouts, 1,234,567 completion tokens, 12 s" in lines
    assert "val 8 strict (in the tags) 12.5% 75.0% +62.5" in lines
    assert "val 8 flexible (last number) 37.5% 25.0% -12.5" in lines
    assert "test 3 strict (in the tags) – 33.3% –" in lines
    assert f"records: {tmp_path / 'evaluations'}" in lines
