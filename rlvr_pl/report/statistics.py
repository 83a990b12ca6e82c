"""The statistics of a comparison: arrays in, named results out.

Shapes: S seeds (runs of an arm), Q questions, K evaluations along a run. ``correct`` is (S, Q) in [0, 1], the share of
a question's samples that one run got right. Accuracies and differences are in 0…1; intervals are at 95 %.

**What is estimated.** Means over new seeds *and* new questions: :mod:`rlvr_pl.report.two_way`.

**Several pairs.** The verdict stands on simultaneous intervals: with m pairs at 1 − α/m each (Bonferroni), and p-values
times m. Holm's steps would find more, but have no intervals that agree with them; Tukey's range, 2 % narrower for three
arms, wants one variance for all pairs, which arms that share questions and seeds do not have.

**No percentile bootstrap**, for it covers too much or too little: resampling S seeds shows (S − 1)/S of their variance
and knows no t quantile; resampling both factors at once counts the rest thrice (Owen 2007, the pigeonhole bootstrap),
and resampling questions within each seed forgets that all runs share them. Coverage of no difference in 2,000 studies
as in ``tests/report/test_statistics.py``, S = 3 / 5 / 10, Q = 512; the last line is ``compare_pair``:

                               seeds ±3 points      seeds ±1, arms differ    seeds alike
                                                    on single questions
    seeds × questions          .865 / .906 / .940   .970 / .972 / .970       .997 / .998 / 1.00
    questions within seeds     .825 / .889 / .927   .903 / .891 / .826       .982 / .985 / .991
    here                       .950 / .952 / .953   .959 / .965 / .951       .954 / .955 / .957
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

from rlvr_pl.report.two_way import ALPHA, Array, Clusters, Estimate, Mean, t_quantile, two_way_mean


@dataclass(frozen=True)
class PairedComparison:
    """Arm a against arm b."""

    difference: Estimate  # mean(a) − mean(b), over new seeds and new questions
    simultaneous: Estimate  # the same, with an interval that holds together with those of the other pairs
    p_value: float  # two-sided, of no difference
    corrected_p_value: float  # for the other pairs; under .05 just where 0 is outside the simultaneous interval
    probability_of_improvement: Estimate  # that a new run of a beats a new run of b on these questions


@dataclass(frozen=True)
class GainSplit:
    """A gain in strict accuracy by where it comes from: total = reasoning + format."""

    total: Estimate  # strict: right, and in the answer tags
    reasoning: Estimate  # flexible: right, wherever the number stands
    format: Estimate  # strict − flexible


@dataclass(frozen=True)
class BudgetToReach:
    """What it took to reach an accuracy, in the units of the budget."""

    runs: tuple[float, ...]  # per run; NaN where it never did
    reached: int  # runs that did
    median: float  # over runs, one that never did counting as worse than any; NaN unless more than half did


def _matrix(values: ArrayLike) -> Array:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 2 or x.size == 0:
        raise ValueError(f"expected a row per seed, and neither axis empty; got shape {x.shape}")
    return x


def _pair(a: ArrayLike, b: ArrayLike) -> tuple[Array, Array]:
    x, y = _matrix(a), _matrix(b)
    if x.shape != y.shape:
        raise ValueError(f"pairs need the same seeds and questions on both sides; got shapes {x.shape} and {y.shape}")
    return x, y


def mean_accuracy(correct: ArrayLike, clusters: Clusters = None) -> Estimate:
    """Estimate the mean over seeds and questions.

    Args:
        correct: (S, Q).
        clusters: (Q,), of questions that belong together.
    """
    return two_way_mean(_matrix(correct), clusters).proportion_interval()


def interquartile_mean(correct: ArrayLike, resamples: int = 2000, seed: int = 0, clusters: Clusters = None) -> Estimate:
    """Estimate the mean of the middle half of the runs' accuracies (Agarwal et al. 2021, arXiv 2108.13264).

    A run that collapsed does not drag it down. With fewer than four runs none is trimmed, and it is ``mean_accuracy``.

    Agarwal et al. pool the scores of all runs and tasks. Single answers are 0 or 1, and the middle half of those is a
    distorted accuracy (0.71 becomes (0.71 − 0.25)/0.5 = 0.92), so a run's accuracy is the score here.

    The seeds' part of the variance is bootstrapped over runs (Efron & Tibshirani 1993) and goes with t quantiles; the
    questions' part is the mean's, since a question moves all runs alike.

    Args:
        correct: (S, Q).
        resamples: bootstrap samples.
        seed: of the bootstrap.
        clusters: (Q,), of questions that belong together.
    """
    x = _matrix(correct)
    runs, mean = x.mean(axis=1), two_way_mean(x, clusters)
    S = len(runs)
    if S < 4:
        return mean.proportion_interval()
    draws = np.random.default_rng(seed).integers(S, size=(resamples, S))
    of_seeds = float(stats.trim_mean(runs[draws], 0.25, axis=1).var())
    return replace(mean, value=float(stats.trim_mean(runs, 0.25)), of_seeds=of_seeds).proportion_interval()


def gain(initial: ArrayLike, final: ArrayLike, clusters: Clusters = None) -> Estimate:
    """Estimate the mean of final − initial, paired over seeds and questions.

    Near 0 and 1 a symmetric interval covers too little, and may leave [−1, 1]. This one is put together from the score
    intervals [l, u] of the two accuracies and their correlation φ (Newcombe 1998, Statistics in Medicine 17, method 10
    for paired proportions; the lower end, and the upper one likewise)::

        low = d − √[(p₁ − l₁)² − 2φ (p₁ − l₁)(u₀ − p₀) + (u₀ − p₀)²]

    Args:
        initial: (S, Q).
        final: (S, Q), of the same runs and questions.
        clusters: (Q,), of questions that belong together.
    """
    before, after = _pair(initial, final)
    difference, p0, p1 = (two_way_mean(x, clusters) for x in (after - before, before, after))
    if math.isnan(difference.variance):
        return difference.interval()
    product = math.sqrt(p0.variance * p1.variance)
    correlation = (p0.variance + p1.variance - difference.variance) / (2 * product) if product > 0 else 0.0
    correlation = min(1.0, max(-1.0, correlation))
    old, new = (mean.proportion_interval(difference.df) for mean in (p0, p1))

    def distance(of_new: float, of_old: float) -> float:
        return math.sqrt(max(0.0, of_new**2 - 2 * correlation * of_new * of_old + of_old**2))

    low = difference.value - distance(new.value - new.low, old.high - old.value)
    high = difference.value + distance(new.high - new.value, old.value - old.low)
    return Estimate(difference.value, max(-1.0, low), min(1.0, high))


def format_and_reasoning(
    strict_initial: ArrayLike,
    flexible_initial: ArrayLike,
    strict_final: ArrayLike,
    flexible_final: ArrayLike,
    clusters: Clusters = None,
) -> GainSplit:
    """Split a gain: Δstrict = Δflexible (reasoning) + Δ(strict − flexible) (format). All (S, Q), all paired."""
    return GainSplit(
        total=gain(strict_initial, strict_final, clusters),
        reasoning=gain(flexible_initial, flexible_final, clusters),
        format=two_way_mean(
            np.subtract(*_pair(strict_final, flexible_final)) - np.subtract(*_pair(strict_initial, flexible_initial)),
            clusters,
        ).interval(),
    )


def compare_pair(a: ArrayLike, b: ArrayLike, pairs: int = 1, clusters: Clusters = None) -> PairedComparison:
    """Compare arm a with arm b, paired over seeds and questions.

    Where the arms answered every question alike in every run there is no noise to measure: the difference is 0 in
    [0, 0], and p is 1.

    Args:
        a: (S, Q).
        b: (S, Q); row s is the run with the same seed as a's row s.
        pairs: in the family that the simultaneous interval and the corrected p-value are for.
        clusters: (Q,), of questions that belong together.
    """
    x, y = _pair(a, b)
    mean = two_way_mean(x - y, clusters)
    p = mean.p_value()
    return PairedComparison(
        difference=mean.interval(),
        simultaneous=mean.interval(ALPHA / pairs),
        p_value=p,
        corrected_p_value=p if math.isnan(p) else min(1.0, pairs * p),
        probability_of_improvement=_probability_of_improvement(x.mean(axis=1), y.mean(axis=1)),
    )


def without_test(comparison: PairedComparison) -> PairedComparison:
    """Keep the values alone, of a study that goes on.

    Whoever looks at 2, 3, … 10 seeds and stops at p < .05 finds something in 15 to 20 % of the studies in which there
    is nothing to find.
    """
    return PairedComparison(
        difference=Estimate(comparison.difference.value),
        simultaneous=Estimate(comparison.simultaneous.value),
        p_value=math.nan,
        corrected_p_value=math.nan,
        probability_of_improvement=Estimate(comparison.probability_of_improvement.value),
    )


def _probability_of_improvement(a: Array, b: Array) -> Estimate:
    """P(a > b) + ½ P(a = b) over all pairs of runs (Mann-Whitney; arXiv 2108.13264)."""
    S = len(a)
    signs = np.sign(np.round(a[:, None] - b, 12))  # equal shares may differ in the last bit
    wins = int(S * S + signs.sum())  # in half wins
    return Estimate(wins / (2 * S * S), *_improvement_interval(wins, S))


@functools.lru_cache(maxsize=4096)
def _improvement_interval(wins: int, S: int) -> tuple[float, float]:
    """Newcombe's score interval (2006, Statistics in Medicine 25, method 5) of ``wins`` half wins among S² pairs.

    With the t quantile for 2S − 2 degrees of freedom: by the normal one, three runs that all beat three others would be
    an improvement, which chance gives one way or the other in a study of ten. Where a bootstrap has [1, 1], all pairs
    being won, this has an interval.
    """
    if S < 2:
        return math.nan, math.nan
    estimate, t = wins / (2 * S * S), t_quantile(2 * S - 2)

    def excess(p: float) -> float:
        variance = p * (1 - p) * (1 + (S - 1) * ((1 - p) / (2 - p) + p / (1 + p))) / S**2
        return (estimate - p) ** 2 - t * t * variance

    low = optimize.brentq(excess, 0, min(estimate, 1 - 1e-9)) if estimate > 0 else 0.0
    high = optimize.brentq(excess, max(estimate, 1e-9), 1) if estimate < 1 else 1.0
    return low, high


def budget_to_reach(budget: ArrayLike, accuracy: ArrayLike, target: float) -> BudgetToReach:
    """Find the budget at which each run first has the target accuracy, linear between evaluations.

    Args:
        budget: (K,), or (S, K) where runs spent differently (tokens, seconds); increasing.
        accuracy: (S, K); NaN where an evaluation is yet to come.
        target: accuracy to reach.
    """
    curves = _matrix(accuracy)
    budgets = _budgets(budget, curves)
    runs = tuple(_first_crossing(x, y, target) for x, y in zip(budgets, curves, strict=True))
    reached = sum(not math.isnan(run) for run in runs)
    median = float(np.median([math.inf if math.isnan(run) else run for run in runs]))
    return BudgetToReach(runs, reached, median if math.isfinite(median) else math.nan)


def _first_crossing(budget: Array, accuracy: Array, target: float) -> float:
    above = np.flatnonzero(accuracy >= target)
    if len(above) == 0:
        return math.nan
    k = int(above[0])
    if k == 0:
        return float(budget[0])
    share = (target - accuracy[k - 1]) / (accuracy[k] - accuracy[k - 1])
    return float(budget[k - 1] + share * (budget[k] - budget[k - 1]))


def mean_over_runs(values: ArrayLike) -> Estimate:
    """Estimate a mean over runs, with Student's t interval: for new seeds, on these questions.

    Args:
        values: (S,), in any unit.
    """
    runs = np.asarray(values, dtype=np.float64)
    value, S = float(runs.mean()), len(runs)
    if S < 2 or math.isnan(value):
        return Estimate(value)
    half = t_quantile(S - 1) * float(runs.std(ddof=1)) / math.sqrt(S)
    return Estimate(value, value - half, value + half)


def budget_ratio(
    budget_a: ArrayLike, correct_a: ArrayLike, budget_b: ArrayLike, correct_b: ArrayLike, target: float
) -> Estimate:
    """Estimate how many times b's budget a needs to reach the target accuracy: a geometric mean over seeds.

    Its interval is Student's t for the logarithms, from both sources of variance: between seeds, and between questions
    by a jackknife that leaves out a twentieth of them at a time (Efron 1982). The questions' chance is in the seeds'
    part as well, so that it is a little too wide.

    Args:
        budget_a, budget_b: (S, K), increasing; row s of both is one seed.
        correct_a, correct_b: (S, K, Q).
        target: accuracy to reach.

    Returns:
        NaN where some run never reaches it, or starts there.
    """
    a, b = np.asarray(correct_a, dtype=np.float64), np.asarray(correct_b, dtype=np.float64)
    S, _, Q = a.shape

    def log_ratios(kept: NDArray[np.int64]) -> Array:
        runs = (
            budget_to_reach(budget, x[:, :, kept].mean(axis=2), target).runs
            for budget, x in ((budget_a, a), (budget_b, b))
        )
        first, second = (np.array([run if run > 0 else math.nan for run in of_arm]) for of_arm in runs)
        return np.log(first / second)

    ratios = log_ratios(np.arange(Q))
    value, groups = float(ratios.mean()), min(20, Q)
    if S < 2 or groups < 2 or math.isnan(value):
        return Estimate(math.exp(value))
    without = np.array([log_ratios(np.flatnonzero(np.arange(Q) % groups != g)).mean() for g in range(groups)])
    of_questions = (groups - 1) / groups * float(((without - without.mean()) ** 2).sum())
    mean = Mean(value, float(ratios.var(ddof=1)) / S, of_questions, S - 1, groups - 1)
    half = t_quantile(mean.df) * math.sqrt(mean.variance)
    return Estimate(math.exp(value), math.exp(value - half), math.exp(value + half))


def area_under_curve(budget: ArrayLike, correct: ArrayLike) -> Array:
    """Average each run's answers over the budget, by trapezoids: its accuracy on a question in the mean of its course.

    Args:
        budget: (K,), increasing, K at least 2.
        correct: (S, K, Q).

    Returns:
        (S, Q), as an accuracy's input.
    """
    x, at = np.asarray(correct, dtype=np.float64), np.asarray(budget, dtype=np.float64)
    if not (np.diff(at) > 0).all():
        raise ValueError("the budget must increase from one evaluation to the next")
    return np.trapezoid(x, at, axis=1) / (at[-1] - at[0])


def _budgets(budget: ArrayLike, curves: Array) -> Array:
    budgets = np.broadcast_to(np.asarray(budget, dtype=np.float64), curves.shape)
    if not (np.diff(budgets, axis=1) > 0).all():
        raise ValueError("the budget must increase from one evaluation to the next")
    return budgets
