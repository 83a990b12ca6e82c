"""The statistics of a study: what the verdict, the tables and the figures all take their numbers from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rlvr_pl.report.outcomes import METRICS, Outcomes, collect_outcomes
from rlvr_pl.report.statistics import (
    BudgetToReach,
    GainSplit,
    PairedComparison,
    area_under_curve,
    budget_to_reach,
    compare_pair,
    format_and_reasoning,
    gain,
    interquartile_mean,
    mean_accuracy,
    without_test,
)
from rlvr_pl.report.study import Study
from rlvr_pl.report.two_way import Estimate

BUDGETS = ("samples", "completion_tokens", "train_seconds")
SOLVED = 0.5  # a question is solved by a run where at least this share of its samples is right
_TARGETS = (0.5, 0.9)  # of the way from the initial accuracy to what every arm reached
_SMALLEST_RISE = 0.02  # of val accuracy, for which reaching a part of it means anything


@dataclass(frozen=True)
class Scores:
    """Accuracies of one arm by one metric."""

    initial: Estimate
    final: Estimate
    gain: Estimate
    iqm: Estimate  # of the final accuracies


@dataclass(frozen=True)
class ArmResult:
    """One arm over its finished runs."""

    arm: str
    seeds: list[int]
    scores: dict[str, Scores]  # by metric
    split: GainSplit


@dataclass(frozen=True)
class PairResult:
    """Two arms over the seeds that both finished, by one metric."""

    a: str
    b: str
    metric: str
    seeds: list[int]
    comparison: PairedComparison  # corrected over the pairs of this metric; without p and intervals while runs go on


@dataclass(frozen=True)
class Efficiency:
    """What it took one arm's finished runs to reach accuracies on val (strict), and the area under their curves."""

    arm: str
    reach: dict[float, dict[str, BudgetToReach | None]]  # target → budget; None where the budget was not logged
    area: Estimate  # mean val accuracy over the rollouts


@dataclass(frozen=True)
class Analysis:
    """All results on one study."""

    study: Study
    outcomes: Outcomes
    arms: list[ArmResult]
    pairs: list[PairResult]
    efficiency: list[Efficiency]
    flips: pd.DataFrame  # arm, metric, kind, questions (mean over runs), share

    def pairs_by(self, metric: str) -> list[PairResult]:
        return [pair for pair in self.pairs if pair.metric == metric]


def analyse(study: Study) -> Analysis:
    """Compute every result from the finished runs of a study."""
    outcomes = collect_outcomes(study)
    usable = bool(outcomes.golds)
    return Analysis(
        study,
        outcomes,
        [_arm(outcomes, arm) for arm in outcomes.arms if usable],
        [pair for metric in METRICS for pair in _pairs(outcomes, metric, study.interim) if usable],
        _efficiency(study),
        _flips(outcomes),
    )


def _arm(outcomes: Outcomes, arm: str) -> ArmResult:
    before = {metric: outcomes.initial[arm, metric] for metric in METRICS}
    after = {metric: outcomes.final[arm, metric] for metric in METRICS}
    scores = {
        metric: Scores(
            initial=mean_accuracy(before[metric]),
            final=mean_accuracy(after[metric]),
            gain=gain(before[metric], after[metric]),
            iqm=interquartile_mean(after[metric]),
        )
        for metric in METRICS
    }
    split = format_and_reasoning(before["strict"], before["flexible"], after["strict"], after["flexible"])
    return ArmResult(arm, outcomes.seeds[arm], scores, split)


def _pairs(outcomes: Outcomes, metric: str, interim: bool) -> list[PairResult]:
    common = {(a, b): seeds for a, b in combinations(outcomes.arms, 2) if (seeds := outcomes.common_seeds(a, b))}
    found = []
    for (a, b), seeds in common.items():
        comparison = compare_pair(*outcomes.paired(a, b, metric), pairs=len(common))
        found.append(PairResult(a, b, metric, seeds, without_test(comparison) if interim else comparison))
    return found


