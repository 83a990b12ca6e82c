"""Checkpoints are written whole, never built in memory, and looked through before they are loaded."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from rlvr_pl.run.checkpoint_files import (
    WholeFileCheckpoints,
    check_architecture,
    check_same_run,
    damage,
    put_aside,
    read_checkpoint,
    whole_checkpoint,
)
from rlvr_pl.types import ConfigError

CHECKPOINTS = WholeFileCheckpoints()


def number(path: Path) -> int:
    return torch.load(path, weights_only=True)["number"]


def save(path: Path, number: int) -> Path:
    CHECKPOINTS.save_checkpoint({"number": number, "weights": torch.full((4096,), float(number))}, path)
    return path


def flip(path: Path, at: int, count: int = 64) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        altered = bytes(byte ^ 255 for byte in file.read(count))
        file.seek(at)
        file.write(altered)


# Writing


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "last.ckpt"
    CHECKPOINTS.save_checkpoint({"weights": torch.arange(3), "rollouts_done": 5}, path)
    loaded = torch.load(path, weights_only=True)
    assert loaded["weights"].tolist() == [0, 1, 2]
    assert loaded["rollouts_done"] == 5
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


def test_it_takes_the_place_of_the_last_one_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in between there is always a whole last.ckpt, and what it replaces stays as previous.ckpt."""
    path = save(tmp_path / "last.ckpt", 1)
    seen = []
    replace = os.replace

    def spy(source: Path, target: Path) -> None:
        assert Path(source).parent == Path(target).parent  # a rename is atomic within one file system
        seen.append((Path(target).name, number(source), number(path)))
        replace(source, target)

    monkeypatch.setattr(os, "replace", spy)
    save(path, 2)
    assert seen == [("previous.ckpt", 1, 1), ("last.ckpt", 2, 1)]
    save(path, 3)
    assert (number(path), number(tmp_path / "previous.ckpt")) == (3, 2)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["last.ckpt", "previous.ckpt"]


def test_a_failed_write_leaves_the_last_one_and_no_rest(tmp_path: Path) -> None:
    path = save(tmp_path / "last.ckpt", 1)
    with pytest.raises((AttributeError, TypeError)):
        CHECKPOINTS.save_checkpoint({"number": lambda: None}, path)
    assert number(path) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_it_is_written_to_its_file_and_not_to_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """18 GB of it would be held twice."""
    targets: list[Any] = []
    monkeypatch.setattr(torch, "save", lambda checkpoint, file: targets.append(file.name))
    CHECKPOINTS.save_checkpoint({}, tmp_path / "last.ckpt")
    assert targets == [str(tmp_path / "last.ckpt.unfinished")]


# Looking through


def test_every_altered_byte_that_matters_is_seen(tmp_path: Path) -> None:
    """Anywhere in the file: what passes for whole is loaded as it was."""
    path = save(tmp_path / "mine.ckpt", 1)
    whole = path.read_bytes()
    assert damage(path) is None
    generator = random.Random(0)
    seen = 0
    for _ in range(300):
        path.write_bytes(whole)
        flip(path, generator.randrange(len(whole)), count=1)
        seen += damage(path) is not None
        if damage(path) is None:
            assert torch.load(path, weights_only=True)["weights"].eq(1).all()
    assert seen > 250, "16 of its 18 kB are weights"


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    path = save(tmp_path / "mine.ckpt", 1)
    whole = path.read_bytes()
    flip(path, len(whole) // 2)
    assert damage(path) == "is altered: the checksum of data/0 does not match"
    path.write_bytes(whole[:-100])
    assert damage(path) == "is torn: it was not written, or copied, to its end"
    path.write_bytes(b"")
    assert damage(path) == "is empty"
    path.write_text("epoch: 3")
    assert damage(path) == "is no checkpoint"


def test_a_damaged_last_one_gives_way_to_the_one_before_it(tmp_path: Path) -> None:
    path, previous = tmp_path / "last.ckpt", tmp_path / "previous.ckpt"
    for i in (1, 2):
        save(path, i)
    assert whole_checkpoint(path) == (path, None)
    flip(path, 9000)
    used, told = whole_checkpoint(path)
    assert used == previous
    assert told == (
        f"{path} is altered: the checksum of data/0 does not match; the one before it, previous.ckpt, is used"
    )
    put_aside(path, used)
    assert (number(path), damage(path), damage(tmp_path / "last.ckpt.damaged") is None) == (1, None, False)
    save(path, 3)
    assert (number(path), number(previous)) == (3, 1), "no damaged one has come in between"
    for file in (path, previous):
        file.write_bytes(b"")
    save(tmp_path / "best.ckpt", 0)
    with pytest.raises(ConfigError, match=r"last\.ckpt is empty, and previous\.ckpt is empty; give .*best\.ckpt"):
        whole_checkpoint(path)
    with pytest.raises(ConfigError, match=r"previous\.ckpt is empty; give another checkpoint"):
        whole_checkpoint(previous)


def checkpoint(**changes: Any) -> dict[str, Any]:
    settings = {"seed": 0, "objective": "GRPO", "policy": "embedded"}
    return {
        "state_dict": {"policy.head.weight": torch.zeros(3, 2)},
        "loops": {},
        "optimizer_states": [],
        "rollouts_done": 1,
        "completion_tokens": 1,
        "hyper_parameters": settings,
        **changes,
    }


def test_a_strangers_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.ckpt"
    torch.save(checkpoint(), path)
    assert read_checkpoint(path)["rollouts_done"] == 1
    torch.save({"state_dict": {}}, path)
    with pytest.raises(ConfigError, match=r"no checkpoint of a run of rlvr_pl .it lacks loops, optimizer_states, "):
        read_checkpoint(path)
    torch.save(Path, path)
    with pytest.raises(ConfigError, match="it cannot be read as one"):
        read_checkpoint(path)


def test_another_architecture_is_named(tmp_path: Path) -> None:
    check_architecture(checkpoint(), {"policy.head.weight": torch.Size([3, 2])}, tmp_path, "embedded")
    with pytest.raises(ConfigError, match=r"model\.policy 'big': head\.weight is \(3, 2\) there and \(3, 9\) here"):
        check_architecture(checkpoint(), {"policy.head.weight": torch.Size([3, 9])}, tmp_path, "big")
    with pytest.raises(ConfigError, match=r"body\.weight is absent there and \(1,\) here"):
        check_architecture(checkpoint(), {"policy.body.weight": torch.Size([1])}, tmp_path, "big")


def test_another_seed_objective_or_policy_is_another_run(tmp_path: Path) -> None:
    settings = checkpoint()["hyper_parameters"]
    check_same_run(checkpoint(), settings, tmp_path)
    with pytest.raises(
        ConfigError,
        match=r"seed_everything is 1 and was 0, model\.loss is GSPO and was GRPO\. .* --resume_point\.allow_changes",
    ):
        check_same_run(checkpoint(), settings | {"seed": 1, "objective": "GSPO"}, tmp_path)
    with pytest.raises(ConfigError, match=r"model\.policy is other and was embedded"):
        check_same_run(checkpoint(), settings | {"policy": "other"}, tmp_path)
