"""Files are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from rlvr_pl.run.records import read_records, write_records
from tests.helpers.records import record


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
