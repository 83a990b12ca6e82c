"""A configuration of ``fit`` as flat, dotted keys, and which of them belong to a single run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from rlvr_pl.run.folder import newest_config

Flat = dict[str, Any]
"""A configuration of ``fit``: dotted keys to values."""

# What tells one run of an arm from another, or only says where it is and what it shows. A comparison sets these or
# leaves them at their defaults; two runs that differ in nothing else were run with the same settings.
RUN_KEYS = (
    "seed_everything",
    "data.seed",
    "model.seed",
    "run_dir",
    "ckpt_path",
    "resume_point.allow_changes",
    "weights_only",
    "trainer.logger",
    "trainer.default_root_dir",
    "trainer.enable_progress_bar",
)

# What was so before it could be set: earlier configurations do not say it.
BROUGHT = {"data.question": "question", "data.answer": "answer", "data.verifier": "number"}


def belongs_to_a_run(key: str) -> bool:
    """Tell whether a dotted key is one of ``RUN_KEYS``, or lies under one."""
    return any(key == own or key.startswith(f"{own}.") for own in RUN_KEYS)


def settings_of(config: Mapping[str, Any]) -> Flat:
    """Leave out of a flat configuration what belongs to a single run."""
    return {key: value for key, value in config.items() if not belongs_to_a_run(key)}


def flatten(config: Mapping[str, Any], prefix: str = "") -> Flat:
    """Turn ``{"a": {"b": 1}}`` into ``{"a.b": 1}``; lists and empty mappings stay as they are."""
    flat: Flat = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def read_config(folder: Path) -> tuple[Flat, str | None]:
    """Read the newest ``config.yaml`` of a run.

    Returns:
        The flat configuration, and what is wrong with the file, or None.
    """
    file = newest_config(folder)
    if file is None:
        return {}, "has no config.yaml"
    try:
        config = yaml.load(file.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, ValueError, yaml.YAMLError) as error:
        return {}, f"{file.name} is unreadable ({' '.join(str(error).split())})"
    return (flatten(config), None) if isinstance(config, dict) else ({}, f"{file.name} is not a mapping")


def samples_per_rollout(config: Mapping[str, Any]) -> float:
    """Count the completions of a rollout, over all ranks; NaN where the flat configuration does not say."""
    return config.get("data.prompts_per_rollout", float("nan")) * config.get("model.group_size", float("nan"))


def updates_per_rollout(config: Mapping[str, Any]) -> float:
    """Count the optimizer steps of a rollout; NaN where the flat configuration does not say."""
    return config.get("model.minibatches_per_rollout", float("nan")) * config.get("model.epochs_per_rollout", 1)
