"""A call of a reward function: code of the user's, which may raise, end the process, or never return."""

from __future__ import annotations

import inspect
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Real
from types import FrameType
from typing import Any

import torch

from rlvr_pl.rewards.completion import Completion
from rlvr_pl.types import ConfigError, RunError
from rlvr_pl.verifiers import VerifierError

MAX_REWARD = torch.finfo(torch.float32).max

_FORM = "a reward is a function of one completion: def {name}(completion: Completion) -> float"
_KEYWORD = inspect.Parameter.KEYWORD_ONLY


class RewardError(RunError):
    """A reward function failed."""


def asked_columns(function: Callable[..., Any]) -> tuple[str, ...]:
    """List the columns that a function asks for: its keyword-only parameters without a default."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some that are written in C have none
        return ()
    return tuple(p.name for p in parameters if p.kind is _KEYWORD and p.default is inspect.Parameter.empty)


def check_form(name: str, function: Callable[..., Any]) -> None:
    """Refuse a function that does not take one completion, and columns by name.

    Raises:
        ConfigError: with the right form; other libraries call theirs with all prompts and completions of a batch.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some that are written in C have none
        return
    form = (
        f"{_FORM.format(name=name)}, with .text, .question and .gold (rlvr_pl.rewards.Completion), and columns of the "
        "row behind a *"
    )
    if {"prompts", "completions"} & signature.parameters.keys():
        raise ConfigError(f"model.rewards: {name}{signature} takes a whole batch; here {form}")
    try:
        signature.bind(None, **dict.fromkeys(asked_columns(function)))
    except TypeError:
        raise ConfigError(f"model.rewards: {name}{signature} cannot be called with one argument; {form}") from None


def score(
    name: str,
    function: Callable[..., float],
    completion: Completion,
    timeout: float | None,
    columns: Sequence[str] = (),
) -> float:
    """Call a reward function.

    Args:
        name: the function's, for messages.
        function: the user's.
        completion: what it scores.
        columns: of the completion's row, which the function is given by name.
        timeout: in seconds; None waits for ever.

    Raises:
        RewardError: naming the function, if it raises, ends the process, takes too long, or returns no finite number.
            What it raised is the cause.
    """
    where = f"on the completion {completion.text[:60]!r}"
    asked = {column: completion.columns[column] for column in columns}
    try:
        with _time_limit(timeout):
            value = function(completion, **asked)
    except _TimeUp as error:
        raise RewardError(
            f"model.rewards: {name} took longer than model.reward_timeout_s ({timeout:g} s) {where}{_line(error)}"
        ) from error
    except VerifierError:  # which says itself whose fault it is
        raise
    except (Exception, SystemExit) as error:  # any code may lie behind it
        what = "ended the process" if isinstance(error, SystemExit) else "raised"
        told = " ".join(f"{type(error).__name__}: {error}".split())
        raise RewardError(f"model.rewards: {name} {what} ({told}) {where}{_line(error)}") from error
    if not (isinstance(value, Real) and -MAX_REWARD <= value <= MAX_REWARD):  # NaN fails the comparison
        raise RewardError(f"model.rewards: {name} returned {value!r} {where}; it must return a finite number")
    return float(value)


def _line(error: BaseException) -> str:
    """Where the function was: in its own file, however deep in a library it came to an end."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    own = [frame for frame in frames if frame.filename == frames[0].filename]
    return f"; see {own[-1].filename}, line {own[-1].lineno}" if own else ""


class _TimeUp(BaseException):
    """The time is up. No Exception, which the function might catch."""


@contextmanager
def _time_limit(seconds: float | None) -> Iterator[None]:
    """Raise ``_TimeUp`` in this block after so many seconds, and again after as many more if it was caught.

    Python code is interrupted, and regular expressions are; a single long call into C that never looks up is not.
    """
    if seconds is None:
        yield
        return

    def ring(signum: int, frame: FrameType | None) -> None:
        raise _TimeUp

    previous = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
