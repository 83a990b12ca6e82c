"""``python -m rlvr_pl compare`` and ``report``."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from rich.console import Console
from rich.table import Table

from rlvr_pl.callbacks import Interrupted
from rlvr_pl.cli import COMPARE_COMMANDS, PROGRAM
from rlvr_pl.compare.comparison_file import check_parallel, load_comparison
from rlvr_pl.compare.lock import is_locked, locked
from rlvr_pl.compare.plan import Comparison, Run
from rlvr_pl.compare.progress import Costs, Workload, duration, make_display
from rlvr_pl.compare.record import COMPARISON_LOCK, begin, check_unchanged
from rlvr_pl.compare.runner import OUTPUT, Runner, child_environment, last_lines, start
from rlvr_pl.run_state import RunState, read_run_state
from rlvr_pl.types import ConfigError

EXAMPLE = "examples/compare.slurm"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}. See {self.prog} --help")


def make_parser() -> argparse.ArgumentParser:
    """Of both subcommands."""
    parser = _Parser(prog=PROGRAM, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    compare = commands.add_parser("compare", description=COMPARE_COMMANDS["compare"], allow_abbrev=False)
    compare.add_argument("--config", required=True, type=Path, metavar="FILE", help="the comparison: arms, seeds, base")
    compare.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="ARM[,SEED]",
        help=f"run this part alone; may be given again. {EXAMPLE} spreads the runs over a cluster with it",
    )
    compare.add_argument(
        "--processes",
        type=int,
        metavar="N",
        help="runs at a time, in place of what the file says; they share the cores",
    )
    compare.add_argument(
        "--devices", metavar="0,1", help="the GPUs that the runs are dealt out to, in place of what the file says"
    )
    compare.add_argument(
        "--dry-run",
        action="store_true",
        help="print the plan, the budget, and how long it would take by one measured rollout; leave nothing behind",
    )
    report = commands.add_parser("report", description=COMPARE_COMMANDS["report"], allow_abbrev=False)
    report.add_argument("folder", type=Path, metavar="RUNS_DIR", help="with a folder an arm, and in it one a seed")
    return parser


def run_command(arguments: Sequence[str]) -> None:
    """Run ``compare`` or ``report``.

    Raises:
        ConfigError: for what the user can mend.
        Interrupted: once every run has written what it goes on from.
        SystemExit: with status 1 if a run has failed.
    """
    parsed = make_parser().parse_args(arguments)
    if parsed.command == "report":
        if not parsed.folder.is_dir():
            raise ConfigError(f"there is no folder {str(parsed.folder)!r}")
        write_report(parsed.folder)
        return
    comparison = in_parallel(load_comparison(parsed.config), parsed.processes, parsed.devices)
    runs = comparison.runs(parsed.only)
    print(f"Checking {len(comparison.arms)} arms …", flush=True)
    resolved = comparison.resolve()
    workloads = {arm: Workload.of(config) for arm, config in resolved.items()}
    if parsed.dry_run:
        check_unchanged(comparison, resolved)
        dry_run(comparison, runs, workloads)
        return
    begin(comparison, resolved)
    compare(comparison, runs, workloads)


def in_parallel(comparison: Comparison, processes: int | None, devices: str | None) -> Comparison:
    """The comparison with the command line's processes and devices, where it gives any."""
    if devices is not None:
        parts = devices.split(",")
        numbers = [int(part) if part.isdecimal() else part for part in parts]
        check_parallel(None, numbers)
        comparison = replace(comparison, devices=tuple(map(int, numbers)), processes=len(numbers))
    if processes is not None:
        check_parallel(processes, None)
        comparison = replace(comparison, processes=processes)
    return comparison


def compare(comparison: Comparison, runs: Sequence[Run], workloads: Mapping[str, Workload]) -> None:
    """Run what is not finished, then write the report."""
    console = Console()
    outcome = Runner(comparison, runs, workloads).work(make_display(console))
    for run, why in outcome.failed.items():
        console.print(f"\n{run} failed: {why}", highlight=False, markup=False, soft_wrap=True)
    if outcome.interrupted:
        raise Interrupted(
            f"Interrupted: {len(outcome.finished)} of {len(runs)} runs finished. The same command goes on from there."
        )
    try:
        write_report(comparison.folder)
    except ConfigError as error:
        if not outcome.failed:
            raise
        console.print(f"no report: {error}", highlight=False, markup=False, soft_wrap=True)
    if outcome.failed:
        sys.exit(1)


def write_report(folder: Path) -> None:
    """Write the report, one process at a time, and say where it lies."""
    from rlvr_pl.compare.report import write_report as write  # loads plots and tables, which the runs do without

    with locked(folder / COMPARISON_LOCK):
        print(f"report: {write(folder)}")


