"""``python -m rlvr_pl plan``: what a run needs, before it has a GPU."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from rlvr_pl.cli import CommandParser, resolve
from rlvr_pl.memory import MemoryEstimate
from rlvr_pl.plan.advice import RESERVED, advise
from rlvr_pl.plan.settings import PlannedRun
from rlvr_pl.plan.storage import count_storage
from rlvr_pl.plan.work import Device, Lengths, count_work, estimate_seconds, tokens
from rlvr_pl.types import ConfigError

GB = 1e9


def make_parser() -> CommandParser:
    """Make the parser of what is not ``fit``'s."""
    parser = CommandParser("plan")
    parser.usage = f"{parser.prog} --config FILE [--KEY VALUE ...] [--memory GB] [--tflops N --bandwidth GB/s]"
    parser.epilog = "Everything else is as fit takes it. No weights are loaded, and of a hub id only its config.json."
    parser.add_argument("--memory", type=_positive, metavar="GB", help="of a device; say what to change to fit in it")
    parser.add_argument(
        "--tflops", type=_positive, metavar="N", help="a device's peak in the run's precision, in 10¹²/s"
    )
    parser.add_argument(
        "--utilization", type=_positive, default=0.3, metavar="SHARE", help="of the peak that is reached (default: 0.3)"
    )
    parser.add_argument("--bandwidth", type=_positive, metavar="GB/s", help="of the device's memory")
    parser.add_argument("--prompt_tokens", type=int, metavar="N", help="mean, for work and time (default: the longest)")
    parser.add_argument("--completion_tokens", type=int, metavar="N", help="the same of completions")
    return parser


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value


def plan_command(arguments: Sequence[str]) -> None:
    """Run ``plan`` with these arguments.

    Raises:
        ConfigError: if fit would refuse the configuration, or it cannot be planned.
    """
    asked, of_fit = make_parser().parse_known_args(arguments)
    if (asked.tflops is None) != (asked.bandwidth is None):
        raise ConfigError("a time needs both --tflops and --bandwidth")
    if asked.utilization > 1:
        raise ConfigError(f"--utilization is {asked.utilization}; it is a share of the peak, at most 1")
    run = PlannedRun.read(resolve(["fit", *of_fit]))
    lengths = Lengths(
        _length("prompt_tokens", asked.prompt_tokens, run.prompt_tokens),
        _length("completion_tokens", asked.completion_tokens, run.completion_tokens),
    )
    device = None
    if asked.tflops is not None:
        device = Device(asked.tflops * 1e12 * asked.utilization, asked.bandwidth * GB)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    print_run(run, console)
    memory = run.memory()
    print_memory(memory, console)
    print_storage(run, console)
    print_work(run, lengths, device, console)
    if asked.memory is not None:
        print_fit(run, memory, asked.memory, console)


def _length(name: str, given: int | None, longest: int) -> int:
    if given is None:
        return longest
    if not 1 <= given <= longest:
        raise ConfigError(f"--{name} is {given}; it must be from 1 to the longest, {longest}")
    return given


def print_run(run: PlannedRun, console: Console) -> None:
    """Print what is planned."""
    count = run.body + run.head
    weights = f"{count / 1e9:.2f} billion" if count >= 1e8 else f"{count / 1e6:.1f} million"
    shape = f"{type(run.policy).__name__}, {weights} weights in its products"
    adapter = f"; an adapter of {run.adapter / 1e6:.1f} million learns" if run.lora is not None else ""
    parts = ", each with its part of the policy" if run.sharded else ""
    console.print(f"{shape}{adapter}. {run.precision}, devices: {run.devices}{parts}")


def print_memory(memory: MemoryEstimate, console: Console) -> None:
    """Print the parts of a device's memory in the two phases of a training step."""
    table = Table("a device's memory", "rollout", "update")
    for column in table.columns[1:]:
        column.justify = "right"
    phases = (memory.rollout, memory.update)
    for part in dict.fromkeys([*memory.rollout, *memory.update]):
        table.add_row(part, *(size(phase[part]) if part in phase else "" for phase in phases))
    table.add_section()
    table.add_row("sum", *(size(sum(phase.values())) for phase in phases))
    console.print(table)
    console.print(
        f"peak: {size(memory.peak)}, with the longest sequences; leave {size(RESERVED)} for the device's libraries and "
        "for gaps. Logits are held a few hundred positions at a time."
    )


def size(count: float) -> str:
    """Write a number of bytes: ``12.3 GB``, or ``45.6 MB`` where it is less than one."""
    return f"{count / GB:.1f} GB" if count >= GB else f"{count / 1e6:.1f} MB"


def print_storage(run: PlannedRun, console: Console) -> None:
    """Print files and the host's memory."""
    storage = count_storage(run)
    console.print(
        f"disk: {size(storage.disk)} at most, for checkpoints of {size(storage.checkpoint)} (the last, the one "
        f"before it, the best and one that is being written) and {size(storage.exported)} of exported model"
    )
    console.print(
        f"host memory beside the libraries': {size(storage.loading)} to load the policy, {size(storage.saving)} to "
        f"save a checkpoint, {size(storage.resuming)} to resume from one"
    )


def print_work(run: PlannedRun, lengths: Lengths, device: Device | None, console: Console) -> None:
    """Print tokens, operations and, where the device is known, time of a rollout."""
    of_prompts, of_completions = tokens(run, lengths)
    work = count_work(run, lengths)
    console.print(
        f"a rollout: {run.prompts_per_rollout} prompts × {run.group_size} completions: {of_prompts:,} prompt tokens, "
        f"{of_completions:,} completion tokens ({lengths.prompt} and {lengths.completion} each); "
        f"{work.total / 1e12:,.4g} TFLOP: {work.prefill / 1e12:,.4g} prefill, {work.decode / 1e12:,.4g} decode, "
        f"{work.old_policy / 1e12:,.4g} old and {work.reference / 1e12:,.4g} reference log-probabilities, "
        f"{work.update / 1e12:,.4g} update"
    )
    if device is None:
        return
    seconds = estimate_seconds(run, lengths, device)
    console.print(
        f"at {device.flops / 1e12:,.4g} TFLOP/s reached and {device.bandwidth / GB:,.4g} GB/s: {seconds.total:,.3g} s a"
        f" rollout: {seconds.prefill:,.3g} prefill, {seconds.decode:,.3g} decode, {seconds.scoring:,.3g} scoring, "
        f"{seconds.update:,.3g} update, {seconds.optimizer:,.3g} optimizer; {run.max_rollouts} rollouts take "
        f"{run.max_rollouts * seconds.total / 3600:,.3g} h, without evaluations and checkpoints"
    )


def print_fit(run: PlannedRun, memory: MemoryEstimate, gigabytes: float, console: Console) -> None:
    """Print whether the run fits, and what to change where it does not."""
    changes = advise(run, memory, gigabytes * GB)
    if not changes and memory.peak + RESERVED <= gigabytes * GB:
        console.print(f"It fits in {gigabytes:g} GB.")
        return
    console.print(f"It does not fit in {gigabytes:g} GB. Change, each with those above it:")
    for change in changes:
        console.print(f"  {change.setting}: {size(change.memory.peak)}")
    if changes:
        memory = changes[-1].memory
    if memory.peak + RESERVED > gigabytes * GB:
        console.print("Nothing is left to change that a plan knows of: use shorter sequences, or a smaller policy.")
