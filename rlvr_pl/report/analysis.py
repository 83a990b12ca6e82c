"""The statistics of a study: what the verdict, the tables and the figures all take their numbers from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import combinations

import pandas as pd

from rlvr_pl.report.efficiency import (
    Efficiency,
    EfficiencyPair,
    collect_courses,
    compare_courses,
    compute_efficiency,
)
from rlvr_pl.report.lengths import Lengths, compute_lengths
from rlvr_pl.report.outcomes import METRICS, Outcomes, Shares, collect_outcomes
from rlvr_pl.report.statistics import (
    GainSplit,
    PairedComparison,
    compare_pair,
    format_and_reasoning,
    gain,
    interquartile_mean,
    mean_accuracy,
    without_test,
)
from rlvr_pl.report.study import Study
from rlvr_pl.report.two_way import Estimate
from rlvr_pl.run.declaration import CHECKPOINTS, Checkpoint, Metric

SOLVED = 0.5  # a question is solved by a run where at least this share of its samples is right


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
    scores: dict[Metric, Scores]
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
class Analysis:
    """All results on one study."""

    study: Study
    outcomes: Outcomes
    arms: list[ArmResult]
    pairs: list[PairResult]
    checkpoints: dict[Checkpoint, list[PairResult]]  # the pairs by the primary metric, with each of the checkpoints
    intended: list[PairResult]  # the same with failed runs as untrained ones; empty where none has failed
    efficiency: list[Efficiency]
    efficiency_pairs: list[EfficiencyPair]
    lengths: list[Lengths]
    flips: pd.DataFrame  # arm, metric, kind, questions (mean over runs), share

    def pairs_by(self, metric: str) -> list[PairResult]:
        return [pair for pair in self.pairs if pair.metric == metric]

    @property
    def primary(self) -> list[PairResult]:
        """The pairs by the metric of the primary outcome, on which the verdict stands."""
        return self.pairs_by(self.study.rules.metric)


def analyse(study: Study) -> Analysis:
    """Compute every result from the finished runs of a study."""
    outcomes = collect_outcomes(study)
    usable = bool(outcomes.golds)
    rules, interim = study.rules, study.interim
    courses, targets = collect_courses(study, rules.metric), tuple(value / 100 for value in rules.thresholds)
    return Analysis(
        study=study,
        outcomes=outcomes,
        arms=[_arm(outcomes, arm) for arm in outcomes.arms if usable],
        pairs=[pair for metric in METRICS for pair in _pairs(outcomes, metric, interim) if usable],
        checkpoints={
            checkpoint: _pairs(outcomes, rules.metric, interim, checkpoint)
            for checkpoint in CHECKPOINTS
            if usable and checkpoint in outcomes.after
        },
        intended=_intended(outcomes, rules.metric, interim) if usable and any(outcomes.failed.values()) else [],
        efficiency=[compute_efficiency(course, targets) for course in courses],
        efficiency_pairs=compare_courses(courses, targets, interim),
        lengths=compute_lengths(study, outcomes) if usable else [],
        flips=_flips(outcomes),
    )


def _arm(outcomes: Outcomes, arm: str) -> ArmResult:
    before = {metric: outcomes.initial[arm, metric] for metric in METRICS}
    after = {metric: outcomes.final[arm, metric] for metric in METRICS}
    clusters = outcomes.clusters
    scores = {
        metric: Scores(
            initial=mean_accuracy(before[metric], clusters),
            final=mean_accuracy(after[metric], clusters),
            gain=gain(before[metric], after[metric], clusters),
            iqm=interquartile_mean(after[metric], clusters=clusters),
        )
        for metric in METRICS
    }
    split = format_and_reasoning(before["strict"], before["flexible"], after["strict"], after["flexible"], clusters)
    return ArmResult(arm, outcomes.seeds[arm], scores, split)


def _pairs(outcomes: Outcomes, metric: str, interim: bool, checkpoint: Checkpoint | None = None) -> list[PairResult]:
    common = {(a, b): seeds for a, b in combinations(outcomes.arms, 2) if (seeds := outcomes.common_seeds(a, b))}
    answers = {(a, b): outcomes.paired(a, b, metric, checkpoint) for a, b in common}
    return _compare(outcomes, metric, interim, common, answers)


def _intended(outcomes: Outcomes, metric: str, interim: bool) -> list[PairResult]:
    """Every run that was begun counts: one that failed as the untrained policy, which is what it leaves to its user."""
    common = {(a, b): seeds for a, b in combinations(outcomes.failed, 2) if (seeds := outcomes.intended_seeds(a, b))}
    answers = {(a, b): outcomes.intended(a, b, metric) for a, b in common}
    return _compare(outcomes, metric, interim, common, answers)


def _compare(
    outcomes: Outcomes,
    metric: str,
    interim: bool,
    common: dict[tuple[str, str], list[int]],
    answers: dict[tuple[str, str], tuple[Shares, Shares]],
) -> list[PairResult]:
    found = []
    for (a, b), seeds in common.items():
        comparison = compare_pair(*answers[a, b], pairs=len(common), clusters=outcomes.clusters)
        found.append(PairResult(a, b, metric, seeds, without_test(comparison) if interim else comparison))
    return found


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
