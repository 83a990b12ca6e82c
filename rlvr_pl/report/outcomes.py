"""What the finished runs answered before and after training, as arrays of seeds × questions: the statistics' input."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rlvr_pl.report.study import Study
from rlvr_pl.report.wording import listed
from rlvr_pl.run.records import records_path

METRICS = {"strict": "correct", "flexible": "correct_flexible"}
Shares = NDArray[np.float64]
"""(S, Q): of each seed's run and question, the share of right samples."""


@dataclass(frozen=True)
class Outcomes:
    """The answers of every arm's finished runs before and after training, to the questions that all runs share.

    Attributes:
        split: ``test``; ``val`` where nothing was tested.
        golds: (question, gold answer) of each of the Q columns.
        seeds: of each arm, the seeds of its S rows, ascending; empty for an arm without a finished run.
        initial, final: (S, Q) by (arm, metric), the metric being a key of ``METRICS``.
        mismatches: what kept runs or questions out, each naming the run.
    """

    split: str
    golds: list[tuple[int, str]]
    seeds: dict[str, list[int]]
    initial: dict[tuple[str, str], Shares] = field(default_factory=dict)
    final: dict[tuple[str, str], Shares] = field(default_factory=dict)
    mismatches: list[str] = field(default_factory=list)

    @property
    def arms(self) -> list[str]:
        """The arms with a finished run."""
        return [arm for arm, seeds in self.seeds.items() if seeds]

    def common_seeds(self, a: str, b: str) -> list[int]:
        """List the seeds that both arms finished."""
        return sorted(set(self.seeds[a]) & set(self.seeds[b]))

    def paired(self, a: str, b: str, metric: str) -> tuple[Shares, Shares]:
        """Take the rows of both arms' final answers that belong to their common seeds, (S, Q) each."""
        seeds = self.common_seeds(a, b)
        of_a, of_b = (self.final[arm, metric][[self.seeds[arm].index(seed) for seed in seeds]] for arm in (a, b))
        return of_a, of_b


def collect_outcomes(study: Study) -> Outcomes:
    """Collect the outcomes of the finished runs: before training, and with the checkpoint that was best on val."""
    split = "test" if (study.evaluations["split"] == "test").any() else "val"
    outcomes = Outcomes(split, [], {arm: [] for arm in study.arms})
    before: dict[tuple[str, int], pd.DataFrame] = {}
    after: dict[tuple[str, int], pd.DataFrame] = {}
    records = dict(iter(study.evaluations[study.evaluations["split"] == split].groupby(["arm", "seed"])))
    for run in study.finished.itertuples():
        key = (str(run.arm), int(run.seed))
        evaluations = dict(iter(records[key].groupby("rollout"))) if key in records else {}
        missing = [rollout for rollout in dict.fromkeys([0, run.best_rollout]) if rollout not in evaluations]
        if missing:
            names = listed([records_path("", split, rollout).name for rollout in missing])
            outcomes.mismatches.append(f"{run.path}: has no records in {names}; it is left out of the statistics")
            continue
        before[key], after[key] = (
            evaluations[rollout].groupby(["question", "gold"])[list(METRICS.values())].mean()
            for rollout in (0, run.best_rollout)
        )
    questions = _shared_questions(study, before, after, outcomes.mismatches)
    outcomes.golds.extend(questions)
    for arm, seed in before:
        outcomes.seeds[arm].append(seed)
    for arm in outcomes.arms:
        outcomes.seeds[arm].sort()
        for metric, column in METRICS.items():
            for arrays, source in ((outcomes.initial, before), (outcomes.final, after)):
                rows = [source[arm, seed].loc[questions, column] for seed in outcomes.seeds[arm]]
                arrays[arm, metric] = np.array(rows, dtype=float)
    return outcomes


def _shared_questions(
    study: Study,
    before: dict[tuple[str, int], pd.DataFrame],
    after: dict[tuple[str, int], pd.DataFrame],
    mismatches: list[str],
) -> list[tuple[int, str]]:
    """The questions of every run; runs whose questions are mostly others leave ``before`` and ``after``.

    A question is its number and its gold answer: the same number in another data set is another question.
    """
    answered = {key: frozenset(before[key].index) & frozenset(after[key].index) for key in before}
    if not answered:
        return []
    usual = Counter(answered.values()).most_common(1)[0][0]
    paths = study.runs.set_index(["arm", "seed"])["path"]
    shared = set(usual)
    for key, questions in answered.items():
        in_common = len(questions & usual)
        if 2 * in_common < len(usual):
            mismatches.append(
                f"{paths[key]}: was evaluated on different questions from most runs ({in_common} of {len(usual)} in "
                "common); it is left out of the statistics"
            )
            del before[key], after[key]
            continue
        if questions != usual:
            mismatches.append(
                f"{paths[key]}: has {in_common} of the {len(usual)} questions that most runs have; the statistics use "
                "the questions that all runs share"
            )
        shared &= questions
    return sorted(shared)
