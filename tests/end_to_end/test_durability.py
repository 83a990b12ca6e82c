"""In a whole fit the disk holds every file that a run goes on from before it has its name, and the name afterwards."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from rlvr_pl.main import main
from tests.helpers.runs import tiny_run

Event = tuple[str, str]


def test_nothing_takes_its_name_before_the_disk_holds_it(
    policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run" / "version_0"
    events: list[Event] = []
    fsync, replace = os.fsync, os.replace

    def note(kind: str, path: Any) -> None:
        if Path(path).is_relative_to(run):
            events.append((kind, str(Path(path).relative_to(run))))

    def spy_on_fsync(descriptor: int) -> None:
        fsync(descriptor)
        note("sync", os.readlink(f"/proc/self/fd/{descriptor}"))

    def spy_on_replace(source: Any, target: Any) -> None:
        replace(source, target)
        note("from", source)
        note("name", target)

    monkeypatch.setattr(os, "fsync", spy_on_fsync)
    monkeypatch.setattr(os, "replace", spy_on_replace)
    main(tiny_run(policy, tmp_path, **{"data.max_rollouts": 2}))

    named = [(at, name) for at, (kind, name) in enumerate(events) if kind == "name"]
    wanted = {"run.json", "config.yaml", "checkpoints/last.ckpt", "checkpoints/previous.ckpt", "checkpoints/best.ckpt"}
    assert wanted | {"evaluations/val-000002.jsonl", "best_model"} <= {name for _, name in named}
    assert ("sync", "best_model.unfinished/model.safetensors") in events
    for at, name in named:
        source, folder = events[at - 1][1], str(Path(name).parent)
        if name != "checkpoints/previous.ckpt":  # another name of what the disk holds already
            assert ("sync", source) in events[max(0, at - 4) : at - 1], f"the content of {name}"
        assert ("sync", folder) in events[at + 1 : at + 4], f"the name of {name}"
