"""``python -m rlvr_pl compare``: from a comparison file to finished runs and their report."""

from __future__ import annotations

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

from rich.console import Console
from rich.table import Table

from rlvr_pl.cli import PROGRAM, CommandParser
from rlvr_pl.compare.comparison_file import check_parallel, load_comparison
from rlvr_pl.compare.pilot import pilot_table
from rlvr_pl.compare.plan import Comparison, Run
from rlvr_pl.compare.progress import Costs, Workload, duration, make_display
from rlvr_pl.compare.record import begin, check_unchanged
from rlvr_pl.compare.runner import Outcome, Runner, child_environment, last_lines, start
from rlvr_pl.compare.tuning import plan_trials, trial_table, with_recorded_trials, with_trials
from rlvr_pl.config_files import find_config
from rlvr_pl.report.command import report_on
from rlvr_pl.run.declaration import Declaration
from rlvr_pl.run.folder import OUTPUT
from rlvr_pl.run.lock import is_locked
from rlvr_pl.run.signals import Interrupted
from rlvr_pl.run.state import RunState, read_run_state
from rlvr_pl.run.terminal import make_console
from rlvr_pl.types import ConfigError

EXAMPLE = "examples/compare.slurm"


def make_parser() -> CommandParser:
    """Make the parser of the subcommand."""
    parser = CommandParser("compare")
    parser.add_argument("--config", required=True, metavar="FILE", help="the comparison: arms, seeds, base")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="ARM[,SEED]",
        help=f"run only this part, after the whole tuning; can be repeated. {EXAMPLE} spreads the runs over a cluster",
    )
    parser.add_argument(
        "--processes",
        type=int,
        metavar="N",
        help="runs at a time, in place of what the file says; they share the cores",
    )
    parser.add_argument(
        "--devices", metavar="0,1", help="the GPUs that the runs are dealt out to, in place of what the file says"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the plan, the budget, and how long it would take by one measured rollout; leave nothing behind",
    )
    parser.add_argument(
        "--pilot",
        type=Path,
        metavar="FOLDER",
        help="for --dry-run: a folder of earlier runs; by how much they varied, say how many seeds find what",
    )
    return parser


def compare_command(arguments: Sequence[str]) -> None:
    """Run ``compare`` with these arguments.

    Raises:
        ConfigError: for what the user can fix.
        Interrupted: once every run has written what it goes on from.
        SystemExit: with status 1 if a run has failed.
    """
    parsed = make_parser().parse_args(arguments)
    if parsed.pilot is not None and not parsed.dry_run:
        raise ConfigError("--pilot plans a comparison, and is for --dry-run; add it, or leave --pilot out")
    comparison = in_parallel(load_comparison(Path(find_config(parsed.config))), parsed.processes, parsed.devices)
    found_by = None if parsed.pilot is None else pilot_table(parsed.pilot, len(comparison.arms))
    comparison = with_recorded_trials(comparison)
    runs = comparison.runs(parsed.only)
    print(f"Checking {len(comparison.arms)} arms …", flush=True)
    check_unchanged(comparison)
    trials = plan_trials(comparison)
    if parsed.dry_run:
        if found_by is not None:
            make_console().print(found_by)
        if trials is not None:
            dry_run(trials, trials.runs())
            make_console().print("Then, each arm with what is best on val:")
        dry_run(comparison, runs)
        return
    say_what_is_declared(comparison, begin(comparison))
    if trials is not None:
        comparison = tune(comparison, trials)
        begin(comparison)
    compare(comparison, runs)


def say_what_is_declared(comparison: Comparison, declaration: Declaration | None) -> None:
    """Print the declaration's digest, and what of this comparison is none of it."""
    if declaration is None:
        print("Nothing was declared before the runs in this folder: the report will say that it is exploratory.")
        return
    print(f"Declared {declaration.made}, before the first run: sha256 {declaration.sha256}")
    for what, given, declared in (
        ("arms", comparison.arms, declaration.arms),
        ("seeds", comparison.seeds, declaration.seeds),
    ):
        if set(given) != set(declared):
            now, then = (", ".join(map(str, names)) for names in (given, declared))
            print(f"{what} are {now}, and {then} were declared: the report will say that it is exploratory.")


def workloads_of(comparison: Comparison) -> dict[str, Workload]:
    """Count what each arm's runs consist of."""
    return {arm: Workload.of(config) for arm, config in comparison.resolved.items()}


def tune(comparison: Comparison, trials: Comparison) -> Comparison:
    """Run the trials that are not finished, and let each arm choose its settings."""
    console = make_console()
    begin(trials)
    console.print(f"Tuning: {len(trials.arms)} settings × {len(trials.seeds)} seeds")
    run_all(trials, trials.runs(), console)
    comparison = with_trials(comparison, trials)
    console.print(trial_table(comparison.trials))
    return comparison


