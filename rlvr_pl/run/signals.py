"""How a process is asked to stop: by SIGINT (Ctrl-C), SIGTERM (``kill``, schedulers) and SIGHUP (a closed terminal).

In a SLURM job SIGUSR1 does so too: many scripts ask for it before the time limit. Lightning would answer it with a
checkpoint from the middle of a rollout, if nobody else listened.

It imports nothing heavy: ``__main__`` listens before the libraries are loaded, which takes seconds.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any


def stop_signals() -> list[signal.Signals]:
    """List the signals that ask to stop; under ``nohup``, SIGHUP does not."""
    hangup = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
    time_limit = [signal.SIGUSR1] if "SLURM_JOB_ID" in os.environ else []
    return [signal.SIGINT, signal.SIGTERM, *hangup, *time_limit]


class Interrupted(BaseException):
    """A signal asked the process to stop. No ``Exception``: what handles failures must not take it for one.

    Args:
        signum: the signal.
        message: what is saved, and how to go on.
    """

    def __init__(self, signum: int, message: str = "") -> None:
        self.signum = signal.Signals(signum)
        super().__init__(message or f"Interrupted by {self.signum.name}.")

    @property
    def status(self) -> int:
        """The exit status that shells and schedulers expect of it."""
        return 128 + self.signum


class StopSignals:
    """What this process does when it is asked to stop: it ends at once, or first finishes what it is at.

    At once means by :class:`Interrupted`, raised wherever the process is. A library can swallow an exception that comes
    out of nowhere, in a destructor say; so long phases call ``check`` between their steps.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None  # the first
        self._previous: dict[int, Any] = {}
        self._terminals: list[int] = []
        self._starting = self._ending = False
        self._announce: Callable[[signal.Signals], None] | None = None

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Listen until the block ends; in threads other than the main one nothing changes, as Python has it."""
        outermost = not self._previous and threading.current_thread() is threading.main_thread()
        if outermost:
            self.received, self._ending, self._announce = None, False, None
            self._terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]
            for signum in stop_signals():
                self._previous[signum] = signal.signal(signum, self._note)
        try:
            yield
        finally:
            while outermost and self._previous:
                signal.signal(*self._previous.popitem())

    def start(self) -> None:
        """End without unwinding while libraries are loaded: there is nothing to clean up, and imports swallow much."""
        self._starting = True

    def begin(self) -> None:
        """Take ``start`` back: from here on somebody catches what is raised."""
        self._starting = False

    def finish_first(self, announce: Callable[[signal.Signals], None]) -> None:
        """Let the first signal only be noted, in ``received``, and announced; a second one still ends at once."""
        self._announce = announce

    def end_at_once(self) -> None:
        """Take ``finish_first`` back."""
        self._announce = None

    def end(self) -> None:
        """Heed no further signal while the end is written down, which takes a moment."""
        self._ending = True

    def check(self) -> None:
        """End if a signal has come that should have ended the process at once.

        Raises:
            Interrupted: if there was one.
        """
        if self.received is not None and self._announce is None:
            raise Interrupted(self.received)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self._ending:
            return
        again, self.received = self.received is not None, self.received or signal.Signals(signum)
        if signum == signal.SIGHUP:
            self._leave_lost_terminal()
        if self._starting:
            say(f"{Interrupted(signum)} Nothing was begun; the same command starts again.")
            os._exit(Interrupted(signum).status)
        if self._announce is None or again:
            raise Interrupted(signum)
        self._announce(self.received)

    def _leave_lost_terminal(self) -> None:
        """Send output nowhere if its terminal is gone: a progress bar would fail on it, and the run with that."""
        for descriptor in self._terminals:
            try:
                os.write(descriptor, b"\n")
            except OSError:
                with suppress(OSError):
                    nowhere = os.open(os.devnull, os.O_WRONLY)
                    os.dup2(nowhere, descriptor)
                    os.close(nowhere)


def say(text: str) -> None:
    """Write a line to standard error from inside a signal handler, where a buffered stream may be in use."""
    with suppress(OSError):
        os.write(2, f"{text}\n".encode())


STOP = StopSignals()
"""This process's, as its signal handlers are."""
