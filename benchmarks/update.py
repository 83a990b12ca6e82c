"""How an update scales, and what it holds (``pip install -r benchmarks/requirements.txt`` first).

*Scaling*: microseconds for a distinct token (each prompt once, no pads) from 8 to 512 completions, by turns.

*Memory*: the peak of a process that makes a policy and takes two optimizer steps, less what it held before; ours and
TRL's, each in a process of its own, with 151,936 tokens in the vocabulary.

    --rounds N        of the scaling
    --only NAME       scaling or memory
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import tempfile
import warnings
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table
from step import CASES, TRL, Case, Ours, embedded, medium, replay_of

MEMORY_CASE = CASES[-1]


def scaling(rounds: int, console: Console) -> None:
    table = Table(
        "policy", "completions", "lengths", "distinct tokens", "µs a token", "of the cheapest", title="Scaling"
    )
    for name, policy in (("embedded", embedded), ("26M", medium)):
        for realistic in (False, True):
            engines = []
            for prompts, group in ((1, 8), (4, 8), (8, 16), (32, 16)):
                if name == "26M" and prompts > 8:
                    continue  # minutes a round
                case = Case("", policy, prompts, group, prompt_tokens=150, realistic=realistic)
                engines.append(Ours(case, replay_of(case, policy().config.vocab_size)))
            costs: list[list[float]] = [[] for _ in engines]
            for _ in range(rounds + 1):
                for engine, cost in zip(engines, costs, strict=True):
                    cost.append(engine.update() / distinct_tokens(engine))
            medians = [median(cost[1:]) for cost in costs]
            for engine, cost in zip(engines, medians, strict=True):
                count = engine.case.prompts * engine.case.group
                lengths = "realistic" if realistic else "fixed"
                ratio = f"{cost / min(medians):.2f}"
                table.add_row(name, str(count), lengths, f"{distinct_tokens(engine):,}", f"{cost * 1e6:.0f}", ratio)
    console.print(table)


def distinct_tokens(engine: Ours) -> int:
    return sum(map(len, engine.replay.prompts)) + sum(map(len, engine.replay.completions))


def memory(console: Console) -> None:
    table = Table("who", "peak, GB", "of ours", title=f"Memory, {MEMORY_CASE.name}")
    context = multiprocessing.get_context("spawn")
    peaks: dict[str, int] = {}
    for who in ("rlvr_pl", "TRL", "TRL, tuned"):
        with context.Pool(1) as pool:
            peaks[who] = pool.apply(peak_of, (who,))
        table.add_row(who, f"{peaks[who] / 1e9:.2f}", f"{peaks[who] / peaks['rlvr_pl']:.2f}")
    console.print(table)


def peak_of(who: str) -> int:
    """Bytes, in this process, which has done nothing before."""
    quiet()
    case = MEMORY_CASE
    replay = replay_of(case, case.policy().config.vocab_size)
    with tempfile.TemporaryDirectory() as folder:
        if who == "rlvr_pl":
            before = held("VmRSS")
            engine: Ours | TRL = Ours(case, replay)
        else:
            import trl  # noqa: F401  # its code is not its memory

            before = held("VmRSS")
            rows = case.prompts * case.group
            engine = TRL(case, replay, rows, who == "TRL, tuned", Path(folder))
        for _ in range(2):
            engine.update()
        return held("VmHWM") - before


def held(field: str) -> int:
    """A line of the kernel's account of this process, in bytes."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{field}:")]
    return int(line.split()[1]) * 1024


def quiet() -> None:
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=["scaling", "memory"])
    arguments = parser.parse_args()
    quiet()
    console = Console(width=120)
    if arguments.only != "memory":
        scaling(arguments.rounds, console)
    if arguments.only != "scaling":
        memory(console)


if __name__ == "__main__":
    main()
