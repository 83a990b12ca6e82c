"""What ``--ckpt_path`` means to a command: which checkpoint it goes on from, and in which folder."""

from __future__ import annotations

from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from rlvr_pl.run.checkpoint_files import put_aside, whole_checkpoint
from rlvr_pl.run.environment import is_first_rank
from rlvr_pl.run.folder import find_checkpoint, newer_runs
from rlvr_pl.run.lock import RunLock
from rlvr_pl.run.state import read_run_state
from rlvr_pl.types import ConfigError


def choose_checkpoint(name: str, logger: MutableMapping[str, Any], max_rollouts: int | None, lock: RunLock) -> Path:
    """Choose the checkpoint that a command loads, and have a resumed ``fit`` go on in its own folder.

    Args:
        name: of ``--ckpt_path``, as ``find_checkpoint`` takes it.
        logger: the logger's settings; its folder becomes that of the run that goes on, if it is one.
        max_rollouts: the budget of ``fit``; None for a command that trains nothing.
        lock: taken if the run goes on in its own folder.

    Returns:
        A file whose checksums hold.

    Raises:
        ConfigError: if there is none, or its run is finished, or another process is at work on it.
    """
    runs, version = Path(logger.get("save_dir") or "lightning_logs", logger.get("name") or ""), logger.get("version")
    version = f"version_{version}" if isinstance(version, int) else version
    checkpoint = find_checkpoint(name, runs, version)
    run = checkpoint.absolute().parents[1]
    passed_over = ", ".join(folder.name for folder in newer_runs(run)) if name == "last" and version is None else ""
    note = f" ({passed_over}, begun later, has no checkpoint to go on from)" if passed_over else ""
    if max_rollouts is None:
        used, problem = whole_checkpoint(checkpoint)
        _say(problem, f"Taking {used}{note}")
        return used
    if name == "last" or Path(name).is_dir():
        own = {"save_dir": str(checkpoint.parents[3]), "name": checkpoint.parents[2].name, "version": run.name}
        for key, value in own.items():
            logger[key] = value
    elif version is None or run != (runs / version).absolute():  # a run of its own, which begins with this file
        used, problem = whole_checkpoint(checkpoint)
        _say(problem, f"Going on from {used} in a new folder")
        return used
    _refuse_if_finished(run, max_rollouts, note)
    if is_first_rank():
        lock.take(run)
    used, problem = whole_checkpoint(checkpoint)
    _say(problem, f"Going on with {checkpoint.parents[1]}{note}")
    if used != checkpoint and is_first_rank():
        put_aside(checkpoint, used)
    return used


def _say(problem: str | None, text: str) -> None:
    rank_zero_info(text if problem is None else f"{problem[0].upper()}{problem[1:]}. {text}")


def _refuse_if_finished(run: Path, max_rollouts: int, note: str) -> None:
    state = read_run_state(run)
    if state is not None and state.state == "finished" and state.rollouts_done >= max_rollouts:
        raise ConfigError(
            f"ckpt_path: {run} is finished, with {state.rollouts_done} rollouts{note}; raise data.max_rollouts above "
            "that to train it on, or leave --ckpt_path out to start a new run"
        )
