"""The statistics of a comparison: arrays in, named results out.

Shapes: S seeds (runs of an arm), Q questions, K evaluations along a run. ``correct`` is (S, Q) in [0, 1], the share of
a question's samples that one run got right. Accuracies and differences are in 0…1; intervals are at 95 %.

**What is estimated.** The accuracy that the arm would have in the mean over new seeds *and* new questions like
these. Both were drawn, and every run answers the same questions, so they are crossed random effects (Miller, "Adding
error bars to evals", arXiv 2411.00640, has the questions' part): x_sq = μ + seed_s + question_q + rest_sq, and

    Var(mean) = σ²_seed/S + σ²_question/Q + σ²_rest/(SQ) = E[MS_seed + MS_question − MS_rest]/(SQ)

by the two-way analysis of variance. A difference is taken per seed and question first, so that what both sides share
(difficulty, and whatever the seed sets for every arm) cancels. Intervals and p-values come from one t pivot and cannot
contradict each other.

**Several pairs.** The verdict stands on simultaneous intervals: with m pairs at 1 − α/m each (Bonferroni), and p-values
times m. Holm's steps would find more, but have no intervals that agree with them; Tukey's range, 2 % narrower for three
arms, wants one variance for all pairs, which arms that share questions and seeds do not have.

**Degrees of freedom.** With S − 1 = 2 for the seeds they decide everything. Satterthwaite (1946) has, for parts v_i of
the variance, 1/df = [v²_seed/(S − 1) + v²_question/(Q − 1)] / (v_seed + v_question)²: too many where the seeds hold
most of it, for studies whose seeds agree by chance then count as precise. The seeds' term is therefore divided by
v²_seed + v²_question/2 here, which changes nothing where one part is all. That divisor is ours and stands on this:
coverage by the seeds' true share of the variance, integrated over normal effects with the questions' part known.

    share of the seeds         .1     .3     .5     .7     .9     .95    1
    Satterthwaite, S = 3       .950   .948   .941   .930   .922   .925   .950
    here, S = 3                .953   .957   .956   .953   .954   .955   .950
    here, S = 5                .951   .957   .961   .963   .960   .957   .950
    here, S = 10               .950   .954   .959   .960   .956   .953   .950

Two seeds are not enough for any of it (up to 8 % of p-values under .05), and where one run in ten collapses, the few
runs of a study may show none: the difference stays honest, but an arm's own interval covers 86 to 90 %.

**No percentile bootstrap**, for it covers too much or too little: resampling S seeds shows (S − 1)/S of their variance
and knows no t quantile; resampling both factors at once counts the rest thrice (Owen 2007, the pigeonhole bootstrap),
and resampling questions within each seed forgets that all runs share them. Coverage of no difference in 2,000 studies
as in ``tests/test_statistics.py``, S = 3 / 5 / 10, Q = 512; the last line is ``compare_pair``:

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
from scipy import optimize, special, stats

ALPHA = 0.05

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval, in the units of what was estimated; NaN where nothing can be said."""

    value: float
    low: float
    high: float


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


@dataclass(frozen=True)
class _Mean:
    """A mean over seeds and questions, with the two parts of its variance and their degrees of freedom."""

    value: float
    of_seeds: float  # σ²_seed/S + σ²_rest/(SQ)
    of_questions: float  # σ²_question/Q
    seed_df: int
    question_df: int

    @property
    def variance(self) -> float:
        return self.of_seeds + self.of_questions

    @property
    def df(self) -> float:
        """See the module's docstring. Without any variance there is nothing to weigh, and the seeds' are the fewer."""
        if not self.variance > 0:
            return self.seed_df
        seeds, questions = self.of_seeds**2, self.of_questions**2
        return 1 / (seeds / (seeds + questions / 2) / self.seed_df + questions / self.variance**2 / self.question_df)

    def interval(self, alpha: float = ALPHA) -> Estimate:
        half = _t_quantile(self.df, alpha) * math.sqrt(self.variance)
        return Estimate(self.value, self.value - half, self.value + half)

    def proportion_interval(self) -> Estimate:
        """Compute Wilson's score interval with the size that a simple random sample of this variance would have.

        It stays in [0, 1], and an accuracy near 0 or 1 gets the asymmetric interval that a symmetric one misses
        (Franco, Little, Louis & Slud 2019, on proportions from complex surveys). Where every answer is wrong, or every
        one right, the runs count as copies of each other: as many observations as questions.
        """
        p, binomial = self.value, self.value * (1 - self.value)
        if math.isnan(self.variance):
            return Estimate(p, math.nan, math.nan)
        if binomial > 0:
            k = _t_quantile(self.df) ** 2 * self.variance / binomial  # t²/n
        else:
            k = _t_quantile(self.question_df) ** 2 / (self.question_df + 1)
        half = math.sqrt(k * binomial + k * k / 4) / (1 + k)
        middle = (p + k / 2) / (1 + k)
        return Estimate(p, max(0.0, middle - half), min(1.0, middle + half))

    def p_value(self) -> float:
        if self.variance == 0:
            return float(self.value == 0)
        return float(2 * special.stdtr(self.df, -abs(self.value) / math.sqrt(self.variance)))


