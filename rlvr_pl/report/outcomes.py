"""What the finished runs answered before and after training, as arrays of seeds × questions: the statistics' input."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rlvr_pl.report.study import Study
from rlvr_pl.report.wording import listed
from rlvr_pl.run.declaration import CHECKPOINTS, Checkpoint, Metric
from rlvr_pl.run.records import records_path

METRICS: dict[Metric, str] = {"strict": "correct", "flexible": "correct_flexible"}
ROLLOUT_OF: dict[Checkpoint, str] = {"best": "best_rollout", "last": "rollouts_done"}
"""The column of ``Study.runs`` that says after how many rollouts a checkpoint was taken."""
Key = tuple[str, int]
"""A run, by arm and seed."""
Shares = NDArray[np.float64]
"""(S, Q): of each seed's run and question, the share of right samples."""


@dataclass(frozen=True)
class Outcomes:
    """The answers of every arm's finished runs before and after training, to the questions that all runs share.

    Attributes:
        split: ``test``; ``val`` where nothing was tested.
        checkpoint: whose answers are the final ones: the one that was best on val, or the last.
        golds: (question, gold answer) of each of the Q columns.
        seeds: of each arm, the seeds of its S rows, ascending; empty for an arm without a finished run.
        initial: (S, Q) by (arm, metric), the metric being a key of ``METRICS``.
        after: the same after training, with each of the checkpoints that every run was evaluated with.
        failed: of each arm, the seeds of the runs that failed.
        clusters: what each question belongs to; None where the data names no clusters.
        mismatches: what kept runs or questions out, each naming the run.
    """

    split: str
    checkpoint: Checkpoint
    golds: list[tuple[int, str]]
    seeds: dict[str, list[int]]
    initial: dict[tuple[str, str], Shares] = field(default_factory=dict)
    after: dict[Checkpoint, dict[tuple[str, str], Shares]] = field(default_factory=dict)
    failed: dict[str, list[int]] = field(default_factory=dict)
    clusters: list[str] | None = None
    mismatches: list[str] = field(default_factory=list)

    @property
    def final(self) -> dict[tuple[str, str], Shares]:
        """The answers after training, (S, Q) by (arm, metric)."""
        return self.after[self.checkpoint]

    @property
    def arms(self) -> list[str]:
        """The arms with a finished run."""
        return [arm for arm, seeds in self.seeds.items() if seeds]

    def common_seeds(self, a: str, b: str) -> list[int]:
        """List the seeds that both arms finished."""
        return sorted(set(self.seeds[a]) & set(self.seeds[b]))

    def paired(self, a: str, b: str, metric: str, checkpoint: Checkpoint | None = None) -> tuple[Shares, Shares]:
        """Take the rows of both arms' final answers that belong to their common seeds, (S, Q) each."""
        after, seeds = self.after[checkpoint or self.checkpoint], self.common_seeds(a, b)
        of_a, of_b = (after[arm, metric][[self.seeds[arm].index(seed) for seed in seeds]] for arm in (a, b))
        return of_a, of_b

    def intended_seeds(self, a: str, b: str) -> list[int]:
        """List the seeds that both arms finished or failed."""
        of_a, of_b = ({*self.seeds[arm], *self.failed[arm]} for arm in (a, b))
        return sorted(of_a & of_b)

    def intended(self, a: str, b: str, metric: str) -> tuple[Shares, Shares]:
        """Take both arms' final answers of ``intended_seeds``, (S, Q) each: of a failed run the untrained policy's."""
        untrained = np.concatenate([self.initial[arm, metric] for arm in self.arms]).mean(axis=0)

        def rows(arm: str) -> Shares:
            finished = dict(zip(self.seeds[arm], self.final.get((arm, metric), ()), strict=True))
            return np.array([finished.get(seed, untrained) for seed in self.intended_seeds(a, b)])

        return rows(a), rows(b)


