"""How far the runs are, how long the rest will take, and how that is shown."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from rlvr_pl.compare.plan import Run
from rlvr_pl.run.configuration import samples_per_rollout, updates_per_rollout
from rlvr_pl.run.state import RunState

UNDONE = ("waiting", "elsewhere", "starting", "baseline", "training", "testing", "interrupted")


@dataclass(frozen=True)
class Costs:
    """Seconds of the parts of a run."""

    rollout: float  # and its update
    val: float  # one evaluation
    test: float

    @classmethod
    def of(cls, state: RunState) -> Costs | None:
        """Take what a run has measured; None before its first rollout."""
        if not state.rollouts_done:
            return None
        seconds = state.evaluation_seconds
        rollout = state.train_seconds / state.rollouts_done
        return cls(rollout, seconds.get("val", 0.0), seconds.get("test", 0.0))

    @classmethod
    def mean(cls, costs: Sequence[Costs]) -> Costs | None:
        """Average costs; None where there are none."""
        if not costs:
            return None
        return cls(fmean(c.rollout for c in costs), fmean(c.val for c in costs), fmean(c.test for c in costs))


@dataclass(frozen=True)
class Workload:
    """What a whole run consists of: counts, without seconds."""

    rollouts: int
    samples: int
    optimizer_steps: int
    val_interval: int  # rollouts
    tests: bool  # before training; after it with the last checkpoint and with the best
    val_also_after: frozenset[int] = frozenset()  # rollouts

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Workload:
        """Count what ``fit`` does with a flat configuration."""
        rollouts = config["data.max_rollouts"]
        interval = config["trainer.val_check_interval"]
        return cls(
            rollouts=rollouts,
            samples=int(rollouts * samples_per_rollout(config)),
            optimizer_steps=int(rollouts * updates_per_rollout(config)),
            val_interval=interval if isinstance(interval, int) else max(1, int(rollouts * (interval or 1.0))),
            tests=config["report_test"],
            val_also_after=frozenset(config.get("evaluate.also_after") or ()),
        )

    def evaluations_after(self, rollouts: int) -> int:
        """Count the evaluations of val that come after this many rollouts; the last rollout always has one."""
        due = (
            set(range(self.val_interval, self.rollouts + 1, self.val_interval)) | self.val_also_after | {self.rollouts}
        )
        return sum(rollouts < rollout <= self.rollouts for rollout in due)

    def seconds_after(self, rollouts: int, costs: Costs) -> float:
        """Estimate what is left once this many rollouts are done."""
        left = (self.rollouts - rollouts) * costs.rollout + self.evaluations_after(rollouts) * costs.val
        return left + 2 * self.tests * costs.test

    def seconds(self, costs: Costs) -> float:
        """Estimate the whole run, with the baseline before its first rollout."""
        return costs.val + self.tests * costs.test + self.seconds_after(0, costs)


@dataclass(frozen=True)
class Row:
    """A run as it is shown."""

    run: Run
    status: str  # waiting, elsewhere, starting, baseline, training, testing, finished, failed or interrupted
    workload: Workload
    state: RunState | None = None
    seconds_left: float | None = None  # None where nothing has been measured yet


def estimate(rows: Iterable[Row]) -> list[Row]:
    """Add the seconds that each run will still take, by what it, its arm or any other run has measured."""
    rows = list(rows)
    measured = [(row.run.arm, costs) for row in rows if row.state is not None and (costs := Costs.of(row.state))]
    result = []
    for row in rows:
        costs = (
            (None if row.state is None else Costs.of(row.state))
            or Costs.mean([c for arm, c in measured if arm == row.run.arm])
            or Costs.mean([c for _, c in measured])
        )
        seconds = None
        if row.status not in UNDONE:
            seconds = 0.0
        elif costs is not None:
            done = 0 if row.state is None else row.state.rollouts_done
            seconds = row.workload.seconds_after(done, costs) if done else row.workload.seconds(costs)
        result.append(replace(row, seconds_left=seconds))
    return result


def total_seconds(rows: Sequence[Row], processes: int) -> float | None:
    """Estimate the time until the last of them ends, so many at a time; None where a run's rest is not known."""
    seconds = [row.seconds_left for row in rows]
    if any(s is None for s in seconds):
        return None
    known = [s for s in seconds if s is not None]
    return max([sum(known) / processes, *known], default=0.0)


def duration(seconds: float | None) -> str:
    """Write ``–``, ``42 s``, ``4 min 05 s`` or ``3 h 07 min``."""
    if seconds is None:
        return "–"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def table(rows: Sequence[Row], total: float | None) -> Group:
    """Draw a row a run, and below it what is left of all of them."""
    shown = Table()
    for column in ("arm", "seed", "state", "rollouts", "%", "s/rollout", "left", "val accuracy"):
        shown.add_column(column, justify="left" if column in ("arm", "state") else "right", no_wrap=True)
    for row in rows:
        state = row.state or RunState(max_rollouts=row.workload.rollouts)
        maximum = state.max_rollouts or row.workload.rollouts
        costs = Costs.of(state)
        shown.add_row(
            row.run.arm,
            str(row.run.seed),
            row.status,
            f"{state.rollouts_done}/{maximum}",
            f"{100 * state.rollouts_done / maximum:.0f}",
            "–" if costs is None else f"{costs.rollout:.2f}",
            duration(row.seconds_left) if row.status in UNDONE else "",
            "–" if state.val_accuracy is None else f"{state.val_accuracy:.1%}",
        )
    finished = sum(row.status == "finished" for row in rows)
    return Group(shown, f"{finished} of {len(rows)} runs finished; time left: {duration(total)}")


class Display(Protocol):
    """Shows rows whenever it is given them."""

    def __enter__(self) -> Display: ...
    def __exit__(self, *exception: object) -> None: ...
    def show(self, rows: Sequence[Row], total: float | None) -> None: ...
    def say(self, text: str) -> None: ...


class LiveTable:
    """The table, kept up to date in place."""

    def __init__(self, console: Console) -> None:
        self.live = Live(console=console, auto_refresh=False, vertical_overflow="visible")

    def __enter__(self) -> LiveTable:
        self.live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.live.stop()

    def show(self, rows: Sequence[Row], total: float | None) -> None:
        self.live.update(table(rows, total), refresh=True)

    def say(self, text: str) -> None:
        self.live.console.print(text, soft_wrap=True)


class Lines:
    """A line for every run whose state changes: for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.shown: dict[Run, str] = {}

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def show(self, rows: Sequence[Row], total: float | None) -> None:
        for row in rows:
            if self.shown.get(row.run, "waiting") == row.status:
                continue
            self.shown[row.run] = row.status
            state = row.state or RunState()
            done = f", {state.rollouts_done}/{row.workload.rollouts} rollouts" if state.rollouts_done else ""
            accuracy = "" if state.val_accuracy is None else f", val accuracy {state.val_accuracy:.1%}"
            left = "" if total is None else f" ({duration(total)} left for all)"
            self.say(f"{row.run}: {row.status}{done}{accuracy}{left}")

    def say(self, text: str) -> None:
        clock = time.strftime("%H:%M:%S")
        self.console.print(f"{clock} {text}", soft_wrap=True)


def make_display(console: Console) -> Display:
    """Choose the live table on a terminal, lines elsewhere."""
    return LiveTable(console) if console.is_terminal else Lines(console)
