"""What a run writes to TensorBoard beside its scalars: completions, hyperparameters, charts that belong together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from torch.utils.tensorboard.summary import hparams

from rlvr_pl.run.terminal import visible
from rlvr_pl.types import PromptBatch, check_at_least

_OUTCOMES = ("test/accuracy", "test/accuracy_flexible", "val/accuracy", "train/accuracy", "train/tokens_mean")
"""The last value of each stands beside a run's hyperparameters."""

_WITHOUT_CONSEQUENCE = {
    "_instantiator",
    "gradient_checkpointing",
    "micro_batch_tokens",
    "release_rollout_memory",
    "rollout_slots",
}
"""Hyperparameters, as Lightning has them, that cost time or memory alone."""

_CHARTS = {
    "Accuracy": {
        "strict": ["val/accuracy", "test/accuracy", "train/accuracy"],
        "flexible": ["val/accuracy_flexible", "test/accuracy_flexible"],
        "in the format": ["val/format_rate", "test/format_rate"],
    },
    "Completions": {
        "reward": ["train/reward", "train/reward_std"],
        "tokens": ["train/tokens_mean", "val/mean_tokens", "test/mean_tokens"],
        "cut off": ["train/truncated_rate", "val/truncated_rate", "test/truncated_rate"],
        "groups without variance": ["train/zero_variance_groups"],
    },
    "Update": {
        "clipped": ["train/clip_fraction_low", "train/clip_fraction_high"],
        "divergence": ["train/kl", "train/kl_ref"],
        "entropy": ["train/entropy"],
        "gradient norm": ["train/grad_norm"],
    },
    "Seconds": {"of a rollout": ["wall/rollout_s", "wall/reward_s", "wall/update_s"]},
}
"""Tags that are read together, by category and chart, in the order in which TensorBoard shows them."""


class Overview(Callback):
    """Fills TensorBoard's tabs HPARAMS and CUSTOM SCALARS, so that runs can be sorted by what they differ in.

    TIME SERIES shows all tags by their names, and has no other order.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        values = _hyperparameters(trainer, pl_module)
        for writer in _writers(trainer):
            for summary in hparams(values, dict.fromkeys(_OUTCOMES, 0.0)):
                writer._get_file_writer().add_summary(summary)
            writer.add_custom_scalars(_layout())


def _layout() -> dict[str, dict[str, tuple[str, list[str]]]]:
    """The charts as a writer takes them: TensorBoard looks for tags by regular expressions."""
    return {
        category: {chart: ("Multiline", [f"^{tag}$" for tag in tags]) for chart, tags in charts.items()}
        for category, charts in _CHARTS.items()
    }


def _hyperparameters(trainer: Trainer, module: LightningModule) -> dict[str, bool | int | float | str]:
    """What is one number, word or switch of the module's, the optimizer's and the data's, and bears on the result."""
    optimizer, data = trainer.optimizers[0], trainer.datamodule  # type: ignore[attr-defined]
    values = {
        **{name: value for name, value in module.hparams.items() if name not in _WITHOUT_CONSEQUENCE},
        "optimizer": type(optimizer).__name__,
        **{name: value for name, value in optimizer.defaults.items() if name in ("lr", "weight_decay")},
        **{name: getattr(data, name) for name in ("prompts_per_rollout", "max_rollouts") if hasattr(data, name)},
    }
    return {name: value for name, value in values.items() if isinstance(value, bool | int | float | str)}


class SampleCompletions(Callback):
    """Writes a few completions to TensorBoard as text, with prompt, reward and gold answer.

    Args:
        every_n_rollouts: how often.
        count: how many, each of another prompt where there are as many.
    """

    def __init__(self, every_n_rollouts: int = 10, count: int = 4) -> None:
        check_at_least(1, "samples", every_n_rollouts=every_n_rollouts)
        self.every_n_rollouts = every_n_rollouts
        self.count = count

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Mapping[str, Any],  # type: ignore[override]
        batch: PromptBatch,
        batch_idx: int,
    ) -> None:
        if batch_idx % self.every_n_rollouts:
            return
        rollout, rewards = outputs["rollout"], outputs["rewards"]
        parts = []
        for row in range(0, len(rewards.total), rollout.group_size)[: self.count]:
            question, completion = batch.questions[rollout.place(row)[0]], rewards.completions[row]
            grade = (
                f"**reward {rewards.total[row].item():g}**, gold answer {completion.gold}, {completion.tokens} tokens"
            )
            grade += ", truncated" if completion.truncated else ""
            parts.append(f"{grade}\n\n{_verbatim(question.prompt)}\n\n{_verbatim(completion.text)}")
        for writer in _writers(trainer):
            writer.add_text("samples", "\n\n---\n\n".join(parts), global_step=batch.rollout + 1)


def _verbatim(text: str) -> str:
    """As a Markdown code block, so that tags, newlines and control characters show."""
    return "\n".join(f"    {visible(line)}" for line in text.splitlines())


def hide_redone(trainer: Trainer, rollouts_done: int) -> None:
    """Have TensorBoard forget what a run logged after the rollout that it goes on from: it is logged again."""
    for writer in _writers(trainer):
        begin = Event(session_log=SessionLog(status=SessionLog.START))
        writer._get_file_writer().add_event(begin, step=rollouts_done + 1)


def _writers(trainer: Trainer) -> Iterator[Any]:
    """Each TensorBoard logger's ``SummaryWriter``, on the rank that writes.

    An evaluation closes it; what the writer's own methods do first, ``_get_file_writer``, opens it again.
    """
    if trainer.is_global_zero:
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                yield logger.experiment
