"""How a command that does not reach its end says so: what is saved, and with which command it goes on."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from rlvr_pl.run.checkpoint_files import read_checkpoint
from rlvr_pl.run.files import is_of_the_disk, why
from rlvr_pl.run.folder import CHECKPOINTS, LAST, newer_runs
from rlvr_pl.run.recorder import RecordRunState
from rlvr_pl.run.signals import STOP, Interrupted
from rlvr_pl.types import ConfigError, Diverged, RunError


def explained(error: BaseException, run: RecordRunState, program: str, arguments: Sequence[str]) -> BaseException:
    """Note in ``run.json`` that a command has ended before its end, and say how it goes on.

    Args:
        error: what ended it; a second failure on the way out, of a logger say, does not hide the first.
        run: of ``fit``; one without a folder for other commands, and before there is one.
        program: how it is called.
        arguments: of the command that has ended.

    Returns:
        What to raise: an interrupt or a RunError with its advice, or else the error as it is.
    """
    STOP.end()
    known = [e for e in _chain(error) if isinstance(e, Interrupted | RunError) or is_of_the_disk(e)]
    if not known:
        run.end(error)
        return error
    cause = _first_of(known, Interrupted) or _first_of(known, RunError) or known[-1]
    run.end(cause)
    advice = _advice(run, cause, program, arguments)
    if isinstance(cause, Interrupted):
        return Interrupted(cause.signum, f"{Interrupted(cause.signum)} {advice}")
    text = f"cannot write {cause.filename or 'a file'}: {why(cause)}" if type(cause) is OSError else str(cause)
    return RunError(f"{text}. {advice}")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what it came of, the latest first."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        yield error
        seen.append(error)
        error = error.__cause__ or error.__context__


def _first_of(chain: Sequence[BaseException], kind: type[BaseException]) -> BaseException | None:
    return next((error for error in reversed(chain) if isinstance(error, kind)), None)


def _advice(run: RecordRunState, cause: BaseException, program: str, arguments: Sequence[str]) -> str:
    if run.folder is None:
        return f"Nothing is lost; the same command starts again: {program} {shlex.join(arguments)}"
    if run.state.state == "finished":
        return f"The run is finished: {run.folder}"
    lower = [f"--model.optimizer.lr={run.learning_rate / 2:g}"] if isinstance(cause, Diverged) else []
    slower = " with a lower learning rate" if lower else ""
    arguments = _without_checkpoint(arguments)
    last = run.folder / CHECKPOINTS / LAST
    if not last.exists():
        return f"Nothing is saved yet; start anew{slower}: {program} {shlex.join([*arguments, *lower])}"
    name = str(run.folder) if newer_runs(run.folder) else "last"
    again = f"{program} {shlex.join([*arguments, '--ckpt_path', name, *lower])}"
    return f"Go on{slower} {_what_is_left(last, run.state.max_rollouts)}: {again}"


def _what_is_left(last: Path, max_rollouts: int) -> str:
    try:
        done = read_checkpoint(last)["rollouts_done"]
    except ConfigError:  # damaged since: the next start says so
        return f"towards rollout {max_rollouts}"
    return f"after rollout {done} of {max_rollouts}" if done < max_rollouts else "with the test; training is done"


def _without_checkpoint(arguments: Sequence[str]) -> list[str]:
    kept: list[str] = []
    skip = False
    for argument in arguments:
        if not skip and not argument.startswith("--ckpt_path="):
            skip = argument == "--ckpt_path"
            if not skip:
                kept.append(argument)
        else:
            skip = False
    return kept