def in_parallel(comparison: Comparison, processes: int | None, devices: str | None) -> Comparison:
    """Take the command line's processes and devices, where it gives any."""
    if devices is not None:
        parts = devices.split(",")
        numbers = [int(part) if part.isdecimal() else part for part in parts]
        check_parallel(None, numbers)
        comparison = replace(comparison, devices=tuple(map(int, numbers)), processes=len(numbers))
    if processes is not None:
        check_parallel(processes, None)
        comparison = replace(comparison, processes=processes)
    return comparison


def compare(comparison: Comparison, runs: Sequence[Run]) -> None:
    """Run what is not finished, then write the report."""
    console = make_console()
    outcome = run_all(comparison, runs, console)
    try:
        report_on(comparison.folder)
    except ConfigError as error:
        if not outcome.failed:
            raise
        console.print(f"no report: {error}", soft_wrap=True)
    if outcome.failed:
        sys.exit(1)


def run_all(comparison: Comparison, runs: Sequence[Run], console: Console) -> Outcome:
    """Run what is not finished, and say what failed.

    Raises:
        Interrupted: once every run has written what it goes on from.
    """
    outcome = Runner(comparison, runs, workloads_of(comparison)).work(make_display(console))
    for run, why in outcome.failed.items():
        console.print(f"\n{run} failed: {why}", soft_wrap=True)
    if outcome.interrupted is not None:
        raise Interrupted(
            outcome.interrupted,
            f"Interrupted: {len(outcome.finished)} of {len(runs)} runs finished. The same command goes on from there.",
        )
    return outcome


# The dry run


def dry_run(comparison: Comparison, runs: Sequence[Run]) -> None:
    """Print what ``compare`` would do, then measure a rollout and say how long it would take."""
    console = make_console()
    workloads = workloads_of(comparison)
    states = {run: status_of(run) for run in runs}
    print_plan(comparison, states, workloads, console)
    undone = [run for run, status in states.items() if status != "finished"]
    if not undone:
        console.print("Nothing is left to run.")
        return
    first = undone[0]
    console.print(f"Measuring one rollout of {first.arm} …")
    costs, start_up = measure(comparison, first)
    console.print(
        f"  start {duration(start_up)}, a rollout with its update {costs.rollout:.2f} s, "
        f"evaluations: val {costs.val:.1f} s, test {costs.test:.1f} s",
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
        soft_wrap=True,
    )


def status_of(run: Run) -> str:
    """Say what ``compare`` would do with a run."""
    if run.finished:
        return "finished"
    if is_locked(run.lock):
        return "at work"
    return "resumes" if run.checkpoint.is_file() else "waits"


def print_plan(
    comparison: Comparison, states: Mapping[Run, str], workloads: Mapping[str, Workload], console: Console
) -> None:
    """Print arms × seeds, each arm's budget, and how to run one of them by hand."""
    runs = list(states)
    table = Table(title=f"{comparison.folder}: {len(runs)} runs")
    by_state: dict[str, list[Run]] = {}
    for run, state in states.items():
        by_state.setdefault(state, []).append(run)
    for column in ("arm", *(f"seeds: {state}" for state in by_state)):
        table.add_column(column)
    for column in ("rollouts", "samples", "optimizer steps"):
        table.add_column(column, justify="right")
    for arm in dict.fromkeys(run.arm for run in runs):
        load = workloads[arm]
        seeds = (" ".join(str(run.seed) for run in group if run.arm == arm) for group in by_state.values())
        budget = (f"{count:,}" for count in (load.rollouts, load.samples, load.optimizer_steps))
        table.add_row(arm, *seeds, *budget)
    console.print(table)
    totals = [workloads[run.arm] for run in runs]
    console.print(
        f"in all {sum(load.rollouts for load in totals):,} rollouts, {sum(load.samples for load in totals):,} samples",
    )
    command = f"{PROGRAM} {shlex.join(comparison.fit_arguments(runs[0]))}"
    console.print(f"{runs[0]} by hand: {command}", soft_wrap=True)


def measure(comparison: Comparison, run: Run) -> tuple[Costs, float]:
    """Measure the seconds of a run's parts and of its start, by a fit of one rollout in a folder that is then removed.

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
        except Interrupted as interrupt:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise Interrupted(interrupt.signum, "Interrupted while measuring; nothing is left behind.") from None
        seconds = time.perf_counter() - begun
        state = read_run_state(trial.folder)
        costs = Costs.of(state or RunState())
        if code or state is None or costs is None:
            raise ConfigError(f"the trial rollout of {run.arm} failed:\n{last_lines(scratch / OUTPUT)}")
        return costs, seconds - state.wall_seconds
    finally:
        shutil.rmtree(scratch)
