"""``run.json``: how far a run is and what it has cost, for whoever watches it, resumes it or reports it."""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer

from rlvr_pl.atomic import whole_file
from rlvr_pl.callbacks import Interrupted
from rlvr_pl.environment import describe_environment
from rlvr_pl.run import RUN_FILE
from rlvr_pl.types import PromptBatch

State = Literal["baseline", "training", "testing", "finished", "interrupted", "failed"]


@dataclass
class RunState:
    """What ``run.json`` holds.

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
    train_seconds: float = 0.0  # rollouts and updates
    wall_seconds: float = 0.0  # evaluations, checkpoints and loading included; not the interpreter's imports
    evaluation_seconds: dict[str, float] = field(default_factory=dict)  # of the latest evaluation of val and of test
    updated: str = ""  # ISO 8601
    environment: dict[str, Any] = field(default_factory=dict)


# What a checkpoint holds of it, so that a resumed run counts on.
_ACCUMULATED = ("val_accuracy", "train_seconds", "wall_seconds", "evaluation_seconds")


def read_run_state(folder: Path) -> RunState | None:
    """The state of the run in ``folder``; None where it has none that can be read."""
    try:
        values = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
        return RunState(**{f.name: values[f.name] for f in dataclasses.fields(RunState)})
    except (OSError, ValueError, KeyError, TypeError):  # none yet, or not written to its end before a power cut
        return None


class RecordRunState(Callback):
    """Keeps ``run.json`` up to date around ``fit``: after every rollout and evaluation, all of the file or none."""

    def __init__(self) -> None:
        self.run = RunState()
        self._path: Path | None = None  # on rank 0 alone
        self._start = time.perf_counter()
        self._evaluation_start = 0.0
        self._earlier_seconds = 0.0  # wall-clock time before this process

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        log_dir = trainer.log_dir  # a collective: every rank must ask
        if self._path is not None or log_dir is None or not trainer.is_global_zero:
            return
        self._path = Path(log_dir) / RUN_FILE
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self.run.objective = type(pl_module.loss).__name__
        self.run.seed = pl_module.seed  # type: ignore[assignment]
        self.run.max_rollouts = trainer.datamodule.max_rollouts  # type: ignore[attr-defined]
        self.run.environment = describe_environment(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.run.wall_seconds = self._wall_seconds()
        checkpoint["run_state"] = {name: getattr(self.run, name) for name in _ACCUMULATED}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn != "fit":
            return  # the test after training loads the best checkpoint, which is the past
        for name, value in checkpoint.get("run_state", {}).items():
            setattr(self.run, name, value)
        self._earlier_seconds = self.run.wall_seconds

    # Progress

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._count(trainer, pl_module)
        self._write("training")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: PromptBatch, batch_idx: int
    ) -> None:
        metrics = trainer.callback_metrics
        self.run.train_seconds += float(metrics["time/rollout_s"] + metrics["time/update_s"])
        self._count(trainer, pl_module)
        self._write("training")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._evaluation_start = time.perf_counter()
        if trainer.state.fn != "fit":
            self._write("baseline")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if "val/accuracy" in trainer.callback_metrics:
            self.run.val_accuracy = float(trainer.callback_metrics["val/accuracy"])
        self._end_evaluation("val")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._evaluation_start = time.perf_counter()
        self._write("baseline" if self.run.state == "baseline" else "testing")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end_evaluation("test")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._write("interrupted" if isinstance(exception, Interrupted | KeyboardInterrupt) else "failed")

    def finish(self, best_rollout: int | None) -> None:
        """Nothing is left to do; the best checkpoint, where there is one, was taken after ``best_rollout`` rollouts."""
        self.run.best_rollout = best_rollout
        self._write("finished")

    def _count(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.run.rollouts_done = pl_module.rollouts_done  # type: ignore[assignment]
        self.run.completion_tokens = pl_module.completion_tokens  # type: ignore[assignment]
        self.run.optimizer_steps = trainer.global_step
        prompts = self.run.rollouts_done * trainer.datamodule.prompts_per_rollout  # type: ignore[attr-defined]
        self.run.samples = prompts * pl_module.group_size

    def _end_evaluation(self, split: str) -> None:
        self.run.evaluation_seconds[split] = time.perf_counter() - self._evaluation_start
        self._write(self.run.state)

    def _wall_seconds(self) -> float:
        return self._earlier_seconds + time.perf_counter() - self._start

    def _write(self, state: State) -> None:
        self.run.state = state
        self.run.wall_seconds = self._wall_seconds()
        self.run.updated = datetime.now(UTC).isoformat(timespec="seconds")
        if self._path is None:
            return
        with whole_file(self._path) as file:
            file.write_text(json.dumps(asdict(self.run), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
