"""Files are there whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from rlvr_pl.run.files import WriteError, name_also, whole_file, whole_folder
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


def test_the_disk_holds_a_file_before_it_takes_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the folder's list afterwards; also the folders that were missing."""
    done: list[tuple[str, str]] = []
    fsync, replace = os.fsync, os.replace

    def spy(descriptor: int) -> None:
        done.append(("sync", os.path.relpath(os.readlink(f"/proc/self/fd/{descriptor}"), tmp_path)))
        fsync(descriptor)

    def spy_on_names(source: Path, target: Path) -> None:
        done.append(("name", os.path.relpath(target, tmp_path)))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", spy)
    monkeypatch.setattr(os, "replace", spy_on_names)
    write_records(tmp_path / "new" / "val.jsonl", [record(0)])
    assert done == [("sync", "."), ("sync", "new/val.jsonl.unfinished"), ("name", "new/val.jsonl"), ("sync", "new")]
    done.clear()
    with whole_folder(tmp_path / "model") as folder:
        (folder / "weights").write_text("1")
    assert done == [
        ("sync", "."),
        ("sync", "model.unfinished/weights"),
        ("sync", "model.unfinished"),
        ("name", "model"),
        ("sync", "."),
    ]


def test_a_failed_write_names_the_file_and_the_room_that_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full_disk)
    path = tmp_path / "run.json"
    with (
        pytest.raises(
            WriteError, match=rf"^cannot write {path}: No space left on device \([\d,]+ MB are free there\)$"
        ),
        whole_file(path) as file,
    ):
        file.write_text("{}")
    assert list(tmp_path.iterdir()) == [], "it may be what fills the disk"


@pytest.mark.parametrize("links", [True, False])
def test_a_file_has_a_second_name(links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the file system knows of none."""

    def refuse(*_: Any) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    path, other = tmp_path / "last.ckpt", tmp_path / "previous.ckpt"
    path.write_text("1")
    for _ in range(2):  # the second time both are one file already
        name_also(path, other)
        assert (path.read_text(), other.read_text()) == ("1", "1")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["last.ckpt", "previous.ckpt"]
