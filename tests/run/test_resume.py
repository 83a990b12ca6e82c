"""Which run a command goes on with, and what it says of the others."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from rlvr_pl.run.lock import RunLock, is_locked
from rlvr_pl.run.place import Place
from rlvr_pl.run.resume import choose_checkpoint
from rlvr_pl.run.state import RunState
from rlvr_pl.types import ConfigError


def make_run(folder: Path, **state: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(asdict(RunState(**state))))
    (folder / "checkpoints").mkdir()
    torch.save({}, folder / "checkpoints" / "last.ckpt")
    return folder


def choose(name: str, folder: Path, budget: int | None = 6, version: str | None = None) -> tuple[Path, Path | None]:
    lock = RunLock()
    try:
        return choose_checkpoint(name, Place(folder / "run", version), budget, lock)
    finally:
        lock.release()


def test_last_goes_on_in_its_folder_and_names_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = make_run(tmp_path / "run" / "version_0", state="interrupted", rollouts_done=3)
    (tmp_path / "run" / "version_1").mkdir()
    with caplog.at_level(logging.INFO):
        checkpoint, resumed = choose("last", tmp_path)
    assert checkpoint == run / "checkpoints" / "last.ckpt"
    assert resumed == run
    assert caplog.messages == [f"Going on with {run} (version_1, begun later, has no checkpoint to go on from)"]
    assert (run / "run.lock").exists()
    assert not is_locked(run / "run.lock")


def test_a_folder_is_the_run_that_is_meant(tmp_path: Path) -> None:
    for version in (0, 1):
        make_run(tmp_path / "run" / f"version_{version}")
    run = tmp_path / "run" / "version_0"
    assert choose(str(run), tmp_path)[1] == run
    assert choose("last", tmp_path, version="version_0") == (run / "checkpoints" / "last.ckpt", run)


def test_a_file_begins_a_run_of_its_own(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run" / "version_0", state="finished", rollouts_done=6)
    file = run / "checkpoints" / "last.ckpt"
    assert choose(str(file), tmp_path) == (file, None)
    assert not (run / "run.lock").exists()


def test_a_finished_run_is_not_gone_on_with_unless_there_is_more_to_do(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run" / "version_0", state="finished", rollouts_done=6)
    with pytest.raises(ConfigError, match=rf"{run} is finished, with 6 rollouts; raise data\.max_rollouts above that"):
        choose("last", tmp_path)
    with pytest.raises(ConfigError, match="is finished"):  # as a comparison names it
        choose(str(run / "checkpoints" / "last.ckpt"), tmp_path, version="version_0")
    assert choose("last", tmp_path, budget=7)[1] == run
    assert choose("last", tmp_path, budget=None)[1] is None, "test and validate write elsewhere"


def test_a_damaged_checkpoint_is_put_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_run(tmp_path / "run" / "version_0") / "checkpoints"
    torch.save({"number": 1}, folder / "previous.ckpt")
    (folder / "last.ckpt").write_bytes(b"")
    with caplog.at_level(logging.INFO):
        checkpoint, _ = choose("last", tmp_path)
    assert checkpoint.name == "previous.ckpt"
    assert f"{folder / 'last.ckpt'} is empty; the one before it, previous.ckpt, is used. Going on" in caplog.text
    assert torch.load(folder / "last.ckpt")["number"] == 1
    assert (folder / "last.ckpt.damaged").read_bytes() == b""