def collect_outcomes(study: Study) -> Outcomes:
    """Collect the outcomes of the finished runs: before training, with the best checkpoint on val, and the last."""
    split = "test" if (study.evaluations["split"] == "test").any() else "val"
    needed = study.rules.checkpoint
    found: dict[str, dict[Key, pd.DataFrame]] = {"initial": {}, **{checkpoint: {} for checkpoint in CHECKPOINTS}}
    mismatches: list[str] = []
    evaluations = study.evaluations[study.evaluations["split"] == split]
    records = dict(iter(evaluations.groupby(["arm", "seed"])))
    for run in study.finished.itertuples():
        key = (str(run.arm), int(run.seed))
        by_rollout = dict(iter(records[key].groupby("rollout"))) if key in records else {}
        places: dict[str, int] = {"initial": 0, **{name: getattr(run, column) for name, column in ROLLOUT_OF.items()}}
        missing = [place for place in dict.fromkeys([0, places[needed]]) if place not in by_rollout]
        if missing:
            names = listed([records_path("", split, rollout).name for rollout in missing])
            mismatches.append(f"{run.path}: has no records in {names}; it is left out of the statistics")
            continue
        for when, rollout in places.items():
            if rollout in by_rollout:
                answers = by_rollout[rollout].groupby(["question", "gold"])
                found[when][key] = answers[list(METRICS.values())].mean()
    # A checkpoint that was not evaluated in every run is no outcome; older runs tested the best alone.
    found = {when: of_runs for when, of_runs in found.items() if len(of_runs) == len(found["initial"])}
    questions = _shared_questions(study, found, mismatches)
    seeds: dict[str, list[int]] = {arm: [] for arm in study.arms}
    for arm, seed in sorted(found["initial"]):
        seeds[arm].append(seed)

    def arrays(of_runs: dict[Key, pd.DataFrame]) -> dict[tuple[str, str], Shares]:
        return {
            (arm, metric): np.array([of_runs[arm, s].loc[questions, column] for s in seeds[arm]], dtype=float)
            for arm in study.arms
            if seeds[arm]
            for metric, column in METRICS.items()
        }

    failed = study.runs[study.runs["state"] == "failed"]
    return Outcomes(
        split=split,
        checkpoint=needed,
        golds=questions,
        seeds=seeds,
        initial=arrays(found["initial"]),
        after={checkpoint: arrays(found[checkpoint]) for checkpoint in CHECKPOINTS if checkpoint in found},
        failed={arm: sorted(map(int, failed.loc[failed["arm"] == arm, "seed"])) for arm in study.arms},
        clusters=_clusters(evaluations, questions),
        mismatches=mismatches,
    )


def _clusters(evaluations: pd.DataFrame, questions: list[tuple[int, str]]) -> list[str] | None:
    """What each question belongs to; None unless all of them name it."""
    named = evaluations[evaluations["cluster"] != ""].drop_duplicates(["question", "gold"])
    clusters = dict(zip(zip(named["question"], named["gold"], strict=True), named["cluster"], strict=True))
    return [clusters[question] for question in questions] if questions and clusters.keys() >= set(questions) else None


def _shared_questions(
    study: Study, found: dict[str, dict[Key, pd.DataFrame]], mismatches: list[str]
) -> list[tuple[int, str]]:
    """The questions of every run; runs whose questions are mostly others leave ``found``.

    A question is its number and its gold answer: the same number in another data set is another question.
    """
    answered = {
        key: frozenset.intersection(*(frozenset(of_runs[key].index) for of_runs in found.values()))
        for key in found["initial"]
    }
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
            for of_runs in found.values():
                del of_runs[key]
            continue
        if questions != usual:
            mismatches.append(
                f"{paths[key]}: has {in_common} of the {len(usual)} questions that most runs have; the statistics use "
                "the questions that all runs share"
            )
        shared &= questions
    return sorted(shared)
