"""Those who wrote the embedded model's corpus: each step of a problem has a slip that they are prone to.

The model imitates them, so each slip has its own rate in its samples; a verifier's reward has each to unlearn. Slips
multiply along a problem: while one prevails, those behind it hardly matter, so that there is more to learn once it is
gone. Some are so common that the right way is rare, and has to be explored.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal

from rlvr_pl.data.solutions import RIGHT, SLIPS, Solver, Step, Work, solve

SLIP_RATES = {
    "gives": 0.30,
    "owns_packs": 0.40,
    "total": 0.50,
    "buys_packs": 0.55,
    "multiplies": 0.60,
    "halves": 0.70,
    "price": 0.85,
    "shares": 0.85,
}
"""The share of such steps that are done the wrong way."""

Done = Literal["right", "slip", "other"]
_WAYS: dict[Done, dict[str, Solver]] = {"right": RIGHT, "slip": SLIPS}


def annotate(steps: Sequence[Step], rng: random.Random) -> Work:
    """Solve a problem as one of them does, who begins again where less than nothing would be left."""
    while True:
        work = solve(steps, [i for i, step in enumerate(steps) if rng.random() < SLIP_RATES.get(step.kind, 0)])
        if not any("=-" in line or line.endswith("=0") for line in work.lines):
            return work


def read_steps(steps: Sequence[Step], completion: str) -> list[tuple[str, Done]]:
    """Read from a completion how each step was done, up to the first that is neither way.

    Args:
        steps: of the problem.
        completion: as the model has written it; its lines with an equals sign are its arithmetic.

    Returns:
        The steps' kinds and how they were done; those without a line either way are passed over.
    """
    lines = [line.strip() for line in completion.splitlines() if "=" in line]
    written = Work()
    done: list[tuple[str, Done]] = []
    for step in steps:
        ways: dict[Done, Work] = {}
        for how, solvers in _WAYS.items():
            if step.kind in solvers:
                ways[how] = Work(written.quantity, list(written.lines))
                ways[how].quantity = solvers[step.kind](ways[how], *step.numbers)
        # The one with more lines is looked for first: stopping at the count is what is left where there is no price.
        fits = [how for how, way in ways.items() if way.lines == lines[: len(way.lines)]]
        fits.sort(key=lambda how: -len(ways[how].lines))
        if not fits:
            return [*done, (step.kind, "other")]
        if any(len(way.lines) > len(written.lines) for way in ways.values()):
            done.append((step.kind, fits[0]))
        written = ways[fits[0]]
    if done and len(written.lines) < len(lines):  # the last one was gone about, and not so
        done[-1] = (done[-1][0], "other")
    return done
