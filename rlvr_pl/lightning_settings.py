"""Settings of Lightning's that do not apply here: refused, with the setting that does it instead."""

from __future__ import annotations

import inspect
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from rlvr_pl.sharding.strategy import why_not
from rlvr_pl.types import ConfigError

_MAX_SEED = 2**32 - 1
_BUDGET = "the budget is counted in rollouts; set data.max_rollouts"
_TEST_SIZE = "every test question is answered; give data.source a test split of the size that you want"
_INSTEAD = {
    "max_epochs": _BUDGET,
    "min_epochs": _BUDGET,
    "max_steps": _BUDGET,
    "min_steps": _BUDGET,
    "max_time": _BUDGET,
    "limit_train_batches": _BUDGET,
    "overfit_batches": "give data.source few train problems, and set data.max_rollouts",
    "fast_dev_run": "for a short trial set data.max_rollouts to 1, with a small data.val_size and report_test: false",
    "limit_val_batches": "every question of val is answered; set data.val_size",
    "limit_test_batches": _TEST_SIZE,
    "limit_predict_batches": _TEST_SIZE,
    "num_sanity_val_steps": "the untrained policy is evaluated before training anyway; leave it out",
    "check_val_every_n_epoch": "a run is one epoch of the trainer; set trainer.val_check_interval, in rollouts",
    "accumulate_grad_batches": (
        "set model.minibatches_per_rollout for what an optimizer step learns from, and model.micro_batch_tokens for "
        "how much of it goes through the policy at a time"
    ),
    "gradient_clip_val": "set model.max_grad_norm",
    "gradient_clip_algorithm": "gradients are scaled down to a norm; set model.max_grad_norm",
}
_DEFAULTS = {name: parameter.default for name, parameter in inspect.signature(Trainer.__init__).parameters.items()}


def check_settings(seed: int | bool, trainer: Mapping[str, Any], own_defaults: Mapping[str, Any]) -> None:
    """Refuse what would be ignored, or would end the run once it has begun.

    Args:
        seed: ``seed_everything``.
        trainer: the arguments of Lightning's trainer.
        own_defaults: where they differ from Lightning's.

    Raises:
        ConfigError: naming the setting and what does it instead.
    """
    if not 0 <= seed <= _MAX_SEED:
        raise ConfigError(f"seed_everything is {seed}; it must be from 0 to {_MAX_SEED:,}")
    for name, remedy in _INSTEAD.items():
        if trainer[name] != own_defaults.get(name, _DEFAULTS[name]):
            raise ConfigError(f"trainer.{name} is {trainer[name]}; {remedy}")
    if str(trainer["precision"]) in ("16", "16-mixed", "16-true"):
        raise ConfigError(
            f"trainer.precision is {trainer['precision']}; float16 needs loss scaling, which is not supported; "
            "use bf16-mixed"
        )
    strategy = trainer["strategy"]
    name = strategy if isinstance(strategy, str) else strategy.get("class_path", "").rpartition(".")[2]
    if re.match(r"fsdp|deepspeed|xla|modelparallel", name.replace("_", "").lower()):
        raise ConfigError(why_not(name))


def explain(error: Exception, accelerator: str) -> ConfigError:
    """Say in one line why Lightning cannot make what a configuration names.

    Args:
        error: Lightning's, or that of the parser which tried.
        accelerator: ``trainer.accelerator``.
    """
    reason = str(error)
    wanted = re.search(r"class_path '([\w.]+)':\s*(.+)", reason)  # the parser lists what else it has tried after it
    if wanted:
        return ConfigError(f"{wanted[1]} cannot be made: {wanted[2].strip()}")
    reason = " ".join(reason.split()) or type(error).__name__
    if "backend found" in reason or "accelerator can not be found" in reason:
        return ConfigError(
            f"trainer.accelerator is {accelerator}, which this machine does not have ({reason}). On a CPU, add "
            "--config embedded to run the embedded default, or --trainer.accelerator cpu"
        )
    return ConfigError(f"trainer: {reason}")


def check_writable(folder: Path) -> None:
    """Refuse a folder for a run in which nothing can be written; leaves nothing there.

    Raises:
        ConfigError: naming it.
    """
    folder = folder.absolute()
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise ConfigError(
            f"run_dir: nothing can be written to {str(folder)!r} ({error.strerror}: {str(existing)!r}); "
            "set it, or the logger's save_dir, to a folder of yours"
        ) from error
