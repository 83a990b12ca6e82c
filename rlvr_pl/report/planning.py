"""How many seeds and questions a comparison takes to find a difference, by how much an earlier one varied.

The statistics are those that the report will use: with S seeds and Q questions the difference of two arms has the
variance σ²_seed/S + σ²_question/Q + σ²_rest/(SQ), and is found where its simultaneous interval leaves 0 out.
"""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
from scipy import special, stats

from rlvr_pl.report.outcomes import Outcomes
from rlvr_pl.report.two_way import ALPHA, Components, Mean, components, t_quantile

POWER = 0.8
MOST_SEEDS = 100
_SHARES = 1000


def pilot_components(outcomes: Outcomes, metric: str = "strict") -> Components | None:
    """Estimate the components of a pilot's differences: the mean over its pairs of arms, whatever the differences are.

    Returns:
        None if no two of its arms have finished the same two seeds.
    """
    found = []
    for a, b in combinations(outcomes.arms, 2):
        if len(outcomes.common_seeds(a, b)) > 1 and len(outcomes.golds) > 1:
            of_a, of_b = outcomes.paired(a, b, metric)
            found.append(components(of_a - of_b))
    if not found:
        return None
    return Components(*(float(np.mean([getattr(c, part) for c in found])) for part in ("seed", "question", "rest")))


def power(difference: float, seeds: int, questions: int, parts: Components, pairs: int = 1) -> float:
    """Compute the probability that a true difference is found.

    Args:
        difference: in 0…1.
        seeds: of each arm, at least 2.
        questions: that each run answers, at least 2.
        parts: of the difference's variance; some of it above 0.
        pairs: of arms that are compared with each other.
    """
    of_seeds = parts.seed / seeds + parts.rest / (seeds * questions)
    mean = Mean(difference, of_seeds, parts.question / questions, seeds - 1, questions - 1)
    error, quantile = math.sqrt(mean.variance), t_quantile(mean.df, ALPHA / pairs)
    # Over the error's own distribution, in equal shares: SciPy's non-central t has no value far from 0.
    shares = (np.arange(_SHARES) + 0.5) / _SHARES
    bounds = quantile * np.sqrt(stats.chi2.ppf(shares, mean.df) / mean.df)
    found = special.ndtr(difference / error - bounds) + special.ndtr(-difference / error - bounds)
    return float(found.mean())


def seeds_needed(difference: float, questions: int, parts: Components, pairs: int = 1) -> int | None:
    """Find the fewest seeds of each arm that find a difference with a probability of 80 %; None if 100 are too few."""
    counts = range(2, MOST_SEEDS + 1)
    return next((S for S in counts if power(difference, S, questions, parts, pairs) >= POWER), None)
