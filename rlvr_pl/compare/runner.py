"""The runs of a comparison as processes: started, watched, interrupted, and gone on with where they were left."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from rlvr_pl.compare.plan import Comparison, Run
from rlvr_pl.compare.progress import Display, Row, Workload, estimate, total_seconds
from rlvr_pl.run.environment import available_cores
from rlvr_pl.run.files import why
from rlvr_pl.run.folder import BEGINNINGS, OUTPUT, RUN_FILE
from rlvr_pl.run.lock import HANDED_ON, try_lock
from rlvr_pl.run.signals import stop_signals
from rlvr_pl.run.state import read_run_state
from rlvr_pl.run.terminal import visible

_POLL_SECONDS = 0.2
_SHOW_SECONDS = 1.0


@dataclass
class Process:
    """A fit that this comparison has started."""

    run: Run
    popen: subprocess.Popen[bytes]
    lock: int
    lane: int  # which of the so many at a time it is; lanes share out the GPUs
    state_before: int  # when run.json had last been written before it started


@dataclass
class Outcome:
    """The end of the runs: each is finished, has failed, or was left unfinished by an interrupt."""

    finished: list[Run] = field(default_factory=list)
    failed: dict[Run, str] = field(default_factory=dict)  # why
    interrupted: int | None = None  # the signal


class Interrupts:
    """Counts what asks the comparison to stop, in place of being stopped by it."""

    def __init__(self) -> None:
        self.count = 0
        self.first: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        for signum in stop_signals():
            self._previous[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.count += 1
        self.first = self.first or signum


def child_environment(processes: int, device: int | None) -> dict[str, str]:
    """Make the environment for one of several parallel runs: its share of the cores, and its GPU.

    Args:
        processes: how many runs go side by side.
        device: one of the GPUs that this process sees; None leaves all of them visible.
    """
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    if processes > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // processes)))
    if device is not None:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        environment["CUDA_VISIBLE_DEVICES"] = visible.split(",")[device] if visible else str(device)
    return environment


def start(
    arguments: Sequence[str], log: Path, environment: Mapping[str, str], keep: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """Start ``python -m rlvr_pl`` with its output appended to ``log``.

    In a session of its own: a terminal's Ctrl-C comes to the comparison alone, which passes it on once.

    Args:
        arguments: the subcommand and what follows it.
        log: its first new line is the command.
        environment: all of it.
        keep: open file descriptors that the process gets, and holds to its end.
    """
    command = [sys.executable, "-m", "rlvr_pl", *arguments]
    with log.open("ab") as output:
        output.write(f"$ {shlex.join(command)}\n".encode())
        output.flush()
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            pass_fds=keep,
            start_new_session=True,
        )


def last_lines(log: Path, count: int = 5) -> str:
    """Read the end of a process's output, without empty lines."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    return "\n".join([visible(line) for line in lines if line.strip()][-count:])


def remove_beginning(run: Run) -> None:
    """Remove what a run left that ended before its first checkpoint, so that nothing of it is counted twice.

    Its ``output.log`` stays, and whatever else fit does not write.
    """
    for pattern in BEGINNINGS:
        for path in run.folder.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


