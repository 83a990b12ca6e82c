"""Keeps ``run.json`` up to date while ``fit`` runs."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer

from rlvr_pl.run.environment import describe_environment
from rlvr_pl.run.files import whole_file
from rlvr_pl.run.folder import RUN_FILE
from rlvr_pl.run.lock import RunLock
from rlvr_pl.run.optimizer import OptimizerSettings
from rlvr_pl.run.place import run_folder
from rlvr_pl.run.signals import Interrupted
from rlvr_pl.run.state import RunState, State
from rlvr_pl.types import PromptBatch

# What a checkpoint holds of it, so that a resumed run counts on.
_ACCUMULATED = ("val_accuracy", "train_seconds", "wall_seconds", "evaluation_seconds")


class RecordRunState(Callback):
    """Keeps ``run.json`` up to date around ``fit``: after every rollout and evaluation, all of the file or none.

    Args:
        lock: taken before anything is written into the run's folder.
    """

    def __init__(self, lock: RunLock) -> None:
        self.state = RunState()
        self.learning_rate = 0.0  # of the configuration, before any schedule
        self._lock = lock
        self._path: Path | None = None  # on rank 0 alone
        self._start = time.perf_counter()
        self._evaluation_start = 0.0
        self._earlier_seconds = 0.0  # wall-clock time before this process

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        folder = run_folder(trainer)
        if self._path is not None or folder is None or not trainer.is_global_zero:
            return
        self._lock.take(folder)
        self._path = folder / RUN_FILE
        self.state.objective = type(pl_module.loss).__name__
        self.state.seed = pl_module.seed  # type: ignore[assignment]
        self.state.max_rollouts = trainer.datamodule.max_rollouts  # type: ignore[attr-defined]
        self.state.environment = describe_environment(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.state.wall_seconds = self._wall_seconds()
        checkpoint["run_state"] = {name: getattr(self.state, name) for name in _ACCUMULATED}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn != "fit":
            return  # the test after training loads the best checkpoint, which is the past
        for name, value in checkpoint.get("run_state", {}).items():
            setattr(self.state, name, value)
        self._earlier_seconds = self.state.wall_seconds

    # Progress

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        settings = cast(OptimizerSettings, pl_module.optimizer_settings).groups[0]
        self.learning_rate = settings.get("initial_lr", settings["lr"])
        self._count(trainer, pl_module)
        self._write("training")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: PromptBatch, batch_idx: int
    ) -> None:
        self.state.train_seconds += sum(pl_module.seconds.values())  # type: ignore[operator]
        self._count(trainer, pl_module)
        self._write("training")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._evaluation_start = time.perf_counter()
        if trainer.state.fn != "fit":
            self._write("baseline")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if "val/accuracy" in trainer.callback_metrics:
            self.state.val_accuracy = float(trainer.callback_metrics["val/accuracy"])
        self._end_evaluation("val")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._evaluation_start = time.perf_counter()
        self._write("baseline" if self.state.state == "baseline" else "testing")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end_evaluation("test")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.end(exception)

    def end(self, exception: BaseException) -> None:
        """Note that the run has ended before its end; a full disk, which may be why, is no second failure."""
        if self.state.state == "finished":
            return
        with suppress(OSError):
            self._write("interrupted" if isinstance(exception, Interrupted | KeyboardInterrupt) else "failed")

    @property
    def folder(self) -> Path | None:
        """The run's folder, once there is one; on rank 0 alone."""
        return None if self._path is None else self._path.parent

    def finish(self, best_rollout: int | None) -> None:
        """Note that nothing is left to do.

        Args:
            best_rollout: after how many rollouts the best checkpoint was taken; None where there is none.
        """
        self.state.best_rollout = best_rollout
        self._write("finished")

    def _count(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.state.rollouts_done = pl_module.rollouts_done  # type: ignore[assignment]
        self.state.completion_tokens = pl_module.completion_tokens  # type: ignore[assignment]
        self.state.optimizer_steps = trainer.global_step
        prompts = self.state.rollouts_done * trainer.datamodule.prompts_per_rollout  # type: ignore[attr-defined]
        self.state.samples = prompts * pl_module.group_size

    def _end_evaluation(self, split: str) -> None:
        self.state.evaluation_seconds[split] = time.perf_counter() - self._evaluation_start
        self._write(self.state.state)

    def _wall_seconds(self) -> float:
        return self._earlier_seconds + time.perf_counter() - self._start

    def _write(self, state: State) -> None:
        self.state.state = state
        self.state.wall_seconds = self._wall_seconds()
        self.state.updated = datetime.now(UTC).isoformat(timespec="seconds")
        if self._path is None:
            return
        with whole_file(self._path) as file:
            file.write_text(json.dumps(asdict(self.state), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
