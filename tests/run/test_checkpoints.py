"""Checkpoints are written whole, beside their place, and never built in memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from rlvr_pl.run.checkpoints import WholeFileCheckpoints


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "last.ckpt"
    WholeFileCheckpoints().save_checkpoint({"weights": torch.arange(3), "rollouts_done": 5}, path)
    loaded = torch.load(path, weights_only=True)
    assert loaded["weights"].tolist() == [0, 1, 2]
    assert loaded["rollouts_done"] == 5
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


def test_it_takes_the_place_of_the_last_one_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.ckpt"
    checkpoints = WholeFileCheckpoints()
    checkpoints.save_checkpoint({"number": 1}, path)
    seen = []
    replace = os.replace

    def spy(source: Path, target: Path) -> None:
        seen.append([torch.load(file, weights_only=True)["number"] for file in (source, target)])
        assert Path(source).parent == Path(target).parent  # a rename is atomic within one file system
        replace(source, target)

    monkeypatch.setattr(os, "replace", spy)
    checkpoints.save_checkpoint({"number": 2}, path)
    assert seen == [[2, 1]]
    assert torch.load(path, weights_only=True) == {"number": 2}


def test_a_failed_write_leaves_the_last_one(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    checkpoints = WholeFileCheckpoints()
    checkpoints.save_checkpoint({"number": 1}, path)
    with pytest.raises((AttributeError, TypeError)):
        checkpoints.save_checkpoint({"number": lambda: None}, path)
    assert torch.load(path, weights_only=True) == {"number": 1}


def test_it_is_written_to_its_file_and_not_to_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """18 GB of it would be held twice."""
    targets: list[Any] = []
    monkeypatch.setattr(torch, "save", lambda checkpoint, file: (targets.append(file), file.touch()))
    WholeFileCheckpoints().save_checkpoint({}, tmp_path / "last.ckpt")
    assert targets == [tmp_path / "last.ckpt.unfinished"]
