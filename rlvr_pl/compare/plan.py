"""The plan: arms × seeds over one base, and what has to hold before any of it runs."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rlvr_pl.cli import resolve
from rlvr_pl.run.comparison import SEED_OFFSET, Trial, choices, run_folder
from rlvr_pl.run.configuration import Flat
from rlvr_pl.run.declaration import Checkpoint, Metric
from rlvr_pl.run.folder import CHECKPOINTS, LAST, RUN_LOCK
from rlvr_pl.run.lock import is_locked
from rlvr_pl.run.state import read_run_state
from rlvr_pl.types import ConfigError

BUDGET = ("data.max_rollouts", "data.prompts_per_rollout", "model.group_size")
JUDGES = ("data.verifier", "data.answer")


@dataclass(frozen=True)
class Run:
    """One arm with one seed, in its folder."""

    arm: str
    seed: int
    folder: Path

    def __str__(self) -> str:
        return f"{self.arm} seed {self.seed}"

    @property
    def checkpoint(self) -> Path:
        return self.folder / CHECKPOINTS / LAST

    @property
    def lock(self) -> Path:
        return self.folder / RUN_LOCK

    @property
    def finished(self) -> bool:
        state = read_run_state(self.folder)
        return state is not None and state.state == "finished" and state.rollouts_done >= state.max_rollouts

    @property
    def begun(self) -> bool:
        """Whether it has a checkpoint, is finished or is running: its configuration must then stay as it is."""
        return self.checkpoint.is_file() or self.finished or is_locked(self.lock)


@dataclass(frozen=True)
class Tuning:
    """What every arm tries before the result's runs.

    Attributes:
        grid: dotted keys of fit, each with the values to try; the trials are all combinations.
        seeds: of the trials; none of the result's.
    """

    grid: dict[str, list[Any]]
    seeds: tuple[int, ...]

    def points(self) -> list[Flat]:
        """List the combinations, the last key's values changing fastest."""
        return [dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())]

    def as_written(self) -> dict[str, Any]:
        """Write it as in a comparison file."""
        return {"grid": self.grid, "seeds": list(self.seeds)}


