"""What a run says that it ran on and with."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from rlvr_pl.run.environment import commit_of, is_first_rank


def test_the_commit_is_the_package_s_own(tmp_path: Path) -> None:
    package = tmp_path / "rlvr_pl"
    package.mkdir()
    assert commit_of(package) == {"commit": None, "commit_dirty": False}

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    (package / "module.py").write_text("a = 1\n")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    (tmp_path / "notes").write_text("not the package's")
    assert commit_of(package) == {"commit": git("rev-parse", "HEAD"), "commit_dirty": False}
    (package / "module.py").write_text("a = 2\n")
    assert commit_of(package)["commit_dirty"] is True


def test_of_two_nodes_one_has_the_first_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before there is a trainer, and where whoever starts the processes names nothing but the node."""
    assert is_first_rank()
    monkeypatch.setenv("NODE_RANK", "1")
    assert not is_first_rank()
    monkeypatch.setenv("NODE_RANK", "0")
    assert is_first_rank()
