"""Intervals of a proportion."""

from __future__ import annotations

import pytest

from rlvr_pl.proportion import mean_interval


@pytest.mark.parametrize(
    ("right", "questions", "low", "high"),
    [  # Wilson 1927; the values are those of R's prop.test(correct = FALSE)
        (8, 10, 0.4901625, 0.9433178),
        (0, 10, 0.0, 0.2775328),
        (10, 10, 0.7224672, 1.0),
        (970, 1319, 0.7109298, 0.7584916),
    ],
)
def test_right_and_wrong_have_wilsons_interval(right: int, questions: int, low: float, high: float) -> None:
    interval = mean_interval([1.0] * right + [0.0] * (questions - right))
    assert interval == pytest.approx((low, high), abs=2e-5)


def test_shares_of_samples_have_a_narrower_one() -> None:
    """Four samples a question that agree no more than chance are as good as four times the questions."""
    shares = [c / 4 for c, times in ((0, 1), (1, 4), (2, 6), (3, 4), (4, 1)) for _ in range(times)]
    single = mean_interval([0.0] * 32 + [1.0] * 32)
    assert mean_interval(shares) == pytest.approx(single, abs=1e-12)
    assert mean_interval([0.5] * 16) == pytest.approx((0.5, 0.5))
