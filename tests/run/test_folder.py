"""A run's folder: which checkpoint and which configuration a name means."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlvr_pl.run.folder import find_checkpoint, newest_config, next_config_path, next_run
from rlvr_pl.types import ConfigError


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_last_and_best_are_those_of_the_newest_run_that_has_one(tmp_path: Path) -> None:
    for version in (0, 2, 9, 10):
        touch(tmp_path / f"version_{version}" / "checkpoints" / "last.ckpt")
    for version in (0, 2, 9):
        touch(tmp_path / f"version_{version}" / "checkpoints" / "best.ckpt")
    (tmp_path / "version_11" / "checkpoints").mkdir(parents=True)
    assert find_checkpoint("last", tmp_path) == tmp_path / "version_10" / "checkpoints" / "last.ckpt"
    assert find_checkpoint("best", tmp_path) == tmp_path / "version_9" / "checkpoints" / "best.ckpt"


def test_a_version_that_is_no_number_is_the_oldest(tmp_path: Path) -> None:
    touch(tmp_path / "version_old" / "checkpoints" / "last.ckpt")
    assert find_checkpoint("last", tmp_path) == tmp_path / "version_old" / "checkpoints" / "last.ckpt"
    touch(tmp_path / "version_0" / "checkpoints" / "last.ckpt")
    assert find_checkpoint("last", tmp_path) == tmp_path / "version_0" / "checkpoints" / "last.ckpt"


@pytest.mark.parametrize("name", ["last", "best"])
def test_without_a_checkpoint_the_message_names_the_folder_and_the_remedy(name: str, tmp_path: Path) -> None:
    touch(tmp_path / "version_0" / "checkpoints" / "other.ckpt")
    touch(tmp_path / f"{name}.ckpt")
    with pytest.raises(ConfigError) as error:
        find_checkpoint(name, tmp_path)
    assert str(tmp_path) in str(error.value)
    assert f"{name}.ckpt" in str(error.value)
    assert "--ckpt_path" in str(error.value)
    with pytest.raises(ConfigError):
        find_checkpoint(name, tmp_path / "no runs here")


def test_a_path_is_that_file(tmp_path: Path) -> None:
    touch(tmp_path / "version_0" / "checkpoints" / "last.ckpt")
    mine = touch(tmp_path / "elsewhere" / "mine.ckpt")
    assert find_checkpoint(str(mine), tmp_path) == mine
    with pytest.raises(ConfigError, match=r"there is no file .*absent\.ckpt"):
        find_checkpoint(str(tmp_path / "absent.ckpt"), tmp_path)


def test_a_new_run_comes_after_all_that_are_there(tmp_path: Path) -> None:
    assert next_run(tmp_path / "absent") == tmp_path / "absent" / "version_0"
    for name in ("version_2", "version_10", "version_old", "seed_11"):
        (tmp_path / name).mkdir()
    assert next_run(tmp_path) == tmp_path / "version_11"


def test_each_start_in_a_folder_has_a_config_of_its_own(tmp_path: Path) -> None:
    names = []
    for _ in range(4):
        path = next_config_path(tmp_path)
        assert not path.exists()
        path.touch()
        names.append(path.name)
    assert names == ["config.yaml", "config-1.yaml", "config-2.yaml", "config-3.yaml"]
    assert next_config_path(str(tmp_path)) == tmp_path / "config-4.yaml"


def test_other_files_are_no_configs(tmp_path: Path) -> None:
    for name in ("hparams.yaml", "config.json", "last.ckpt"):
        touch(tmp_path / name)
    assert next_config_path(tmp_path) == tmp_path / "config.yaml"


@pytest.mark.parametrize("names", [["config-1.yaml"], ["config.yaml", "config-2.yaml"]])
def test_an_existing_config_is_never_named(names: list[str], tmp_path: Path) -> None:
    for name in names:
        touch(tmp_path / name)
    assert not next_config_path(tmp_path).exists()


def test_the_newest_config_is_that_of_the_latest_start(tmp_path: Path) -> None:
    assert newest_config(tmp_path) is None
    for _ in range(12):
        path = touch(next_config_path(tmp_path))
        assert newest_config(tmp_path) == path
