"""Time the answer extraction and the reward functions: ``python benchmarks/rewards.py``.

Prints the median CPU time of a call, in microseconds, on 4 KB texts of several kinds, and exits with 1 where one
exceeds the limit. A rollout of a thousand completions is then scored in a fraction of a second.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it runs from a checkout

from rlvr_pl.rewards import Completion, correctness, last_number, strict_format, tag_format, tagged_answer
from rlvr_pl.verifiers.number import MAX_LENGTH

SIZE = 4096  # characters
LIMIT = 100.0  # microseconds
REPEATS = 21
CALLS = 50

STEP = "She sells 16 - 3 - 4 = 9 eggs, so she makes 9 * $2 = $18 every day. "
TAGGED_END = "</reasoning>\n<answer>\n18\n</answer>\n"

TEXTS = {
    "tagged": "<reasoning>\n" + (STEP * SIZE)[: SIZE - 12 - len(TAGGED_END)] + TAGGED_END,
    "plain": ("no digit and no tag in this text, " * SIZE)[:SIZE],
    "digits": "1" * SIZE,
    "longest answer": "<answer>"
    + ("a-wörd a " * SIZE)[: MAX_LENGTH - 3]
    + " 18</answer>"
    + "x" * (SIZE - MAX_LENGTH - 17),
    "joined numbers": "1e1/1," * (SIZE // 6),
    "numbers": ("1,234.5e6/7 " * SIZE)[:SIZE],
    "tag soup": ("<answer><reasoning></answer>1</reasoning>" * SIZE)[:SIZE],
    "commas": "," * SIZE,
    "unicode": ("数は１８です。😀½ " * SIZE)[:SIZE],
}


def completion(text: str) -> Completion:
    return Completion(text=text, question="", gold="1,234", tokens=1024, truncated=False)


FUNCTIONS: dict[str, Callable[[str], object]] = {
    "tagged_answer": tagged_answer,
    "last_number": last_number,
    "correctness": lambda text: correctness(completion(text)),
    "tag_format": lambda text: tag_format(completion(text)),
    "strict_format": lambda text: strict_format(completion(text)),
}


def microseconds(function: Callable[[str], object], text: str) -> float:
    """The median over ``REPEATS`` of the mean CPU time of ``CALLS`` calls."""
    times = []
    for _ in range(REPEATS):
        start = time.thread_time()
        for _ in range(CALLS):
            function(text)
        times.append((time.thread_time() - start) / CALLS * 1e6)
    return median(times)


def main() -> int:
    print(f"{f'us per call, {SIZE} characters':28}" + "".join(f"{name:>15}" for name in FUNCTIONS))
    slowest = 0.0
    for kind, text in TEXTS.items():
        times = [microseconds(function, text) for function in FUNCTIONS.values()]
        slowest = max(slowest, *times)
        print(f"{kind:28}" + "".join(f"{t:15.1f}" for t in times))
    print(f"slowest {slowest:.1f} us, limit {LIMIT:.0f} us")
    return int(slowest > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
