"""The comparison file, read and checked as far as that goes without asking ``fit``."""

from __future__ import annotations

import difflib
import re
from collections.abc import Hashable
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml

from rlvr_pl.compare.plan import Comparison, Tuning
from rlvr_pl.config_files import find_base
from rlvr_pl.run.comparison import DATA, FIGURES, SEED_OFFSET, TUNE, TUNING
from rlvr_pl.run.configuration import Flat, belongs_to_a_run, flatten
from rlvr_pl.run.declaration import CHECKPOINTS, MARGIN, METRICS
from rlvr_pl.types import ConfigError

_ARM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=-]{0,63}")
_TAKEN = {DATA, FIGURES, TUNING, "null"}  # folders beside the arms, and what YAML takes for nothing


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that is there twice: YAML would take the last of two arms of one name, without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        names = [key.value for key, _ in node.value]
        for name in names:
            if names.count(name) > 1:
                raise yaml.constructor.ConstructorError(problem=f"{name!r} is listed twice")
        return super().construct_mapping(node, deep)


def load_comparison(file: Path) -> Comparison:
    """Read and check a comparison file.

    Raises:
        ConfigError: naming the key and the remedy.
    """
    try:
        values = yaml.load(file.read_text(encoding="utf-8"), _UniqueKeys)
        return _checked(values, file.parent)
    except OSError as error:
        raise ConfigError(f"--config: cannot read {str(file)!r} ({error.strerror or error})") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: {' '.join(str(error).split())}") from error
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error


def _checked(values: Any, place: Path) -> Comparison:
    known = [f.name for f in fields(Comparison) if f.name != "trials"]
    if not isinstance(values, dict):
        raise ConfigError(f"a comparison is a mapping with the keys {', '.join(known)}")
    for key in values:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            raise ConfigError(
                f"unknown key {key!r}. " + (f"Did you mean {close[0]}?" if close else f"Choose from {', '.join(known)}")
            )
    for key in ("folder", "base", "arms", "seeds"):
        if values.get(key) is None:
            raise ConfigError(f"{key} is missing")
    folder, base = values["folder"], values["base"]
    if not isinstance(folder, str) or not folder:
        raise ConfigError(f"folder is {folder!r}; it must be a path")
    if not isinstance(base, list) or not base or not all(isinstance(name, str) for name in base):
        raise ConfigError(f"base is {base!r}; it must be a list of configuration files, as fit --config takes them")
    processes, devices = values.get("processes"), values.get("devices")
    check_parallel(processes, devices)
    unequal = values.get("allow_unequal_budgets", False)
    if not isinstance(unequal, bool):
        raise ConfigError(f"allow_unequal_budgets is {unequal!r}; it must be true or false")
    arms, seeds = _arms(values["arms"]), _seeds(values["seeds"], "seeds")
    return Comparison(
        folder=Path(folder),
        base=tuple(find_base(name, place) for name in base),
        arms=arms,
        seeds=seeds,
        overrides=_overrides(values.get("overrides"), "overrides"),
        processes=processes or len(devices or [0]),
        devices=None if devices is None else tuple(devices),
        allow_unequal_budgets=unequal,
        metric=_one_of(METRICS, "metric", values),
        checkpoint=_one_of(CHECKPOINTS, "checkpoint", values),
        margin=_margin(values.get("margin", MARGIN)),
        thresholds=_thresholds(values.get("thresholds")),
        tune=None if values.get(TUNE) is None else _tuning(values[TUNE], arms, seeds),
    )


def check_parallel(processes: Any, devices: Any) -> None:
    """Refuse what cannot be a number of processes or a list of GPUs.

    Raises:
        ConfigError: if one of them is neither None nor that.
    """
    if processes is not None and not (_is_count(processes) and processes >= 1):
        raise ConfigError(f"processes is {processes!r}; it must be a number of at least 1")
    if devices is not None and not (isinstance(devices, list) and devices and all(map(_is_count, devices))):
        raise ConfigError(f"devices is {devices!r}; it must be a list of GPU numbers, such as [0, 1], or null")


Choice = TypeVar("Choice", bound=str)


def _one_of(choices: tuple[Choice, ...], key: str, values: dict[str, Any]) -> Choice:
    """Read a word; the first choice where there is none."""
    value = values.get(key, choices[0])
    if value not in choices:
        raise ConfigError(f"{key} is {value!r}; choose from {', '.join(choices)}")
    return cast(Choice, value)


