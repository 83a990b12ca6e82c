"""A mean over seeds and questions that are both samples: its variance, its interval, its test.

Shapes: S seeds (runs of an arm), Q questions. Intervals are at 95 %.

**What is estimated.** The accuracy that the arm would have in the mean over new seeds *and* new questions like
these. Both were drawn, and every run answers the same questions, so they are crossed random effects (Miller, "Adding
error bars to evals", arXiv 2411.00640, has the questions' part): x_sq = μ + seed_s + question_q + rest_sq, and

    Var(mean) = σ²_seed/S + σ²_question/Q + σ²_rest/(SQ) = E[MS_seed + MS_question − MS_rest]/(SQ)

by the two-way analysis of variance. A difference is taken per seed and question first, so that what both sides share
(difficulty, and whatever the seed sets for every arm) cancels. Intervals and p-values come from one t pivot and cannot
contradict each other.

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

**Questions that belong together**, several about one passage say, are no independent draws. Where the data names such
clusters, the questions' part is the variance between the clusters' sums (Liang & Zeger 1986; Miller's clustered
standard errors), with as many degrees of freedom as there are clusters less one. Where each question is a cluster of
its own it is what it was.

Two seeds are not enough for any of it (up to 8 % of p-values under .05). Where one run in ten collapses to nothing, the
few runs of a study mostly show none. Of two arms alike in that p stays honest (under .05 in 1 to 2 % of studies),
but an arm's own interval covers its mean over all runs in 33, 45 and 68 % for 3, 5 and 10 seeds.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from rlvr_pl.proportion import wilson

ALPHA = 0.05

Array = NDArray[np.float64]
Clusters = Sequence[Hashable] | None
"""(Q,): of each question, what it belongs to; None where each stands for itself."""


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval, in the units of what was estimated; NaN where nothing can be said."""

    value: float
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True)
class Mean:
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
        """Compute Student's interval, within [−1, 1]."""
        half = t_quantile(self.df, alpha) * math.sqrt(self.variance)
        if math.isnan(half):
            return Estimate(self.value)
        return Estimate(self.value, max(-1.0, self.value - half), min(1.0, self.value + half))

    def proportion_interval(self, df: float | None = None) -> Estimate:
        """Compute Wilson's score interval with the size that a simple random sample of this variance would have.

        It stays in [0, 1], and an accuracy near 0 or 1 gets the asymmetric interval that a symmetric one misses
        (Franco, Little, Louis & Slud 2019, on proportions from complex surveys). Where every answer is wrong, or every
        one right, the runs count as copies of each other: as many observations as questions.

        Args:
            df: of the t quantile; its own, unless the interval is a part of another one's.
        """
        p, binomial = self.value, self.value * (1 - self.value)
        if math.isnan(self.variance):
            return Estimate(p)
        if binomial > 0:
            k = t_quantile(df or self.df) ** 2 * self.variance / binomial  # t²/n
        else:
            k = t_quantile(df or self.question_df) ** 2 / (self.question_df + 1)
        return Estimate(p, *wilson(p, k))

    def p_value(self) -> float:
        """Test against 0, on both sides."""
        if self.variance == 0:
            return float(self.value == 0)
        return float(2 * special.stdtr(self.df, -abs(self.value) / math.sqrt(self.variance)))


def t_quantile(df: float, alpha: float = ALPHA) -> float:
    """Find the t quantile of a two-sided interval or test."""
    return float(special.stdtrit(df, 1 - alpha / 2))


@dataclass(frozen=True)
class Components:
    """Variances of one run's answer to one question, or of a difference of two."""

    seed: float  # between runs, of their means over all questions
    question: float  # between questions, of their means over all runs
    rest: float


def two_way_mean(x: Array, clusters: Clusters = None) -> Mean:
    """Analyse the variance of ``x`` (S, Q); NaN variances with one seed, or with one question or cluster."""
    S, Q = x.shape
    value = float(x.mean())
    question_df = (Q if clusters is None else len(set(clusters))) - 1
    if S < 2 or question_df < 1:
        return Mean(value, math.nan, math.nan, S - 1, question_df)
    ms_seeds, ms_questions, ms_rest = _mean_squares(x)
    if clusters is not None:
        ms_questions, ms_rest = _clustered_mean_squares(x, clusters)
    # In expectation the seeds' mean square is no less than the rest's. Where three runs happen to have equally many
    # right answers it is 0, and any difference would be significant.
    of_seeds = max(ms_seeds, ms_rest / 20) / (S * Q)
    of_questions = max(ms_questions - ms_rest, 0.0) / (S * Q)
    return Mean(value, of_seeds, of_questions, S - 1, question_df)


def components(x: Array) -> Components:
    """Estimate the components of the variance of ``x`` (S, Q), S and Q at least 2; none is negative."""
    S, Q = x.shape
    ms_seeds, ms_questions, ms_rest = _mean_squares(x)
    return Components(max(ms_seeds - ms_rest, 0.0) / Q, max(ms_questions - ms_rest, 0.0) / S, ms_rest)


def _clustered_mean_squares(x: Array, clusters: Sequence[Hashable]) -> tuple[float, float]:
    """Of questions and of the rest, from the clusters' sums; as ``_mean_squares`` where each has one question."""
    S, Q = x.shape
    names = {name: i for i, name in enumerate(dict.fromkeys(clusters))}
    member = np.zeros((Q, len(names)))  # (Q, M)
    member[np.arange(Q), [names[name] for name in clusters]] = 1
    M = len(names)
    questions = x.mean(axis=0) - x.mean()
    rest = x - x.mean(axis=1, keepdims=True) - questions
    between, within = questions @ member, rest @ member  # (M,) and (S, M)
    of_questions = S * float(between @ between) / Q * M / (M - 1)
    return of_questions, float(np.vdot(within, within)) / Q * M / ((M - 1) * (S - 1))


def _mean_squares(x: Array) -> tuple[float, float, float]:
    """Of seeds, questions and the rest."""
    S, Q = x.shape
    value = float(x.mean())
    seeds, questions = x.mean(axis=1) - value, x.mean(axis=0) - value
    rest = x - value - seeds[:, None] - questions
    return (
        Q * float(seeds @ seeds) / (S - 1),
        S * float(questions @ questions) / (Q - 1),
        float(np.vdot(rest, rest)) / ((S - 1) * (Q - 1)),
    )
