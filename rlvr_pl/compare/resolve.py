"""What ``fit`` would run with, and whether it would: an arm's configuration, parsed and checked without running it."""

from __future__ import annotations

from typing import Any

import yaml
from lightning.pytorch import Trainer

from rlvr_pl.cli import RLVRCommandLine
from rlvr_pl.compare.layout import flatten

# What tells the runs of one comparison apart, or only what they show.
_OF_THE_RUN = ("seed_everything", "ckpt_path", "trainer.logger", "trainer.enable_progress_bar")


class _Rehearsal(RLVRCommandLine):
    """``fit`` up to where it would make a trainer, seed this process and load data: a plan needs no GPU and no hub."""

    def _set_seed(self) -> None:
        pass

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        return None  # type: ignore[return-value]

    def after_instantiate_classes(self) -> None:
        # On more ranks there is more to divide by; fit itself says so.
        self.model.check_division(self.datamodule.prompts_per_rollout, world_size=1)

    def _run_subcommand(self, subcommand: str) -> None:
        pass

    def resolved(self) -> dict[str, Any]:
        return yaml.safe_load(self._parser("fit").dump(self.config.fit, skip_none=False))


def resolve(arguments: list[str]) -> dict[str, Any]:
    """The whole configuration of ``fit`` with these arguments, flat: dotted keys, without the run's own.

    Raises:
        ConfigError: if fit would refuse it.
    """
    flat = flatten(_Rehearsal(arguments).resolved())
    return {k: v for k, v in flat.items() if not any(k == own or k.startswith(f"{own}.") for own in _OF_THE_RUN)}
