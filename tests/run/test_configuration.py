"""A configuration as flat keys, and which of them belong to a single run."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from rlvr_pl.run.configuration import belongs_to_a_run, flatten, read_config, settings_of, updates_per_rollout


def test_a_nested_configuration_becomes_dotted_keys() -> None:
    nested = {"a": {"b": {"c": 1}, "d": [{"e": 2}]}, "f": {}, "g": None}
    assert flatten(nested) == {"a.b.c": 1, "a.d": [{"e": 2}], "f": {}, "g": None}


@pytest.mark.parametrize(
    ("key", "own"),
    [
        ("seed_everything", True),
        ("data.seed", True),
        ("data.seeds", False),
        ("data.split_seed", False),
        ("trainer.logger", True),
        ("run_dir", True),
        ("trainer.logger.init_args.name", True),
        ("trainer.loggers", False),
        ("trainer.enable_progress_bar", True),
        ("trainer.precision", False),
        ("ckpt_path", True),
    ],
)
def test_what_belongs_to_a_run(key: str, own: bool) -> None:
    assert belongs_to_a_run(key) is own
    assert settings_of({key: 1}) == ({} if own else {key: 1})


def test_the_newest_configuration_of_a_folder_is_read(tmp_path: Path) -> None:
    assert read_config(tmp_path) == ({}, "has no config.yaml")
    (tmp_path / "config.yaml").write_text("model: {group_size: 4}")
    assert read_config(tmp_path) == ({"model.group_size": 4}, None)
    (tmp_path / "config-1.yaml").write_text("model: {group_size: 8}")
    assert read_config(tmp_path) == ({"model.group_size": 8}, None)
    (tmp_path / "config-2.yaml").write_text("model: {group_size: ")
    values, problem = read_config(tmp_path)
    assert values == {}
    assert problem is not None
    assert problem.startswith("config-2.yaml is unreadable (")


def test_updates_are_minibatches_times_epochs() -> None:
    assert updates_per_rollout({"model.minibatches_per_rollout": 4, "model.epochs_per_rollout": 2}) == 8
    assert updates_per_rollout({"model.minibatches_per_rollout": 4}) == 4
    assert math.isnan(updates_per_rollout({}))
