"""When a run is evaluated and saved, and how it is interrupted: between two rollouts, never inside one."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_info

from rlvr_pl.run.files import whole_file
from rlvr_pl.run.folder import BEST, CHECKPOINTS, LAST
from rlvr_pl.types import PromptBatch, check_at_least


class Interrupted(Exception):
    """The run was interrupted between two rollouts and has written what it resumes from."""


def _validation_follows(trainer: Trainer, batch_idx: int) -> bool:
    """Tell whether the trainer validates after this rollout; after the last one it always does."""
    due = trainer.should_stop or (batch_idx + 1) % (trainer.val_check_batch or 1) == 0
    return due and trainer.enable_validation


class LastRolloutIsEvaluated(Callback):
    """Validates after the last rollout, whether or not it falls on ``val_check_interval``."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: PromptBatch, batch_idx: int
    ) -> None:
        if batch_idx + 1 == trainer.num_training_batches:
            trainer.should_stop = True  # a trainer that stops validates first


class ResumePoint(Checkpoint):
    """Keeps ``checkpoints/last.ckpt``, from which an interrupted run goes on to the same end, bit for bit.

    It is written between rollouts only, never inside one, and after the evaluation where one is due: a checkpoint
    taken in between would lose that evaluation. An interrupt (Ctrl-C or SIGTERM) lets the rollout in progress finish,
    writes the checkpoint and then ends the run; a second Ctrl-C ends it at once, with the last checkpoint in place.

    Args:
        every_n_rollouts: how often to write it. It is also written after every evaluation and on an interrupt.
    """

    def __init__(self, every_n_rollouts: int = 10) -> None:
        check_at_least(1, "resume_point", every_n_rollouts=every_n_rollouts)
        self.every_n_rollouts = every_n_rollouts
        self._interrupted = False  # a signal has come
        self._stopping = False  # all ranks know, and the resume point is written before the next rollout
        self._previous_handlers: dict[int, Any] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._interrupted = self._stopping = False
        for signum in (signal.SIGINT, signal.SIGTERM):
            self._previous_handlers[signum] = signal.signal(signum, self._note_interrupt)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._restore_handlers()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._restore_handlers()

    def _restore_handlers(self) -> None:
        while self._previous_handlers:
            signal.signal(*self._previous_handlers.popitem())

    def _note_interrupt(self, signum: int, frame: FrameType | None) -> None:
        if self._interrupted:
            raise KeyboardInterrupt
        self._interrupted = True
        rank_zero_info(
            "\nInterrupted: finishing this rollout and writing a checkpoint. Press Ctrl-C again to stop at once."
        )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: PromptBatch, batch_idx: int
    ) -> None:
        # Ranks may have noticed the signal at different times.
        self._stopping = trainer.strategy.reduce_boolean_decision(self._interrupted, all=False)
        due = self._stopping or (batch_idx + 1) % self.every_n_rollouts == 0
        if due and not _validation_follows(trainer, batch_idx):
            self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._save(trainer)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: PromptBatch, batch_idx: int
    ) -> None:
        if self._stopping:
            raise Interrupted(
                f"Interrupted after rollout {batch_idx}. The same command with --ckpt_path last goes on from there."
            )

    def _save(self, trainer: Trainer) -> None:
        """All of the file or none of it: see :class:`WholeFileCheckpoints`."""
        assert trainer.log_dir is not None
        trainer.save_checkpoint(Path(trainer.log_dir) / CHECKPOINTS / LAST, weights_only=False)


class WholeFileCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside its place and moves it there whole.

    Lightning's own way builds the file in memory first, 18 GB of it for a policy of 1.5 billion parameters, and passes
    it through the system's folder for temporary files.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write ``checkpoint`` to ``path``.

        Raises:
            TypeError: if there are storage options, which a local file has not.
        """
        if storage_options is not None:
            raise TypeError("checkpoints are local files here: there are no storage_options")
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with whole_file(Path(path)) as file:
            torch.save(checkpoint, file)


def best_checkpoint() -> ModelCheckpoint:
    """Keep ``checkpoints/best.ckpt``, the best by ``val/accuracy``."""
    return ModelCheckpoint(
        monitor="val/accuracy",
        mode="max",
        filename=Path(BEST).stem,
        auto_insert_metric_name=False,
        enable_version_counter=False,
    )