@dataclass(frozen=True)
class Comparison:
    """The request of a comparison file.

    Attributes:
        folder: where the runs and the report lie.
        base: configuration files as ``fit --config … --config …`` takes them.
        overrides: of every arm; dotted keys of fit.
        arms: each arm's own, which come after them. ``seed_offset`` is no key of fit: it is added to the arm's seeds.
        seeds: of each arm; one seed gives every arm the same initial weights, prompts, order and noise, unless the arm
            has a ``seed_offset``: the same arm twice with different seeds is an A/A study.
        processes: how many runs at a time.
        devices: the GPUs that they are dealt out to; None leaves the choice to each run.
        allow_unequal_budgets: arms may differ in their rollouts and samples.
        metric: of the primary outcome, on which the verdict stands.
        checkpoint: whose answers to the test questions count: the best on val, or the last.
        margin: points of accuracy under which two arms count as equivalent.
        thresholds: percent of val accuracy for which tokens are counted.
        tune: what every arm tries first; None leaves each as it is.
        trials: what it gave, once it is done.
    """

    folder: Path
    base: tuple[str, ...]
    arms: dict[str, Flat]
    seeds: tuple[int, ...]
    overrides: Flat
    processes: int
    devices: tuple[int, ...] | None
    allow_unequal_budgets: bool
    metric: Metric
    checkpoint: Checkpoint
    margin: float
    thresholds: tuple[float, ...]
    tune: Tuning | None = None
    trials: tuple[Trial, ...] = ()

    @cached_property
    def chosen(self) -> dict[str, Flat]:
        """By arm, the point of the grid that it takes, after its own settings."""
        return choices(self.trials)

    def runs(self, only: Sequence[str] = ()) -> list[Run]:
        """List the runs in their order, all arms of a seed side by side, so that what is done first can be compared.

        Args:
            only: ``ARM`` or ``ARM,SEED``, as many as there are; none means all.

        Raises:
            ConfigError: if one names what the comparison does not have.
        """
        chosen = [self._part(part) for part in only]
        return [
            Run(arm, seed, run_folder(self.folder, arm, seed))
            for seed in self.seeds
            for arm in self.arms
            if not chosen or (arm, seed) in chosen or (arm, None) in chosen
        ]

    def _part(self, part: str) -> tuple[str, int | None]:
        arm, comma, seed = part.partition(",")
        if arm not in self.arms:
            raise ConfigError(f"--only {part}: there is no arm {arm!r}. Choose from {', '.join(self.arms)}")
        if not comma:
            return arm, None
        if seed not in map(str, self.seeds):
            raise ConfigError(
                f"--only {part}: there is no seed {seed!r}. Choose from {', '.join(map(str, self.seeds))}"
            )
        return arm, int(seed)

    def fit_arguments(self, run: Run) -> list[str]:
        """Write the command line of ``fit`` for a run: its arm's settings, its seed and its folder."""
        arm = dict(self.arms[run.arm])
        settings = {
            "seed_everything": run.seed + arm.pop(SEED_OFFSET, 0),
            "trainer.enable_progress_bar": False,
            "run_dir": None,
            "trainer.logger": "lightning.pytorch.loggers.TensorBoardLogger",
            "trainer.logger.save_dir": str(run.folder.parents[1]),
            "trainer.logger.name": run.folder.parent.name,
            "trainer.logger.version": run.folder.name,
            "trainer.logger.default_hp_metric": False,
        }
        arm |= self.chosen.get(run.arm, {})
        changes = (*self.overrides.items(), *arm.items(), *settings.items())
        return ["fit", *(f"--config={file}" for file in self.base), *(_flag(key, value) for key, value in changes)]

    @cached_property
    def resolved(self) -> dict[str, Flat]:
        """The whole configuration of every arm, as ``fit`` would run with it.

        Raises:
            ConfigError: naming the arm, if ``fit`` would refuse it; or if the arms have unequal budgets or verifiers.
        """
        resolved = {}
        for run in self.runs()[: len(self.arms)]:
            try:
                resolved[run.arm] = resolve(self.fit_arguments(run))
                if SEED_OFFSET in self.arms[run.arm]:
                    resolved[run.arm][SEED_OFFSET] = self.arms[run.arm][SEED_OFFSET]
            except ConfigError as error:
                raise ConfigError(f"arm {run.arm}: {error}") from error
        if not self.allow_unequal_budgets:
            check_budgets(resolved)
        check_verdicts(resolved)
        return resolved


def _flag(key: str, value: Any) -> str:
    return f"--{key}={value if isinstance(value, str) else json.dumps(value)}"


def check_budgets(resolved: Mapping[str, Flat]) -> None:
    """Refuse arms that differ in rollouts or samples, which a comparison holds equal.

    Raises:
        ConfigError: naming the setting and each arm's value.
    """
    for key in BUDGET:
        values = {arm: config[key] for arm, config in resolved.items()}
        if len(set(values.values())) > 1:
            each = ", ".join(f"{value} for {arm}" for arm, value in values.items())
            raise ConfigError(
                f"the arms have unequal budgets: {key} is {each}. Every arm should have the same rollouts and samples; "
                "make them equal, or write allow_unequal_budgets: true and have the report say so"
            )


def check_verdicts(resolved: Mapping[str, Flat]) -> None:
    """Refuse arms whose answers are judged by different verifiers, or against different gold answers.

    Raises:
        ConfigError: naming the setting and each arm's value.
    """
    settings = {arm: {k: v for k, v in config.items() if _judges(k)} for arm, config in resolved.items()}
    for key in dict.fromkeys(key for own in settings.values() for key in own):
        values = {arm: own.get(key) for arm, own in settings.items()}
        if len(set(map(str, values.values()))) > 1:
            each = ", ".join(f"{value} for {arm}" for arm, value in values.items())
            raise ConfigError(
                f"the arms are not judged alike: {key} is {each}. Accuracies need one verdict for all arms"
            )


def _judges(key: str) -> bool:
    return key in JUDGES or key.startswith("data.verifier.")
