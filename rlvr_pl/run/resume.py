"""What ``--ckpt_path`` means to a command: which checkpoint it goes on from, and in which folder."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch.utilities import rank_zero_info

from rlvr_pl.run.checkpoint_files import put_aside, whole_checkpoint
from rlvr_pl.run.environment import is_first_rank
from rlvr_pl.run.folder import find_checkpoint, newer_runs
from rlvr_pl.run.lock import RunLock
from rlvr_pl.run.place import Place
from rlvr_pl.run.state import read_run_state
from rlvr_pl.types import ConfigError


def choose_checkpoint(name: str, place: Place, max_rollouts: int | None, lock: RunLock) -> tuple[Path, Path | None]:
    """Choose the checkpoint that a command loads, and have a resumed ``fit`` go on in its own folder.

    Args:
        name: of ``--ckpt_path``, as ``find_checkpoint`` takes it.
        place: what the configuration says of the run's folder.
        max_rollouts: the budget of ``fit``; None for a command that trains nothing.
        lock: taken if the run goes on in its own folder.

    Returns:
        A file whose checksums hold, and the folder of the run that goes on; None if none does.

    Raises:
        ConfigError: if there is none, or its run is finished, or another process is at work on it.
    """
    checkpoint = find_checkpoint(name, place.runs, place.version)
    run = checkpoint.absolute().parents[1]
    no_version = name == "last" and place.version is None
    passed_over = ", ".join(folder.name for folder in newer_runs(run)) if no_version else ""
    note = f" ({passed_over}, begun later, has no checkpoint to go on from)" if passed_over else ""
    if max_rollouts is None:
        used, problem = whole_checkpoint(checkpoint)
        _say(problem, f"Taking {used}{note}")
        return used, None
    own = name == "last" or Path(name).is_dir()
    if not own and (place.run is None or run != place.run.absolute()):  # a run of its own, which begins with this file
        used, problem = whole_checkpoint(checkpoint)
        _say(problem, f"Going on from {used} in a new folder")
        return used, None
    _refuse_if_finished(run, max_rollouts, note)
    if is_first_rank():
        lock.take(run)
    used, problem = whole_checkpoint(checkpoint)
    _say(problem, f"Going on with {checkpoint.parents[1]}{note}")
    if used != checkpoint and is_first_rank():
        put_aside(checkpoint, used)
    return used, checkpoint.parents[1]


def _say(problem: str | None, text: str) -> None:
    rank_zero_info(text if problem is None else f"{problem[0].upper()}{problem[1:]}. {text}")


def _refuse_if_finished(run: Path, max_rollouts: int, note: str) -> None:
    state = read_run_state(run)
    if state is not None and state.state == "finished" and state.rollouts_done >= max_rollouts:
        raise ConfigError(
            f"ckpt_path: {run} is finished, with {state.rollouts_done} rollouts{note}; raise data.max_rollouts above "
            "that to train it on, or leave --ckpt_path out to start a new run"
        )
