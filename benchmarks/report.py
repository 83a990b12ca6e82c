"""Time the report: ``python benchmarks/report.py``.

Simulates 3 arms × 5 seeds with 10 evaluations of 1,319 questions each and 350 rollouts, then loads and reports them in
a process of its own. Prints seconds and peak memory, and exits with 1 where one exceeds the limit.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # so that it runs from a checkout

SECONDS, MEGABYTES = 30.0, 1024.0
QUESTIONS = 1319
ROLLOUTS, EVERY = 350, 50  # 8 evaluations on val and 2 on test
STEP = "She sells 16 - 3 - 4 = 9 eggs, so she makes 9 * $2 = $18 every day.\n"
TEXT = f"<reasoning>\n{STEP * 14}</reasoning>\n<answer>\n{{0}}\n</answer>\n"  # about 300 tokens


def simulate(folder: Path) -> None:
    from tests.helpers.studies import write_study

    finals = {"GSPO": 0.79, "GRPO": 0.78, "DrGRPO": 0.76}
    write_study(
        folder,
        {arm: {"initial": 0.6, "final": final} for arm, final in finals.items()},
        questions=QUESTIONS,
        val_questions=QUESTIONS,
        rollouts=ROLLOUTS,
        val_every=EVERY,
        text=TEXT,
    )


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        simulate(folder)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        records = len(list(folder.rglob("*.jsonl"))) * QUESTIONS
        print(f"{len(list(folder.glob('*/seed_*')))} runs, {records:,} records, {size / 1e6:.0f} MB on disk")
        program = "import sys; from pathlib import Path; from rlvr_pl.report.page import write_report; "
        program += "write_report(Path(sys.argv[1]))"
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", program, str(folder)], check=True, cwd=ROOT)
        seconds = time.perf_counter() - start
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    megabytes, busy = used.ru_maxrss / 1024, used.ru_utime + used.ru_stime
    print(
        f"{seconds:.1f} s, limit {SECONDS:.0f} s ({busy:.1f} s of CPU time, which other work does not stretch); "
        f"peak memory {megabytes:.0f} MB, limit {MEGABYTES:.0f} MB"
    )
    return int(seconds > SECONDS or megabytes > MEGABYTES)


if __name__ == "__main__":
    sys.exit(main())