def _is_percentage(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 100


def _thresholds(thresholds: Any) -> tuple[float, ...]:
    if thresholds is None:
        return ()
    if not isinstance(thresholds, list) or not all(map(_is_percentage, thresholds)):
        raise ConfigError(
            f"thresholds is {thresholds!r}; it must be a list of percent of val accuracy, such as [50, 70]"
        )
    return tuple(sorted({float(value) for value in thresholds}))


def _margin(margin: Any) -> float:
    if not _is_percentage(margin):
        raise ConfigError(f"margin is {margin!r}; it must be a number of points of accuracy, such as {MARGIN}")
    return float(margin)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _arms(arms: Any) -> dict[str, Flat]:
    if not isinstance(arms, dict) or not arms:
        raise ConfigError("arms is empty; name at least one, such as GSPO: {model.loss: GSPO}")
    for name in arms:
        if not isinstance(name, str):
            raise ConfigError(f"arms: the name {name!r} is not a string in YAML; put it in quotes")
        if not _ARM.fullmatch(name) or name.lower() in _TAKEN:
            raise ConfigError(
                f"arms: {name!r} cannot name a folder of its own; use letters, digits and . _ + = -, "
                f"but not {', '.join(sorted(_TAKEN))}"
            )
    lower = [name.lower() for name in arms]
    if len(set(lower)) < len(lower):
        raise ConfigError(f"arms: {', '.join(arms)}: names that differ only in case are one folder on some systems")
    checked = {name: _overrides(overrides, f"arms: {name}") for name, overrides in arms.items()}
    for name, overrides in checked.items():
        if not _is_count(overrides.get(SEED_OFFSET, 0)):
            raise ConfigError(
                f"arms: {name}: {SEED_OFFSET} is {overrides[SEED_OFFSET]!r}; it must be an integer of at least 0"
            )
    return checked


def _seeds(seeds: Any, where: str) -> tuple[int, ...]:
    if not isinstance(seeds, list) or not seeds or not all(_is_count(s) and s < 2**32 for s in seeds):
        raise ConfigError(f"{where} is {seeds!r}; it must be a list of numbers from 0 to 2³² − 1, such as [0, 1, 2]")
    twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
    if twice:
        raise ConfigError(f"{where}: {', '.join(map(str, twice))} is listed twice; a repeated run adds no evidence")
    return tuple(seeds)


def _tuning(tune: Any, arms: dict[str, Flat], seeds: tuple[int, ...]) -> Tuning:
    if not isinstance(tune, dict) or set(tune) != {"grid", "seeds"}:
        raise ConfigError(
            f"tune is {tune!r}; it must have the keys grid and seeds, such as "
            "{grid: {model.optimizer.lr: [1.0e-4, 3.0e-4]}, seeds: [100, 101]}"
        )
    grid = tune["grid"]
    if not isinstance(grid, dict) or not grid:
        raise ConfigError(f"tune: grid is {grid!r}; it must map dotted keys of fit to lists of values to try")
    for key, tried in grid.items():
        _overrides({key: tried}, "tune: grid")
        if not isinstance(tried, list) or not tried or not all(isinstance(v, int | float | str) for v in tried):
            raise ConfigError(f"tune: grid: {key} is {tried!r}; it must be a list of numbers, words, true or false")
        if len({str(value) for value in tried}) < len(tried):
            raise ConfigError(f"tune: grid: {key} is {tried!r}; a value that is tried twice adds no choice")
        for arm, settings in arms.items():
            if key in settings:
                raise ConfigError(f"tune: grid: {key} is set by arm {arm} as well; leave it out of one of them")
    tuning = Tuning(grid, _seeds(tune["seeds"], "tune: seeds"))
    if len(tuning.points()) < 2:
        raise ConfigError("tune: grid has one setting, and nothing to choose from; give at least two")
    used = {seed + settings.get(SEED_OFFSET, 0) for seed in seeds for settings in arms.values()}
    again = [
        str(seed)
        for seed in tuning.seeds
        if any(seed + settings.get(SEED_OFFSET, 0) in used for settings in arms.values())
    ]
    if again:
        raise ConfigError(
            f"tune: seeds: {', '.join(again)} would be of the result as well, which flatters what was chosen on them; "
            "take others"
        )
    return tuning


def _overrides(overrides: Any, where: str) -> Flat:
    if overrides is None:
        return {}
    if not isinstance(overrides, dict) or not all(isinstance(key, str) for key in overrides):
        raise ConfigError(f"{where} is {overrides!r}; it must map dotted keys of fit to values")
    for key in overrides:
        for setting in flatten({key: overrides[key]}):
            if belongs_to_a_run(setting) or setting == "config":
                raise ConfigError(
                    f"{where}: {setting} belongs to a single run and cannot be set for an arm; leave it out"
                )
    return dict(overrides)