def _t_quantile(df: float, alpha: float = ALPHA) -> float:
    return float(special.stdtrit(df, 1 - alpha / 2))


def _mean(x: Array) -> _Mean:
    """The two-way analysis of variance of ``x`` (S, Q); NaN variances with one seed or one question."""
    S, Q = x.shape
    value = float(x.mean())
    if S < 2 or Q < 2:
        return _Mean(value, math.nan, math.nan, S - 1, Q - 1)
    seeds, questions = x.mean(axis=1) - value, x.mean(axis=0) - value
    rest = x - value - seeds[:, None] - questions
    ms_seeds = Q * float(seeds @ seeds) / (S - 1)
    ms_questions = S * float(questions @ questions) / (Q - 1)
    ms_rest = float(np.vdot(rest, rest)) / ((S - 1) * (Q - 1))
    # In expectation the seeds' mean square is no less than the rest's. Where three runs happen to have equally many
    # right answers it is 0, and any difference would be significant.
    of_seeds = max(ms_seeds, ms_rest / 20) / (S * Q)
    of_questions = max(ms_questions - ms_rest, 0.0) / (S * Q)
    return _Mean(value, of_seeds, of_questions, S - 1, Q - 1)


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


def mean_accuracy(correct: ArrayLike) -> Estimate:
    """Estimate the mean over seeds and questions.

    Args:
        correct: (S, Q).
    """
    return _mean(_matrix(correct)).proportion_interval()


def interquartile_mean(correct: ArrayLike, resamples: int = 2000, seed: int = 0) -> Estimate:
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
    """
    x = _matrix(correct)
    runs, mean = x.mean(axis=1), _mean(x)
    S = len(runs)
    if S < 4:
        return mean.proportion_interval()
    draws = np.random.default_rng(seed).integers(S, size=(resamples, S))
    of_seeds = float(stats.trim_mean(runs[draws], 0.25, axis=1).var())
    return replace(mean, value=float(stats.trim_mean(runs, 0.25)), of_seeds=of_seeds).proportion_interval()


def gain(initial: ArrayLike, final: ArrayLike) -> Estimate:
    """Estimate the mean of final − initial, paired over seeds and questions.

    Args:
        initial: (S, Q).
        final: (S, Q), of the same runs and questions.
    """
    before, after = _pair(initial, final)
    return _mean(after - before).interval()


def format_and_reasoning(
    strict_initial: ArrayLike, flexible_initial: ArrayLike, strict_final: ArrayLike, flexible_final: ArrayLike
) -> GainSplit:
    """Split a gain: Δstrict = Δflexible (reasoning) + Δ(strict − flexible) (format). All (S, Q), all paired."""
    return GainSplit(
        total=gain(strict_initial, strict_final),
        reasoning=gain(flexible_initial, flexible_final),
        format=gain(
            np.subtract(*_pair(strict_initial, flexible_initial)), np.subtract(*_pair(strict_final, flexible_final))
        ),
    )


def compare_pair(a: ArrayLike, b: ArrayLike, pairs: int = 1) -> PairedComparison:
    """Compare arm a with arm b, paired over seeds and questions.

    Where the arms answered every question alike in every run there is no noise to measure: the difference is 0 in
    [0, 0], and p is 1.

    Args:
        a: (S, Q).
        b: (S, Q); row s is the run with the same seed as a's row s.
        pairs: in the family that the simultaneous interval and the corrected p-value are for.
    """
    x, y = _pair(a, b)
    mean = _mean(x - y)
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
        difference=Estimate(comparison.difference.value, math.nan, math.nan),
        simultaneous=Estimate(comparison.simultaneous.value, math.nan, math.nan),
        p_value=math.nan,
        corrected_p_value=math.nan,
        probability_of_improvement=Estimate(comparison.probability_of_improvement.value, math.nan, math.nan),
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
    estimate, t = wins / (2 * S * S), _t_quantile(2 * S - 2)

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


def area_under_curve(budget: ArrayLike, accuracy: ArrayLike) -> Estimate:
    """Estimate the mean accuracy over the budget: a run's area (trapezoids) by its length, then the mean over runs.

    The interval is Student's t over the S runs: it is about new seeds on these questions.

    Args:
        budget: (K,) or (S, K), increasing.
        accuracy: (S, K).
    """
    curves = _matrix(accuracy)
    budgets = _budgets(budget, curves)
    S, K = curves.shape
    if K < 2:
        return Estimate(math.nan, math.nan, math.nan)
    areas = np.trapezoid(curves, budgets, axis=1) / (budgets[:, -1] - budgets[:, 0])
    of_seeds = float(areas.var(ddof=1)) / S if S > 1 else math.nan
    return _Mean(float(areas.mean()), of_seeds, 0.0, S - 1, 1).interval()


def _budgets(budget: ArrayLike, curves: Array) -> Array:
    budgets = np.broadcast_to(np.asarray(budget, dtype=np.float64), curves.shape)
    if not (np.diff(budgets, axis=1) > 0).all():
        raise ValueError("the budget must increase from one evaluation to the next")
    return budgets
