"""When a run is evaluated and saved, and how it is interrupted: between two rollouts, never inside one."""

from __future__ import annotations

import signal
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only

from rlvr_pl.run.folder import BEST, CHECKPOINTS, LAST
from rlvr_pl.run.place import run_folder
from rlvr_pl.run.signals import STOP, Interrupted, say
from rlvr_pl.run.tensorboard import hide_redone
from rlvr_pl.sharding.weights import own_part
from rlvr_pl.types import Diverged, PromptBatch, check_at_least


def _validation_follows(trainer: Trainer, batch_idx: int) -> bool:
    """Tell whether the trainer validates after this rollout; after the last one it always does."""
    due = trainer.should_stop or (batch_idx + 1) % (trainer.val_check_batch or 1) == 0
    return due and trainer.enable_validation


class Evaluate(Callback):
    """Validates after the last rollout, whether or not it falls on ``val_check_interval``, and after others.

    Args:
        also_after: rollouts that are validated after too, such as ``[1, 2, 4]`` where a policy learns most in its
            first ones: the area under its curve is better known then.
    """

    def __init__(self, also_after: list[int] | None = None) -> None:
        self.also_after = frozenset(also_after or ())
        for rollout in self.also_after:
            check_at_least(1, "evaluate", also_after=rollout)
        self._regular: int | float | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._regular = trainer.val_check_batch

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: PromptBatch, batch_idx: int
    ) -> None:
        trainer.val_check_batch = batch_idx + 1 if batch_idx + 1 in self.also_after else self._regular

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: PromptBatch, batch_idx: int
    ) -> None:
        if batch_idx + 1 == trainer.num_training_batches:
            trainer.should_stop = True  # a trainer that stops validates first


class ResumePoint(Checkpoint):
    """Keeps ``checkpoints/last.ckpt``, from which an interrupted run goes on to the same end, bit for bit.

    It is written between rollouts only, never inside one, and after the evaluation where one is due: a checkpoint
    taken in between would lose that evaluation. The one before it stays as ``previous.ckpt``.

    An interrupt (Ctrl-C, SIGTERM or SIGHUP) lets the rollout in progress finish, writes the checkpoint and then ends
    the run; a second one ends it at once, with the last checkpoint in place. Before the first rollout and after the
    last one the first ends it at once.

    Args:
        every_n_rollouts: how often to write it. It is also written after every evaluation and on an interrupt.
        allow_changes: go on from a checkpoint although its seed, objective or policy is another.
    """

    def __init__(self, every_n_rollouts: int = 10, allow_changes: bool = False) -> None:
        check_at_least(1, "resume_point", every_n_rollouts=every_n_rollouts)
        self.every_n_rollouts = every_n_rollouts
        self.allow_changes = allow_changes
        self._listening = ExitStack()
        self._stop: int | None = None  # the signal, once all ranks know: the run ends before the next rollout

    # How it ends

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop = None
        self._listening.enter_context(STOP.handled())  # already, under the command line
        STOP.finish_first(_announce)
        if pl_module.rollouts_done:
            hide_redone(trainer, cast(int, pl_module.rollouts_done))

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: PromptBatch, batch_idx: int
    ) -> None:
        if self._stop is not None:
            raise Interrupted(self._stop)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        STOP.end_at_once()
        self._listening.close()
        if self._stop is not None:
            raise Interrupted(self._stop)
        STOP.check()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        STOP.end_at_once()
        self._listening.close()
        if isinstance(exception, Interrupted):
            end_launched(getattr(trainer.strategy.launcher, "procs", []))

    def on_validation_batch_end(self, *_: Any, **__: Any) -> None:
        STOP.check()

    on_test_batch_end = on_validation_batch_end

    # What is saved

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: PromptBatch, batch_idx: int
    ) -> None:
        self._agree_to_stop(trainer)
        due = self._stop is not None or (batch_idx + 1) % self.every_n_rollouts == 0
        if due and not _validation_follows(trainer, batch_idx):
            self._save(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._agree_to_stop(trainer)
            self._save(trainer, pl_module)

    def _agree_to_stop(self, trainer: Trainer) -> None:
        """Ranks may have noticed the signal at different times, or not at all; all end with the same status."""
        received = torch.tensor(STOP.received or 0, device=trainer.strategy.root_device)
        self._stop = int(trainer.strategy.reduce(received, reduce_op="max")) or None

    def _save(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """All of the file or none of it, see :class:`WholeFileCheckpoints`; and nothing that could not be gone on from.

        Raises:
            Diverged: if a weight is not finite.
        """
        folder = run_folder(trainer)
        assert folder is not None
        finite = all(torch.isfinite(own_part(weight)).all() for weight in pl_module.parameters())
        if not trainer.strategy.reduce_boolean_decision(finite):  # a rank may hold only parts
            raise Diverged(f"the weights after rollout {pl_module.rollouts_done} are not finite, and are not saved")
        trainer.save_checkpoint(folder / CHECKPOINTS / LAST, weights_only=False)


def end_launched(ranks: list[subprocess.Popen[Any]]) -> None:
    """End the ranks that this one has launched: they may wait for it for ever, and have nothing to save.

    The list is emptied first. Lightning's observer looks through it, and would kill this process, which is about to say
    how the run goes on, a few seconds after one of them has ended with a status other than 0.
    """
    ending, ranks[:] = list(ranks), []
    for rank in ending:
        rank.kill()


@rank_zero_only
def _announce(signum: signal.Signals) -> None:
    say("\nInterrupted: finishing this rollout and writing a checkpoint. Press Ctrl-C again to stop at once.")


def best_checkpoint() -> ModelCheckpoint:
    """Keep ``checkpoints/best.ckpt``, the best by ``val/accuracy``."""
    return ModelCheckpoint(
        monitor="val/accuracy",
        mode="max",
        filename=Path(BEST).stem,
        auto_insert_metric_name=False,
        enable_version_counter=False,
    )