def _efficiency(study: Study) -> list[Efficiency]:
    finished = study.finished[["arm", "seed"]]
    val = study.curves[study.curves["tag"] == "val/accuracy"].merge(finished, on=["arm", "seed"])
    curves = {arm: rows for arm in study.arms if len(rows := _complete(val[val["arm"] == arm]))}
    means = {arm: rows.groupby("rollout")["value"].mean() for arm, rows in curves.items()}
    targets: list[float] = []
    if means:
        start = min(float(mean.iloc[0]) for mean in means.values())
        reached = min(float(mean.max()) for mean in means.values())
        if reached - start >= _SMALLEST_RISE:
            targets = sorted({round(start + share * (reached - start), 2) for share in _TARGETS})
    results = []
    for arm, rows in curves.items():
        accuracy = _by_run(rows, "value")
        reach: dict[float, dict[str, BudgetToReach | None]] = {}
        for target in targets:
            reach[target] = {}
            for name in BUDGETS:
                budget = _by_run(rows, name)
                known = bool((np.diff(budget, axis=1) > 0).all())  # NaN where it was not logged
                reach[target][name] = budget_to_reach(budget, accuracy, target) if known else None
        results.append(Efficiency(arm, reach, area_under_curve(_by_run(rows, "rollout"), accuracy)))
    return results


def _complete(rows: pd.DataFrame) -> pd.DataFrame:
    """The evaluations that all runs of an arm have."""
    runs = rows["seed"].nunique()
    return rows[rows.groupby("rollout")["seed"].transform("size") == runs]


def _by_run(rows: pd.DataFrame, column: str) -> NDArray[np.float64]:
    """(S, K): a row per seed, a column per evaluation."""
    return rows.pivot(index="seed", columns="rollout", values=column).to_numpy(dtype=float)


def _flips(outcomes: Outcomes) -> pd.DataFrame:
    rows = []
    for arm in outcomes.arms if outcomes.golds else []:
        for metric in METRICS:
            before, after = outcomes.initial[arm, metric] >= SOLVED, outcomes.final[arm, metric] >= SOLVED
            for kind, flipped in {
                "always solved": before & after,
                "fixed": ~before & after,
                "broken": before & ~after,
                "never solved": ~before & ~after,
            }.items():
                rows.append((arm, metric, kind, flipped.sum(axis=1).mean(), flipped.mean()))
    return pd.DataFrame(rows, columns=["arm", "metric", "kind", "questions", "share"])


def tidy_summary(analysis: Analysis) -> pd.DataFrame:
    """List every estimate of every arm: arm, seeds, metric, quantity, value, low, high (accuracies in 0..1)."""

    def estimates() -> Iterator[tuple[str, str, str, Estimate]]:
        for result in analysis.arms:
            for metric, scores in result.scores.items():
                for quantity in ("initial", "final", "gain", "iqm"):
                    yield result.arm, metric, quantity, getattr(scores, quantity)
            yield result.arm, "strict", "gain from reasoning", result.split.reasoning
            yield result.arm, "strict", "gain from format", result.split.format
        for efficiency in analysis.efficiency:
            yield efficiency.arm, "strict", "area under the val curve", efficiency.area

    finished = analysis.study.finished.groupby("arm").size()
    seeds = {result.arm: len(result.seeds) for result in analysis.arms}
    rows = [
        {"arm": arm, "seeds": seeds.get(arm, finished.get(arm)), "metric": metric, "quantity": quantity} | asdict(value)
        for arm, metric, quantity, value in estimates()
    ]
    return pd.DataFrame(rows, columns=["arm", "seeds", "metric", "quantity", "value", "low", "high"])


def tidy_pairs(analysis: Analysis) -> pd.DataFrame:
    """List every pairwise comparison (accuracies in 0..1)."""
    rows = []
    for pair in analysis.pairs:
        difference, improvement = pair.comparison.difference, pair.comparison.probability_of_improvement
        rows.append(
            {
                "a": pair.a,
                "b": pair.b,
                "metric": pair.metric,
                "seeds": len(pair.seeds),
                "difference": difference.value,
                "low": difference.low,
                "high": difference.high,
                "simultaneous_low": pair.comparison.simultaneous.low,
                "simultaneous_high": pair.comparison.simultaneous.high,
                "p": pair.comparison.p_value,
                "p_corrected": pair.comparison.corrected_p_value,
                "probability_of_improvement": improvement.value,
                "improvement_low": improvement.low,
                "improvement_high": improvement.high,
            }
        )
    return pd.DataFrame(rows)
