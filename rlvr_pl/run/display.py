"""How a run shows its progress: a bar on a terminal, else lines."""

from __future__ import annotations

import sys
from typing import Any, cast

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from rlvr_pl.rollout import Progress
from rlvr_pl.types import PromptBatch


class RolloutProgressBar(TQDMProgressBar):
    """Lightning's progress bar, which counts rollouts here, without what says nothing: epochs and version numbers.

    While the engine generates, it says how many completions have ended, how fast, and how long the rest will take.
    """

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return {name.removeprefix("train/"): value for name, value in metrics.items()}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._count_from(cast(int, pl_module.rollouts_done))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_epoch_start(trainer, pl_module)
        self._count_from(cast(int, pl_module.rollouts_done))

    def _count_from(self, rollouts_done: int) -> None:
        """Say how many rollouts there are; a resumed run begins inside its epoch, where Lightning says nothing."""
        bar = self.train_progress_bar
        bar.total = self.total_train_batches
        bar.initial = bar.n = rollouts_done  # the rate, and what is left by it, are of what this process does
        bar.set_description("Rollouts")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        super().on_train_batch_start(trainer, pl_module, *_)
        self._show_generation(pl_module, self.train_progress_bar)

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        super().on_validation_batch_start(trainer, pl_module, *_)
        self._show_generation(pl_module, self.val_progress_bar)

    def on_test_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        super().on_test_batch_start(trainer, pl_module, *_)
        self._show_generation(pl_module, self.test_progress_bar)

    @staticmethod
    def _show_generation(pl_module: LightningModule, bar: Tqdm) -> None:
        def show(progress: Progress) -> None:
            enough = 20 * progress.ended >= progress.sequences  # a twentieth has ended: the rate means something
            bar.set_postfix_str(
                f"{progress.ended:,}/{progress.sequences:,} completions, {progress.tokens_per_s:,.0f} tokens/s"
                + (f", {Tqdm.format_interval(progress.seconds_left)} left" if enough else "")
            )

        pl_module.engine.on_progress = show  # type: ignore[union-attr]


class RolloutLines(ProgressBar):
    """A line a rollout and a line an evaluation, for logs and pipes: bars would fill them with carriage returns."""

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True

    def enable(self) -> None:
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: PromptBatch, batch_idx: int
    ) -> None:
        values = trainer.callback_metrics
        self._say(
            f"rollout {batch_idx + 1}/{trainer.num_training_batches}: reward {float(values['train/reward']):.3f}, "
            f"accuracy {float(values['train/accuracy']):.1%}, {sum(pl_module.seconds.values()):.1f} s"  # type: ignore[operator]
        )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._say_accuracy("val", trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._say_accuracy("test", trainer, pl_module)

    def _say_accuracy(self, split: str, trainer: Trainer, pl_module: LightningModule) -> None:
        accuracy = trainer.callback_metrics.get(f"{split}/accuracy")
        if accuracy is not None:
            self._say(f"{split} after {pl_module.rollouts_done} rollouts: accuracy {float(accuracy):.1%}")

    def _say(self, text: str) -> None:
        if self._enabled:
            print(text, flush=True)


def make_progress_bar() -> ProgressBar:
    """Choose the bar on a terminal, lines elsewhere."""
    return RolloutProgressBar() if sys.stdout.isatty() else RolloutLines()
