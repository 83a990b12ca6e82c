"""A record per evaluated completion, on disk: what every later comparison stands on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rlvr_pl.atomic import whole_file

Record = Mapping[str, Any]


def records_path(log_dir: str | Path, stage: str, rollout: int) -> Path:
    """Where the records of the evaluation after ``rollout`` rollouts lie, e.g. ``evaluations/val-000020.jsonl``."""
    return Path(log_dir) / "evaluations" / f"{stage}-{rollout:06d}.jsonl"


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Write one JSON object a line, ordered by question and sample; all of the file or none of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ordered = sorted(records, key=lambda r: (r["question"], r["sample"]))
    with whole_file(path) as file:
        file.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in ordered), encoding="utf-8")


def read_records(path: Path) -> list[Record]:
    """The records of one evaluation, ordered by question and sample."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
