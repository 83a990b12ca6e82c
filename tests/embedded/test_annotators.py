"""The corpus's slips, at their rates, and how they are read from what a model writes."""

from __future__ import annotations

import random
from collections import Counter

from rlvr_pl.data.problems import draw_problem
from rlvr_pl.data.solutions import SLIPS, Step, solve
from rlvr_pl.embedded.annotators import SLIP_RATES, annotate, read_steps

STEPS = [Step("owns_packs", (3, 12)), Step("buys", (4,)), Step("halves"), Step("price", (2,))]


def test_every_slip_has_a_rate() -> None:
    assert set(SLIP_RATES) == set(SLIPS)
    assert sum(0.05 <= 1 - rate <= 0.2 for rate in SLIP_RATES.values()) == 2  # rare, and there to be explored


def test_slips_come_at_their_rates_and_are_read_from_the_lines() -> None:
    rng = random.Random(0)
    seen: Counter[tuple[str, str]] = Counter()
    for _ in range(6000):
        problem = draw_problem(rng)
        seen.update(read_steps(problem.steps, "\n".join(annotate(problem.steps, rng).lines)))
    assert not [kind for kind, how in seen if how == "other"]
    assert seen["buys", "slip"] == 0 < seen["buys", "right"]
    for kind, rate in SLIP_RATES.items():
        count = seen[kind, "slip"] + seen[kind, "right"]
        assert count > 800
        # A step that reads alike both ways (a division that a remainder makes 40-2 of, 2+2 and 2*2) is read as right.
        assert abs(seen[kind, "slip"] / count - rate) < 0.06, kind


def test_a_solution_is_read_up_to_its_first_error() -> None:
    right = "3*12=36\n36+4=40\n40/2=20\n20*2=40"
    assert "\n".join(solve(STEPS).lines) == right
    kinds = [step.kind for step in STEPS]
    assert read_steps(STEPS, f"<reasoning>\n {right}\n</reasoning>") == [(kind, "right") for kind in kinds]
    slips = "\n".join(solve(STEPS, {0, 2, 3}).lines)
    assert [how for _, how in read_steps(STEPS, slips)] == ["slip", "right", "slip", "slip"]
    assert read_steps(STEPS, "3*12=36\n36+4=41\n41/2=20") == [("owns_packs", "right"), ("buys", "other")]
    assert read_steps(STEPS, right.replace("20*2=40", "20*2=41"))[-1] == (
        "price",
        "other",
    )  # not the slip, which ends at 20
    assert read_steps(STEPS, f"{right}\n40+1=41")[-1] == ("price", "other")
    assert read_steps(STEPS, "The answer is 4.") == [("owns_packs", "other")]
