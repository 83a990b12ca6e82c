"""The optimizer of a resumed run: moments and steps come from the checkpoint, settings from the configuration.

Torch restores settings with the moments, a learning rate too. So a checkpoint also holds which settings it was begun
with, and what has changed since acts. A schedule that has changed, or starts from another rate, is where it would be if
it had been so from the start. Without a change everything is as torch restores it, to the bit.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from rlvr_pl.types import ConfigError

OPTIMIZER_SETTINGS = "optimizer_settings"  # in a checkpoint


@dataclass(frozen=True)
class OptimizerSettings:
    """What an optimizer and its schedule were made with.

    Attributes:
        kind: the optimizer's class; empty in a checkpoint that does not say.
        groups: the settings of each parameter group.
        schedule: the schedule's class and its state before the first step; None without one.
    """

    kind: str = ""
    groups: tuple[dict[str, Any], ...] = ()
    schedule: tuple[str, dict[str, Any]] | None = None

    @classmethod
    def of(cls, optimizer: Optimizer, scheduler: LRScheduler | None) -> OptimizerSettings:
        """Note the settings of a new optimizer, before its first step."""
        groups = [{key: value for key, value in g.items() if key != "params"} for g in optimizer.param_groups]
        schedule = None if scheduler is None else (name_of(type(scheduler)), copy.deepcopy(scheduler.state_dict()))
        return cls(name_of(type(optimizer)), tuple(copy.deepcopy(groups)), schedule)

    def as_written(self) -> dict[str, Any]:
        """Write them for a checkpoint."""
        return asdict(self)

    @classmethod
    def read(cls, written: dict[str, Any] | None) -> OptimizerSettings:
        """Read what ``as_written`` wrote; a checkpoint without them gives settings that everything differs from."""
        return cls() if written is None else cls(**written)

    def act_on(
        self, optimizer: Optimizer, scheduler: LRScheduler | None, earlier: OptimizerSettings, steps: int
    ) -> None:
        """Have these settings act on what a checkpoint has restored.

        Args:
            optimizer: whose moments and step counts stay as they are.
            scheduler: of the learning rate.
            earlier: the settings that the checkpoint was begun with.
            steps: optimizer steps taken so far.

        Raises:
            ConfigError: if the schedule is shorter than that.
        """
        if self == earlier:
            return
        scheduled = self.schedule is not None or earlier.schedule is not None
        for i, (group, settings) in enumerate(zip(optimizer.param_groups, self.groups, strict=True)):
            before = earlier.groups[i] if i < len(earlier.groups) else {}
            group |= {k: v for k, v in settings.items() if scheduled or k not in before or before[k] != v}
        if scheduler is not None and self.schedule is not None:
            scheduler.load_state_dict(copy.deepcopy(self.schedule[1]))
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # torch misses the optimizer's steps
                    for _ in range(steps):
                        scheduler.step()
            except ValueError as error:  # of OneCycleLR
                raise ConfigError(f"model.lr_scheduler: after {steps} optimizer steps, {error}") from error
        for change in self._changes(earlier):
            rank_zero_info(f"Resumed with {change}")

    def _changes(self, earlier: OptimizerSettings) -> Iterable[str]:
        if not earlier.groups:
            return
        before, after = earlier.groups[0], self.groups[0]
        for key in after.keys() & before.keys() - {"initial_lr"}:
            if after[key] != before[key]:
                yield f"model.optimizer {key} {after[key]}, which was {before[key]}"
        if self.schedule != earlier.schedule:
            yield "another model.lr_scheduler"


def name_of(kind: type) -> str:
    """Name a class as a configuration does."""
    return f"{kind.__module__}.{kind.__qualname__}"


def check_step(optimizer: Optimizer, weight: torch.nn.Parameter) -> None:
    """Refuse settings that leave no finite weight after one step, an infinite learning rate say.

    Args:
        optimizer: new.
        weight: what it learns, which is spent.

    Raises:
        ConfigError: with the settings.
    """
    weight.grad = torch.ones_like(weight)
    try:
        optimizer.step()
        spent = not weight.isfinite().all()
    except RuntimeError as error:
        spent = overflows(error)
    except Exception:  # an optimizer of somebody's own may not take such a step
        return
    if spent:
        group = optimizer.param_groups[0]
        numbers = ", ".join(f"{key} {value:g}" for key, value in group.items() if isinstance(value, float))
        raise ConfigError(f"model.optimizer: with {numbers} the first step leaves no finite weight; lower lr")


def overflows(error: RuntimeError) -> bool:
    """Tell whether torch could not write a number of an optimizer's in the dtype of its weights."""
    return "without overflow" in str(error)


def check_optimizer(checkpoint: dict[str, Any], factory: Callable[[Iterable[Any]], Optimizer], path: Path) -> None:
    """Refuse an optimizer that could not go on with the moments of a checkpoint.

    Args:
        checkpoint: as ``read_checkpoint`` gives it.
        factory: from parameters to the optimizer.
        path: the checkpoint's file.

    Raises:
        ConfigError: if it is of another class, or needs what the checkpoint's did not keep.
    """
    weight = torch.nn.Parameter(torch.zeros(2, 2))
    weight.grad = torch.zeros(2, 2)
    optimizer = factory([weight])
    kind, before = name_of(type(optimizer)), OptimizerSettings.read(checkpoint.get(OPTIMIZER_SETTINGS)).kind
    if before and kind != before:
        raise ConfigError(
            f"ckpt_path: {path} holds the moments of {before}, and model.optimizer is {kind}; give the same class, or "
            "leave --ckpt_path out to start a new run"
        )
    states = checkpoint["optimizer_states"][0]["state"]
    for name, value in next(iter(states.values()), {}).items():
        whole = not isinstance(value, torch.Tensor) or value.numel() == 1
        optimizer.state[weight][name] = copy.deepcopy(value) if whole else torch.zeros(2, 2)
    try:
        optimizer.step()
    except KeyError as error:
        raise ConfigError(
            f"ckpt_path: {path} has no {error.args[0]}, which model.optimizer keeps with these settings and did not "
            "before; leave them as they were, or leave --ckpt_path out to start a new run"
        ) from error
    except Exception:  # an optimizer of somebody's own may not take such a step
        return
