"""What the tests of whole runs share: a reward with variance, callbacks that interrupt, a reader of logs."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.custom_scalar.metadata import CONFIG_SUMMARY_TAG
from tensorboard.plugins.hparams.metadata import (
    EXPERIMENT_TAG,
    SESSION_START_INFO_TAG,
    parse_experiment_plugin_data,
    parse_session_start_info_plugin_data,
)

from rlvr_pl.rewards import Completion

TIMES = ("wall/",)


def digit_share(completion: Completion) -> float:
    """A random model earns this in varying amounts, so that its gradients are not 0."""
    return sum(c.isdigit() for c in completion.text) / max(1, len(completion.text))


def digit_share_of_some(completion: Completion) -> float:
    """The same for the questions of even length; groups of the others all earn nothing."""
    return 0.0 if len(completion.question) % 2 else digit_share(completion)


def digits_by_level(completion: Completion, *, level: int) -> float:
    return level * digit_share(completion)


def broken_reward(completion: Completion) -> float:
    return 1 / 0


def text_length(completion: Completion) -> float:
    """Varies whatever the vocabulary."""
    return float(len(completion.text))


def unannotated_scheduler(optimizer):  # type: ignore[no-untyped-def]
    return torch.optim.lr_scheduler.ConstantLR(optimizer)


def exploding_schedule(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    """Its rate is more than a number of float32 can be, from the second optimizer step on."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1e42 if step else 1.0)


class Diary(Logger):
    """A logger of somebody's own, which takes ``name`` for a project, as wandb does."""

    def __init__(self, save_dir: str = ".", name: str | None = None) -> None:
        super().__init__()
        self._save_dir = save_dir

    @property
    def name(self) -> str:
        return "another project"

    @property
    def version(self) -> str:
        return "3f9a"

    @property
    def save_dir(self) -> str:
        return self._save_dir

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        with Path(self._save_dir, "diary.txt").open("a") as file:
            file.write(f"{step} {sorted(metrics)[0]}\n")

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


class Interrupt(Callback):
    """Asks the run to stop, by Ctrl-C or another signal, during a rollout or a phase around training.

    Args:
        during_rollout, phase: when.
        signum: the signal.
        ranks: which are asked; all of them where it is left out.
    """

    def __init__(
        self,
        during_rollout: int = 0,
        phase: str = "",
        signum: int = signal.SIGINT.value,
        ranks: list[int] | None = None,
    ) -> None:
        self.during_rollout = during_rollout
        self.phase = phase
        self.signum = signum
        self.ranks = ranks

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx + 1 == self.during_rollout and (self.ranks is None or trainer.global_rank in self.ranks):
            os.kill(os.getpid(), self.signum)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        if self.phase == "baseline" and not pl_module.rollouts_done:
            os.kill(os.getpid(), self.signum)

    def on_test_start(self, trainer: Any, pl_module: Any) -> None:
        if self.phase == "test" and trainer.global_step:
            os.kill(os.getpid(), self.signum)


class PowerCut(Callback):
    """Ends the run inside a rollout, after its first optimizer step, without any notice."""

    class Cut(RuntimeError):
        pass

    def __init__(self, during_rollout: int) -> None:
        self.during_rollout = during_rollout
        self.rollout = 0
        self.steps = 0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.rollout, self.steps = batch_idx + 1, 0

    def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.steps += 1

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        if self.rollout == self.during_rollout:
            raise self.Cut


class Notebook(Callback):
    """Writes down each rollout of a rank, a line a completion: its prompt's number, tokens and reward."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        rollout, rewards = outputs["rollout"], outputs["rewards"].total.tolist()
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"rank_{trainer.global_rank}.jsonl").open("a") as file:
            for row, (ids, mask) in enumerate(zip(rollout.completion_ids, rollout.mask, strict=True)):
                prompt, member = rollout.place(row)
                place = [batch.rollout, batch.indices[prompt], member]
                file.write(json.dumps([place, ids[mask].tolist(), rewards[row]]) + "\n")


def noted(folder: Path) -> dict[int, list[Any]]:
    """What all ranks have written down, by rank, each in the order of the whole rollout."""
    files = sorted(folder.glob("rank_*.jsonl"))
    return {int(file.stem[-1]): sorted(json.loads(line) for line in file.open()) for file in files}


def read_scalars(log_dir: Path) -> dict[str, dict[int, float]]:
    """Every scalar of a run by tag and step, over all of its event files; later files win."""
    scalars: dict[str, dict[int, float]] = {}
    for file in sorted(log_dir.glob("events.*"), key=lambda f: (f.stat().st_mtime, f.name)):
        events = EventAccumulator(str(file), size_guidance={"scalars": 0}).Reload()
        for tag in events.Tags()["scalars"]:
            scalars.setdefault(tag, {}).update({e.step: e.value for e in events.Scalars(tag)})
    return scalars


def has_samples(log_dir: Path) -> bool:
    """Whether completions were written to TensorBoard as text."""
    events = [EventAccumulator(str(file)).Reload().Tags()["tensors"] for file in log_dir.glob("events.*")]
    return any("samples/text_summary" in tags for tags in events)


def hparams_of(log_dir: Path) -> tuple[dict[str, Any], list[str]]:
    """What TensorBoard's HPARAMS shows of a run: hyperparameters, and the tags of the metrics beside them."""
    summaries: dict[str, Any] = {}
    for file in sorted(log_dir.glob("events.*")):
        summaries |= EventAccumulator(str(file)).Reload().summary_metadata
    start = parse_session_start_info_plugin_data(summaries[SESSION_START_INFO_TAG].plugin_data.content)
    experiment = parse_experiment_plugin_data(summaries[EXPERIMENT_TAG].plugin_data.content)
    values = {name: getattr(value, value.WhichOneof("kind")) for name, value in start.hparams.items()}
    return values, [metric.name.tag for metric in experiment.metric_infos]


