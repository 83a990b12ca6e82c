"""Locks between processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlvr_pl.run.lock import HANDED_ON, RunLock, is_locked, try_lock
from rlvr_pl.types import ConfigError
from tests.helpers.paths import ROOT


def test_a_lock_is_held_by_one(tmp_path: Path) -> None:
    lock = tmp_path / "folder" / "run.lock"
    assert not is_locked(lock)
    assert not lock.parent.exists(), "to ask leaves nothing behind"
    assert try_lock(lock) is not None
    assert is_locked(lock)
    assert try_lock(lock) is None


def test_a_run_belongs_to_one_process(tmp_path: Path) -> None:
    lock = RunLock()
    lock.take(tmp_path)
    lock.take(tmp_path)  # it is this one's already
    with pytest.raises(ConfigError, match=f"another process is at work in {tmp_path}"):
        RunLock().take(tmp_path)
    lock.release()
    RunLock().take(tmp_path)


def test_a_parent_hands_its_lock_on(tmp_path: Path) -> None:
    """As a comparison does with its runs; the number alone is not enough."""
    held = try_lock(tmp_path / "run.lock")
    assert held is not None
    program = f"from rlvr_pl.run.lock import RunLock\nfrom pathlib import Path\nRunLock().take(Path({str(tmp_path)!r}))"
    command = [sys.executable, "-c", program]
    environment = {**os.environ, HANDED_ON: str(held)}
    assert subprocess.run(command, cwd=ROOT, env=environment, pass_fds=[held]).returncode == 0
    refused = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert "another process is at work" in refused.stderr
