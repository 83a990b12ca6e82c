"""What a long run holds: memory, open files, threads, and what it leaves on the disk, over thousands of rollouts.

``python benchmarks/soak.py --rollouts 2000 --folder /tmp/soak``

It runs ``fit`` on the quickstart, with few prompts a rollout so that it ends within the hour, and notes every few
rollouts what the process holds (``soak.jsonl`` in the run's folder, a line each, whatever ends it). Then it prints the
table and says whether memory stays within 2 % after the first 100 rollouts. Status 1 if it does not, or if an open file
or a thread is left over.

Three measures tell a leak from an allocator that keeps what it was given back, and none of them disturbs the run:

- *memory*: the process's own pages (RssAnon), which are what the system feels;
- *in use*: what malloc has given out and not got back (``mallinfo2``), tensors above all;
- *blocks*: what Python's own allocator has given out.

    --every N           rollouts between two lines
    --prompts B         a rollout, and --group_size G completions of each; the quickstart has 16 × 16
    --val_size N        questions of an evaluation, every 12 rollouts; the quickstart has 256
    ...                 anything else goes to ``fit``, --config lora say
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import shutil
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it runs from a checkout

from lightning.pytorch import Callback, LightningModule, Trainer

from rlvr_pl.main import main as rlvr_pl
from rlvr_pl.run.place import run_folder

WARM = 100  # rollouts, after which caches are as large as they get
LIMIT = 0.02
LINES = "soak.jsonl"
KINDS = {  # what a run's folder holds, by what it is
    "events": "events.out.tfevents.*",
    "checkpoints": "checkpoints/*",
    "evaluations": "evaluations/*",
    "run.json": "run.json",
}


class Watch(Callback):
    """Notes every few rollouts what the process holds."""

    def __init__(self, every: int = 10) -> None:
        self.every = every
        self.start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        folder = run_folder(trainer)
        if (batch_idx + 1) % self.every or folder is None:
            return
        line: dict[str, float] = {
            "rollout": batch_idx + 1,
            "seconds": time.perf_counter() - self.start,
            "memory": own_memory(),
            "in use": malloc_in_use(),
            "blocks": sys.getallocatedblocks(),
            "files": len(os.listdir("/proc/self/fd")) - 1,  # without that of the list itself
            "threads": len(os.listdir("/proc/self/task")),
        }
        for kind, pattern in KINDS.items():
            line[kind] = sum(file.stat().st_size for file in folder.glob(pattern))
        with (folder / LINES).open("a") as file:
            file.write(json.dumps(line) + "\n")


def own_memory() -> int:
    """Bytes of this process's own pages, without those of files and libraries."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon:")]
    return int(line.split()[1]) * 1024


class _Mallinfo2(ctypes.Structure):
    _NAMES = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    _fields_ = [(name, ctypes.c_size_t) for name in _NAMES]


_mallinfo2 = ctypes.CDLL("libc.so.6").mallinfo2
_mallinfo2.restype = _Mallinfo2


def malloc_in_use() -> int:
    """Bytes that glibc's malloc has given out, in all its arenas and in maps of their own."""
    info = _mallinfo2()
    return int(info.uordblks + info.hblkhd)


def table(lines: list[dict[str, float]]) -> str:
    rows = [
        "| rollouts | memory, MB | in use, MB | blocks | files | threads | events, kB | checkpoints, MB | "
        "evaluations, kB |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    shown = [line for line in lines if line["rollout"] in (10, 50, 100, 200) or line["rollout"] % 250 == 0]
    for line in shown if lines[-1] in shown else [*shown, lines[-1]]:
        rows.append(
            f"| {line['rollout']:,} | {line['memory'] / 1e6:.1f} | {line['in use'] / 1e6:.1f} | {line['blocks']:,} | "
            f"{line['files']} | {line['threads']} | {line['events'] / 1e3:,.0f} | {line['checkpoints'] / 1e6:.1f} | "
            f"{line['evaluations'] / 1e3:,.0f} |"
        )
    return "\n".join(rows)


def verdict(lines: list[dict[str, float]]) -> tuple[list[str], bool]:
    """Say what has grown after the first rollouts, and whether that is within the limits.

    The first tenth of the lines after ``WARM`` is compared with the last: the highest memory of each, since malloc
    keeps more or less of what was given back to it from one moment to the next, and the medians of all else.
    """
    warm = [line for line in lines if line["rollout"] >= WARM]
    if len(warm) < 2:
        return [f"too short to tell: fewer than two lines after {WARM} rollouts"], True
    part = max(1, len(warm) // 10)
    first, last = (
        {key: (max if key == "memory" else median)(line[key] for line in lines) for key in warm[0]}
        for lines in (warm[:part], warm[-part:])
    )
    rollouts = last["rollout"] - first["rollout"]
    texts, good = [], True
    for key in ("memory", "in use", "blocks"):
        growth = last[key] / first[key] - 1
        good &= growth < LIMIT
        unit = "" if key == "blocks" else " bytes"
        texts.append(f"{key}: {growth:+.2%} ({(last[key] - first[key]) / rollouts:+,.1f}{unit} a rollout)")
    for key in ("files", "threads"):
        good &= last[key] <= first[key]
        texts.append(f"{key}: {last[key] - first[key]:+.0f}")
    for key in KINDS:
        texts.append(f"{key}: {(last[key] - first[key]) / rollouts:+,.0f} bytes a rollout")
    return texts, good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=2000)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--group_size", type=int, default=16)
    parser.add_argument("--val_size", type=int, default=64)
    parser.add_argument("--folder", type=Path, required=True, help="of the run; what is there is removed")
    arguments, rest = parser.parse_known_args()
    shutil.rmtree(arguments.folder, ignore_errors=True)
    try:
        rlvr_pl(
            [
                "fit",
                "--config=quickstart",
                f"--run_dir={arguments.folder}",
                f"--data.prompts_per_rollout={arguments.prompts}",
                f"--data.val_size={arguments.val_size}",
                f"--data.max_rollouts={arguments.rollouts}",
                f"--model.group_size={arguments.group_size}",
                f"--model.minibatches_per_rollout={min(4, arguments.prompts)}",
                "--model.optimizer.lr=1e-4",
                "--report_test=false",
                f'--trainer.callbacks=[{{"class_path": "soak.Watch", "init_args": {{"every": {arguments.every}}}}}]',
                *rest,
            ]
        )
    finally:
        lines = [json.loads(line) for line in (arguments.folder / LINES).read_text().splitlines()]
        print(table(lines))
        texts, good = verdict(lines)
        print(f"after {WARM} rollouts: " + "; ".join(texts))
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
