"""A record per evaluated completion, on disk: what every later comparison stands on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlvr_pl.run.files import whole_file
from rlvr_pl.run.folder import EVALUATIONS

Record = Mapping[str, Any]


@dataclass(frozen=True)
class EvaluationRecord:
    """One graded completion as ``evaluations/*.jsonl`` holds it, in this order of its fields."""

    question: int  # the row in its split
    sample: int  # which of the question's completions
    gold: str  # where several answers are accepted, all of them, with " | " between
    extracted: str | None
    correct: bool
    correct_flexible: bool
    formatted: bool
    tokens: int
    truncated: bool
    completion: str
    cluster: str = ""  # what the question belongs to, where the data says


@dataclass(frozen=True)
class PredictionRecord:
    """One completion of ``predict``; gold answer and verdicts are None for a question without a gold answer."""

    question: int  # the row in its file
    sample: int
    question_text: str
    completion: str
    extracted: str | None
    gold: str | None
    correct: bool | None
    correct_flexible: bool | None
    formatted: bool
    tokens: int
    truncated: bool


def gold_of(answers: Iterable[str]) -> str:
    """Write the answers that are accepted as a record's ``gold``."""
    return " | ".join(answers)


UNGRADED = {"correct": None, "correct_flexible": None}


def records_path(log_dir: str | Path, stage: str, rollout: int) -> Path:
    """Say where the records of the evaluation after ``rollout`` rollouts lie: ``evaluations/val-000020.jsonl``, say."""
    return Path(log_dir) / EVALUATIONS / f"{stage}-{rollout:06d}.jsonl"


def find_records(log_dir: Path) -> Iterator[tuple[str, int, Path]]:
    """Find the evaluations of a run that have records: stage, rollout and file of each, in the order of the names."""
    for file in sorted((log_dir / EVALUATIONS).glob("*.jsonl")):
        stage, _, rollout = file.stem.rpartition("-")
        if stage and rollout.isdigit():
            yield stage, int(rollout), file


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Write one JSON object a line, ordered by question and sample; all of the file or none of it."""
    ordered = sorted(records, key=lambda r: (r["question"], r["sample"]))
    with whole_file(path) as file:
        file.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in ordered), encoding="utf-8")


def read_records(path: Path) -> list[Record]:
    """Read the records of one evaluation, ordered by question and sample."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
