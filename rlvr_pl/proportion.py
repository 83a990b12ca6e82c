"""Intervals of a proportion, by Wilson's score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist, fmean

_Z = NormalDist().inv_cdf(0.975)


def wilson(p: float, k: float) -> tuple[float, float]:
    """Compute Wilson's score interval (low, high), within [0, 1].

    Args:
        p: the proportion that was seen.
        k: z²/n, for n independent observations and the quantile z.
    """
    half = math.sqrt(k * (p * (1 - p)) + k * k / 4) / (1 + k)
    middle = (p + k / 2) / (1 + k)
    return max(0.0, middle - half), min(1.0, middle + half)


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Compute the 95 % interval (low, high) of a mean over questions.

    Where each value is 0 or 1 it is Wilson's for so many observations. Where values lie between, as shares of several
    samples do, it is Wilson's with as many observations as have the variance of the values' mean.

    Args:
        values: one a question, in [0, 1]; at least one.
    """
    p, n = fmean(values), len(values)
    binomial = p * (1 - p)
    variance = fmean((value - p) ** 2 for value in values)
    return wilson(p, _Z**2 / n * (variance / binomial if binomial > 0 else 1.0))
