"""The process that compares expressions, from this side: started once, asked many times, replaced when it has ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import weakref
from pathlib import Path

from rlvr_pl.types import RunError

_PROGRAM = Path(__file__).with_name("math_worker.py")


class Worker:
    """One process that ``math_worker.py`` runs in; it starts at the first question.

    Args:
        limit_s: seconds of processor time that a question may take.
    """

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self.started = 0  # processes so far
        self._process: subprocess.Popen[str] | None = None
        self._owner = os.getpid()

    def ask(self, answer: str, gold: str) -> bool:
        """Ask whether two expressions are equal; what takes too long is not.

        Raises:
            RunError: if no process can be started.
        """
        if self._owner != os.getpid():  # forked: the process is the parent's
            self._process, self._owner = None, os.getpid()
        process = self._process or self._start()
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps([answer, gold]) + "\n")
            process.stdin.flush()
            told = process.stdout.readline()
        except BrokenPipeError:
            told = ""
        except BaseException:  # its answer would be taken for that to the next question
            self.end()
            raise
        if not told:
            self.end()
        return told == "true\n"

    def _start(self) -> subprocess.Popen[str]:
        # -P: the program's own folder is no place to import from.
        command = [sys.executable, "-P", str(_PROGRAM), str(self.limit_s)]
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            process.kill()
            raise RunError(
                f"data.verifier: the process that compares expressions does not start (status {process.wait()}): see "
                f"{' '.join(command)}"
            )
        self.started += 1
        self._process, self._finalizer = process, weakref.finalize(self, _end, process, self._owner)
        return process

    def end(self) -> None:
        """End the process, whatever it is at."""
        if self._process is not None:
            self._finalizer()
            self._process = None


def _end(process: subprocess.Popen[str], owner: int) -> None:
    if owner == os.getpid():
        process.kill()
        process.communicate()
