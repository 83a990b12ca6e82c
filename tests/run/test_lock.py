"""Locks between processes."""

from __future__ import annotations

from pathlib import Path

from rlvr_pl.run.lock import is_locked, try_lock


def test_a_lock_is_held_by_one(tmp_path: Path) -> None:
    lock = tmp_path / "folder" / "run.lock"
    assert not is_locked(lock)
    assert not lock.parent.exists(), "to ask leaves nothing behind"
    assert try_lock(lock) is not None
    assert is_locked(lock)
    assert try_lock(lock) is None