def charts_of(log_dir: Path) -> list[tuple[str, list[str]]]:
    """The categories of TensorBoard's CUSTOM SCALARS, in their order, each with the tags that it shows."""
    for file in log_dir.glob("events.*"):
        events = EventAccumulator(str(file)).Reload()
        if CONFIG_SUMMARY_TAG in events.Tags()["tensors"]:
            (event,) = events.Tensors(CONFIG_SUMMARY_TAG)
            layout = Layout.FromString(event.tensor_proto.string_val[0])
            return [(c.title, [tag for chart in c.chart for tag in chart.multiline.tag]) for c in layout.category]
    return []


def tiny_run(policy: str, save_dir: Path, **overrides: Any) -> list[str]:
    """Arguments of ``fit`` for a run of seconds: two rollouts an epoch, six in all."""
    settings = {
        "trainer.accelerator": "cpu",
        "trainer.devices": 1,
        "trainer.enable_progress_bar": "false",
        "trainer.logger": "lightning.pytorch.loggers.TensorBoardLogger",
        "trainer.logger.save_dir": save_dir,
        "trainer.logger.name": "run",
        "trainer.logger.default_hp_metric": "false",
        "trainer.val_check_interval": 3,
        "resume_point.every_n_rollouts": 1,
        "report_test": "false",
        "model.policy": policy,
        "model.loss": "GSPO",
        "model.rewards": '[{"function": "tests.helpers.runs.digit_share"}]',
        "model.optimizer": "torch.optim.AdamW",
        "model.optimizer.lr": 1e-3,
        "model.group_size": 4,
        "model.max_completion_tokens": 10,
        "model.minibatches_per_rollout": 2,
        "model.micro_batch_tokens": 600,
        "data.source": "rlvr_pl.data.EmbeddedProblems",
        "data.source.train_size": 22,
        "data.source.test_size": 6,
        "data.val_size": 6,
        "data.prompts_per_rollout": 8,
        "data.max_rollouts": 6,
        **overrides,
    }
    return ["fit", *(f"--{key}={value}" for key, value in settings.items())]


class Gate(Callback):
    """Holds a run at the start of a rollout until a file is there."""

    def __init__(self, before_rollout: int, file: str) -> None:
        self.before_rollout = before_rollout
        self.file = Path(file)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        while batch_idx + 1 == self.before_rollout and not self.file.exists():
            time.sleep(0.05)


def tiny_settings(policy: str, **overrides: Any) -> dict[str, str]:
    """What ``tiny_run`` sets, as the shared overrides of a comparison."""
    flags = tiny_run(policy, Path(), **overrides)[1:]
    settings = dict(flag.removeprefix("--").split("=", 1) for flag in flags)
    own = ("trainer.logger", "trainer.enable_progress_bar", "model.loss")
    return {key: value for key, value in settings.items() if not key.startswith(own)}


def last_state(run: Path) -> dict[str, Any]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def logged(run: Path) -> dict[str, dict[int, float]]:
    return {tag: values for tag, values in read_scalars(run).items() if not tag.startswith(TIMES)}


def evaluations(run: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in (run / "evaluations").iterdir()}


def best_rollout(run: Path) -> int:
    return torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["rollouts_done"]


def assert_same_run(resumed: Path, whole: Path) -> None:
    """Weights, optimizer, schedulers, counters, logged values, records and the best checkpoint: equal to the bit."""
    a, b = last_state(resumed), last_state(whole)
    assert best_rollout(resumed) == best_rollout(whole)
    assert a["rollouts_done"] == b["rollouts_done"] == 6
    assert a["completion_tokens"] == b["completion_tokens"] > 0
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        torch.testing.assert_close(a[key], b[key], rtol=0, atol=0)
    assert logged(resumed) == logged(whole)
    assert evaluations(resumed) == evaluations(whole)
