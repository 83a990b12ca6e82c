"""Each step of a problem solved the right way and the wrong way."""

from __future__ import annotations

import pytest

from rlvr_pl.data.solutions import RIGHT, SLIPS, Step, Work, answer_text, solve

BEFORE = 40
WAYS = {  # step: the lines of the right way and of the slip, and what they come to, from 40
    Step("owns", (7,)): ([], 7, None, None),
    Step("owns_packs", (3, 12)): (["3*12=36"], 36, ["3+12=15"], 15),
    Step("buys", (5,)): (["40+5=45"], 45, None, None),
    Step("buys_packs", (3, 12)): (["3*12=36", "40+36=76"], 76, ["40+12=52"], 52),
    Step("gives", (5,)): (["40-5=35"], 35, ["40+5=45"], 45),
    Step("multiplies", (3,)): (["40*3=120"], 120, ["40+3=43"], 43),
    Step("halves"): (["40/2=20"], 20, ["40-2=38"], 38),
    Step("shares", (8,)): (["40/8=5"], 5, ["40-8=32"], 32),
    Step("count"): ([], 40, None, None),
    Step("price", (3,)): (["40*3=120"], 120, [], 40),
    Step("total", (5,)): (["40+5=45", "40+45=85"], 85, ["40+5=45"], 45),
}


@pytest.mark.parametrize("step", WAYS, ids=lambda step: step.kind)
def test_both_ways(step: Step) -> None:
    right_lines, right, slip_lines, slipped = WAYS[step]
    for solvers, lines, quantity in ((RIGHT, right_lines, right), (SLIPS, slip_lines, slipped)):
        assert (step.kind in solvers) == (lines is not None)
        if lines is not None:
            work = Work(BEFORE)
            assert solvers[step.kind](work, *step.numbers) == quantity
            assert work.lines == lines


def test_every_step_has_been_tried() -> None:
    assert {step.kind for step in WAYS} == set(RIGHT)
    assert set(SLIPS) < set(RIGHT)


def test_what_follows_a_slip_goes_on_from_it() -> None:
    steps = [Step("owns_packs", (3, 12)), Step("gives", (6,)), Step("halves"), Step("price", (2,))]
    assert answer_text(solve(steps)) == "3*12=36\n36-6=30\n30/2=15\n15*2=30\n#### 30"
    assert answer_text(solve(steps, {0})) == "3+12=15\n15-6=9\n9/2=4\n4*2=8\n#### 8"
    assert answer_text(solve(steps, {1, 3})) == "3*12=36\n36+6=42\n42/2=21\n#### 21"
