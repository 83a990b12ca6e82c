"""``run.json``: how far a run is and what it has cost, for whoever watches it, resumes it or reports it."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rlvr_pl.run.folder import RUN_FILE

State = Literal["baseline", "training", "testing", "finished", "interrupted", "failed"]


@dataclass
class RunState:
    """The content of ``run.json``.

    Times are those of the work that the run is made of. What was done after the last checkpoint before an interruption
    is done again and counted once; a power cut therefore adds nothing.
    """

    state: State = "baseline"
    objective: str = ""
    seed: int = 0
    rollouts_done: int = 0
    max_rollouts: int = 0
    completion_tokens: int = 0  # of the rollouts, over all ranks
    optimizer_steps: int = 0
    samples: int = 0  # completions of the rollouts, over all ranks
    best_rollout: int | None = None  # after how many rollouts the best checkpoint was taken; None until finished
    val_accuracy: float | None = None  # of the latest evaluation
    train_seconds: float = 0.0  # rollouts, rewards and updates
    wall_seconds: float = 0.0  # evaluations, checkpoints and loading included; not the interpreter's imports
    evaluation_seconds: dict[str, float] = field(default_factory=dict)  # of the latest evaluation of val and of test
    updated: str = ""  # ISO 8601
    environment: dict[str, Any] = field(default_factory=dict)


def read_run_file(folder: Path) -> tuple[dict[str, Any], str | None]:
    """Read ``run.json``, whatever it holds.

    Returns:
        Its values, none where it cannot be read; and what is wrong with it, or None. A run made before there was one
        has none, which is not wrong.
    """
    try:
        values = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}, None
    except (OSError, ValueError) as error:  # not written to its end before a power cut, say
        return {}, f"{RUN_FILE} is unreadable ({str(error).splitlines()[0]})"
    return (values, None) if isinstance(values, dict) else ({}, f"{RUN_FILE} is not a JSON object")


def read_run_state(folder: Path) -> RunState | None:
    """Read the state of the run in ``folder``; None where it has no whole one."""
    values, _ = read_run_file(folder)
    names = [field.name for field in dataclasses.fields(RunState)]
    return RunState(**{name: values[name] for name in names}) if all(name in values for name in names) else None