class Runner:
    """Runs what is not finished, a fixed number at a time.

    A run belongs to whoever holds the lock in its folder. The fit itself holds it too, so that one that outlives this
    process is left alone, and gone on with once it ends.
    """

    def __init__(self, comparison: Comparison, runs: Sequence[Run], workloads: Mapping[str, Workload]) -> None:
        self.comparison = comparison
        self.workloads = workloads  # by arm
        self.status = dict.fromkeys(runs, "waiting")
        self.processes: list[Process] = []
        self.outcome = Outcome()

    def work(self, display: Display) -> Outcome:
        """Work until every run is finished or has failed, or an interrupt stops them all."""
        with ExitStack() as stack:
            interrupts = stack.enter_context(Interrupts())
            stack.enter_context(display)
            passed_on = 0
            shown = float("-inf")
            while True:
                if not interrupts.count:
                    self._start_what_can()
                changed = self._collect(stopping=interrupts.count > 0)
                if changed or time.monotonic() - shown >= _SHOW_SECONDS:
                    rows = estimate(map(self._row, self.status))
                    display.show(rows, total_seconds(rows, self.comparison.processes))
                    shown = time.monotonic()
                if not self.processes and (interrupts.count or not self._left()):
                    self.outcome.interrupted = interrupts.first if self._left() else None
                    return self.outcome
                if interrupts.count > passed_on:
                    self._pass_on(display, again=passed_on > 0)
                    passed_on = interrupts.count
                time.sleep(_POLL_SECONDS)

    def _left(self) -> list[Run]:
        return [run for run, status in self.status.items() if status in ("waiting", "elsewhere", "interrupted")]

    def _start_what_can(self) -> None:
        for run in self._left():
            free = sorted(set(range(self.comparison.processes)) - {process.lane for process in self.processes})
            if not free:
                return
            was_elsewhere = self.status[run] == "elsewhere"
            try:
                lock = try_lock(run.lock)
            except OSError as error:  # the disk is full, say; the others may be near their end
                self._fail(run, reason=_why_not_started(error))
                continue
            if lock is None:
                self.status[run] = "elsewhere"
                continue
            state = read_run_state(run.folder)
            if run.finished:
                os.close(lock)
                self._finish(run)
            elif was_elsewhere and state is not None and state.state == "failed":
                os.close(lock)
                self._fail(run)
            else:
                try:
                    self.processes.append(self._start(run, free[0], lock))
                except OSError as error:
                    os.close(lock)
                    self._fail(run, reason=_why_not_started(error))

    def _start(self, run: Run, lane: int, lock: int) -> Process:
        arguments = self.comparison.fit_arguments(run)
        if run.checkpoint.is_file():
            arguments.append(f"--ckpt_path={run.checkpoint}")
        else:
            remove_beginning(run)
        devices = self.comparison.devices
        device = None if devices is None else devices[lane % len(devices)]
        environment = child_environment(self.comparison.processes, device)
        before = _written(run)
        environment[HANDED_ON] = str(lock)
        popen = start(arguments, run.folder / OUTPUT, environment, keep=[lock])
        self.status[run] = "running"
        return Process(run, popen, lock, lane, before)

    def _collect(self, stopping: bool) -> bool:
        """Take note of the processes that have ended; whether there were any."""
        ended = [process for process in self.processes if process.popen.poll() is not None]
        for process in ended:
            run, code = process.run, process.popen.returncode
            self.processes.remove(process)
            os.close(process.lock)
            if code == 0 and run.finished:
                self._finish(run)
            elif stopping:
                self.status[run] = "interrupted"
            else:
                self._fail(run, code)
        return bool(ended)

    def _finish(self, run: Run) -> None:
        self.status[run] = "finished"
        self.outcome.finished.append(run)

    def _fail(self, run: Run, code: int | None = None, reason: str | None = None) -> None:
        self.status[run] = "failed"
        reason = reason or _why_it_failed(run, code)
        self.outcome.failed[run] = f"{reason}; the end of {run.folder / OUTPUT}:\n{last_lines(run.folder / OUTPUT)}"

    def _pass_on(self, display: Display, again: bool) -> None:
        if again:
            for process in self.processes:
                os.killpg(process.popen.pid, signal.SIGKILL)
            return
        if self.processes:
            display.say(
                f"Interrupted: {len(self.processes)} at work finish a rollout and write a checkpoint. "
                "Press Ctrl-C again to stop at once."
            )
        for process in self.processes:
            process.popen.send_signal(signal.SIGINT)

    def _row(self, run: Run) -> Row:
        status, state = self.status[run], read_run_state(run.folder)
        if status == "running":
            process = next(process for process in self.processes if process.run == run)
            fresh = state is not None and _written(run) != process.state_before
            status = state.state if fresh and state is not None else "starting"
        return Row(run, status, self.workloads[run.arm], state)


def _why_not_started(error: OSError) -> str:
    return f"could not be started ({why(error)})"


def _why_it_failed(run: Run, code: int | None) -> str:
    if code is None:
        return "failed in another process"
    if code == 0:
        state = read_run_state(run.folder)
        return f"ended before its last rollout (after {0 if state is None else state.rollouts_done})"
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"ended with exit status {code}"


def _written(run: Run) -> int:
    """When run.json was last written, in nanoseconds; 0 where there is none."""
    try:
        return (run.folder / RUN_FILE).stat().st_mtime_ns
    except FileNotFoundError:
        return 0
