"""Where a run lies: one folder for all that it leaves, whatever its loggers are."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger

from rlvr_pl.run.folder import CHECKPOINTS
from rlvr_pl.types import ConfigError

LoggerSettings = Mapping[str, Any]
"""``class_path`` and ``init_args`` of a logger."""

_RUNS = Path("lightning_logs", "run")


@dataclass(frozen=True)
class Place:
    """What a configuration says of a run's folder.

    Attributes:
        runs: the folder that it lies in, with runs ``version_0``, ``version_1`` and so on.
        version: its name, where the configuration names it; None stands for a new one.
    """

    runs: Path
    version: str | None = None

    @property
    def run(self) -> Path | None:
        """The run's folder; None stands for a new one."""
        return None if self.version is None else self.runs / self.version


def place_of(run_dir: str | None, loggers: Sequence[LoggerSettings]) -> Place:
    """Read from a configuration where its run lies.

    Args:
        run_dir: ``--run_dir``, which goes before what loggers say.
        loggers: of these the first TensorBoard or CSV logger says it, else the first with a ``save_dir`` and a
            ``name``, else it is ``lightning_logs/run``.
    """
    if run_dir is not None:
        path = Path(run_dir)
        path = path if path.name else path.absolute()  # of "." too
        return Place(path.parent, path.name)
    for settings in sorted(loggers, key=lambda logger: not _is_local(logger)):
        values = settings.get("init_args") or {}
        if _is_local(settings) or (values.get("save_dir") and values.get("name")):
            runs = Path(os.path.expandvars(Path(values.get("save_dir") or _RUNS.parent, values.get("name") or "")))
            version = values.get("version") if _is_local(settings) else None  # of others it is no folder's name
            return Place(runs.expanduser(), f"version_{version}" if isinstance(version, int) else version)
    return Place(_RUNS)


def make_loggers(loggers: Sequence[LoggerSettings], run: Path) -> list[Logger]:
    """Make loggers that write into the run's folder, whatever their own settings say of a place.

    TensorBoard's events lie in the folder itself. A CSV logger, which would delete what it wrote before the run was
    resumed, has ``csv/version_0`` and so on; others have the folder as their ``save_dir``, if they know one.

    Raises:
        ValueError, ImportError or another error of the logger's own, where one cannot be made.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--loggers", type=list[Logger])
    placed = [dict(settings) | {"init_args": _in_folder(settings, run)} for settings in loggers]
    return list(parser.instantiate_classes(parser.parse_object({"loggers": placed})).loggers)


def _in_folder(settings: LoggerSettings, run: Path) -> dict[str, Any]:
    values = dict(settings.get("init_args") or {})
    if settings["class_path"].endswith(".TensorBoardLogger"):
        return values | {"save_dir": str(run.parent), "name": "", "version": run.name}
    if settings["class_path"].endswith(".CSVLogger"):
        return values | {"save_dir": str(run), "name": "csv", "version": None}
    return values | ({"save_dir": str(run)} if "save_dir" in values else {})


def _is_local(settings: LoggerSettings) -> bool:
    return settings["class_path"].rpartition(".")[2] in ("TensorBoardLogger", "CSVLogger")


class RunFolder(Callback):
    """Tells everything that has the trainer where the run lies.

    Attributes:
        path: the folder; rank 0's is the one that counts.
    """

    def __init__(self) -> None:
        self.path: Path | None = None


def run_folder(trainer: Trainer) -> Path | None:
    """Ask where the run lies that a trainer is at work on; a collective, so that every rank must ask.

    Returns:
        The folder; of a trainer that the command line has not made, what Lightning takes for it, which may be None.
    """
    keeper = next((callback for callback in trainer.callbacks if isinstance(callback, RunFolder)), None)  # type: ignore[attr-defined]
    path = trainer.log_dir if keeper is None else trainer.strategy.broadcast(keeper.path)
    return None if path is None else Path(path)


def check_free(run: Path) -> None:
    """Refuse a folder for a new run that holds another run's checkpoints.

    Raises:
        ConfigError: naming it.
    """
    if any((run / CHECKPOINTS).glob("*.ckpt")):
        raise ConfigError(
            f"run_dir: {run} holds a run with checkpoints already; add --ckpt_path last to go on with it, or name "
            "another folder"
        )