# The dry run


def dry_run(comparison: Comparison, runs: Sequence[Run], workloads: Mapping[str, Workload]) -> None:
    """Print what ``compare`` would do, then measure a rollout and say how long it would take."""
    console = Console()
    states = {run: plan_of(run) for run in runs}
    print_plan(comparison, states, workloads, console)
    undone = [run for run, plan in states.items() if plan != "finished"]
    if not undone:
        console.print("Nothing is left to run.")
        return
    first = undone[0]
    console.print(f"Measuring one rollout of {first.arm} …")
    costs, start_up = measure(comparison, first)
    console.print(
        f"  start {duration(start_up)}, a rollout with its update {costs.rollout:.2f} s, "
        f"evaluations: val {costs.val:.1f} s, test {costs.test:.1f} s",
        highlight=False,
        soft_wrap=True,
    )
    seconds = []
    for run in undone:
        state = read_run_state(run.folder) if states[run] == "resumes" else None
        workload = workloads[run.arm]
        left = workload.seconds(costs) if state is None else workload.seconds_after(state.rollouts_done, costs)
        seconds.append(start_up + left)
    total = max(sum(seconds) / comparison.processes, *seconds)
    beside = "" if comparison.processes == 1 else f", {comparison.processes} at a time if they do not slow each other"
    console.print(
        f"A whole run of {first.arm} takes about {duration(start_up + workloads[first.arm].seconds(costs))}, "
        f"what is left of {len(undone)} runs about {duration(total)}{beside}.",
        highlight=False,
        soft_wrap=True,
    )


def plan_of(run: Run) -> str:
    """What ``compare`` would do with a run."""
    if run.finished:
        return "finished"
    if is_locked(run.lock):
        return "at work"
    return "resumes" if run.checkpoint.is_file() else "waits"


def print_plan(
    comparison: Comparison, states: Mapping[Run, str], workloads: Mapping[str, Workload], console: Console
) -> None:
    """Arms × seeds, each arm's budget, and how to run one of them by hand."""
    runs = list(states)
    plan = Table(title=f"{comparison.folder}: {len(runs)} runs")
    by_state: dict[str, list[Run]] = {}
    for run, state in states.items():
        by_state.setdefault(state, []).append(run)
    for column in ("arm", *(f"seeds: {state}" for state in by_state)):
        plan.add_column(column)
    for column in ("rollouts", "samples", "optimizer steps"):
        plan.add_column(column, justify="right")
    for arm in dict.fromkeys(run.arm for run in runs):
        load = workloads[arm]
        seeds = (" ".join(str(run.seed) for run in group if run.arm == arm) for group in by_state.values())
        budget = (f"{count:,}" for count in (load.rollouts, load.samples, load.optimizer_steps))
        plan.add_row(arm, *seeds, *budget)
    console.print(plan)
    totals = [workloads[run.arm] for run in runs]
    console.print(
        f"in all {sum(load.rollouts for load in totals):,} rollouts, {sum(load.samples for load in totals):,} samples",
        highlight=False,
    )
    command = shlex.join(["python", "-m", "rlvr_pl", *comparison.fit_arguments(runs[0])])
    console.print(f"{runs[0]} by hand: {command}", highlight=False, markup=False, soft_wrap=True)


def measure(comparison: Comparison, run: Run) -> tuple[Costs, float]:
    """Seconds of a run's parts and of its start, by a fit of one rollout in a folder that is then removed.

    Raises:
        ConfigError: if it fails, with the end of its output.
    """
    # Beside the comparison's folder, where there is room for checkpoints: /tmp may be memory.
    place = next(parent for parent in comparison.folder.absolute().parents if parent.is_dir())
    scratch = Path(tempfile.mkdtemp(prefix=".dry_run_", dir=place))
    try:
        trial = replace(run, folder=scratch / run.arm / run.folder.name)
        arguments = [*comparison.fit_arguments(trial), "--data.max_rollouts=1"]
        device = None if comparison.devices is None else comparison.devices[0]
        begun = time.perf_counter()
        process = start(arguments, scratch / OUTPUT, child_environment(comparison.processes, device))
        try:
            code = process.wait()
        except KeyboardInterrupt:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise Interrupted("Interrupted while measuring; nothing is left behind.") from None
        seconds = time.perf_counter() - begun
        state = read_run_state(trial.folder)
        costs = Costs.of(state or RunState())
        if code or state is None or costs is None:
            raise ConfigError(f"one rollout of {run.arm} cannot be run:\n{last_lines(scratch / OUTPUT)}")
        return costs, seconds - state.wall_seconds
    finally:
        shutil.rmtree(scratch)
