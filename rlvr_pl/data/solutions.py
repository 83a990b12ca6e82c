"""How a word problem is solved, step by step, and the typical slip of each step.

A step of a problem (``multiplies`` by 3) becomes a line or two of arithmetic (``40*3=120``). A slip is what someone
writes who does that step the wrong way, always the same (``40+3=43``), and goes on from there: the arithmetic of each
line is right, the solution is not.
"""

from __future__ import annotations

import operator as operators
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal

OPERATORS: dict[str, Callable[[int, int], int]] = {
    "+": operators.add,
    "-": operators.sub,
    "*": operators.mul,
    "/": operators.floordiv,
}


@dataclass
class Work:
    """Lines of arithmetic so far, and the quantity that they lead to."""

    quantity: int = 0
    lines: list[str] = field(default_factory=list)

    def compute(self, left: int, operator: Literal["+", "-", "*", "/"], right: int) -> int:
        """Append the line ``left operator right = result`` and return the result; a division drops its remainder."""
        result = OPERATORS[operator](left, right)
        self.lines.append(f"{left}{operator}{right}={result}")
        return result


@dataclass(frozen=True)
class Step:
    """One step of a problem."""

    kind: str  # a key of RIGHT
    numbers: tuple[int, ...] = ()  # that the question gives for it


def _adds_packs(work: Work, packs: int, each: int) -> int:
    return work.compute(work.quantity, "+", work.compute(packs, "*", each))


def _adds_other(work: Work, more: int) -> int:
    return work.compute(work.quantity, "+", work.compute(work.quantity, "+", more))


Solver = Callable[..., int]
"""From the work so far and the step's numbers to the next quantity."""

RIGHT: dict[str, Solver] = {
    "owns": lambda work, count: count,
    "owns_packs": lambda work, packs, each: work.compute(packs, "*", each),
    "buys": lambda work, count: work.compute(work.quantity, "+", count),
    "buys_packs": _adds_packs,
    "gives": lambda work, count: work.compute(work.quantity, "-", count),
    "multiplies": lambda work, factor: work.compute(work.quantity, "*", factor),
    "halves": lambda work: work.compute(work.quantity, "/", 2),
    "shares": lambda work, parts: work.compute(work.quantity, "/", parts),
    "count": lambda work: work.quantity,
    "price": lambda work, price: work.compute(work.quantity, "*", price),
    "total": _adds_other,
}
SLIPS: dict[str, Solver] = {
    "owns_packs": lambda work, packs, each: work.compute(packs, "+", each),  # adds where it should multiply
    "buys_packs": lambda work, packs, each: work.compute(work.quantity, "+", each),  # forgets how many packs
    "gives": lambda work, count: work.compute(work.quantity, "+", count),  # adds what is given away
    "multiplies": lambda work, factor: work.compute(work.quantity, "+", factor),  # takes "times" for "more"
    "halves": lambda work: work.compute(work.quantity, "-", 2),  # subtracts two for half
    "shares": lambda work, parts: work.compute(work.quantity, "-", parts),  # subtracts the piles
    "price": lambda work, price: work.quantity,  # stops at the count
    "total": lambda work, more: work.compute(work.quantity, "+", more),  # stops at the other one's
}


def solve(steps: Sequence[Step], slipped: Collection[int] = ()) -> Work:
    """Solve a problem.

    Args:
        steps: of the problem, in order.
        slipped: which of them, by number, are done the wrong way.
    """
    work = Work()
    for i, step in enumerate(steps):
        solver = (SLIPS if i in slipped else RIGHT)[step.kind]
        work.quantity = solver(work, *step.numbers)
    return work


def answer_text(work: Work) -> str:
    """Write a solution as GSM8K has it: its lines, and the result behind ``####``."""
    return "\n".join([*work.lines, f"#### {work.quantity}"])
