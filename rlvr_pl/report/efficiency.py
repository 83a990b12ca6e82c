"""What the runs' courses over val say that their ends do not: areas under the curves, and tokens to a threshold.

Thresholds are those that the comparison declared. Chosen from the curves, they would be chosen to differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rlvr_pl.report.outcomes import METRICS
from rlvr_pl.report.statistics import (
    BudgetToReach,
    PairedComparison,
    area_under_curve,
    budget_ratio,
    budget_to_reach,
    compare_pair,
    mean_accuracy,
    without_test,
)
from rlvr_pl.report.study import Study
from rlvr_pl.report.two_way import Estimate
from rlvr_pl.run.declaration import Metric

BUDGETS = ("completion_tokens", "samples", "train_seconds")


@dataclass(frozen=True)
class Course:
    """One arm's finished runs on val: S runs, K evaluations and Q questions that the runs of all arms have."""

    arm: str
    seeds: list[int]
    rollouts: NDArray[np.float64]  # (K,)
    correct: NDArray[np.float64]  # (S, K, Q), the share of right samples
    budgets: dict[str, NDArray[np.float64]]  # (S, K) each; without those that were not logged


@dataclass(frozen=True)
class Efficiency:
    """What it took one arm's finished runs to reach accuracies on val, and the area under their curves."""

    arm: str
    reach: dict[float, dict[str, BudgetToReach | None]]  # target → budget; None where the budget was not logged
    area: Estimate  # mean val accuracy over the rollouts, for new seeds and new questions


@dataclass(frozen=True)
class EfficiencyPair:
    """Two arms' courses, over the seeds that both finished."""

    a: str
    b: str
    seeds: list[int]
    area: PairedComparison  # of the areas
    tokens: dict[float, Estimate]  # target → how many times b's tokens a needs


def collect_courses(study: Study, metric: Metric) -> list[Course]:
    """Collect the answers on val along the finished runs."""
    records = study.evaluations[study.evaluations["split"] == "val"].merge(study.finished[["arm", "seed"]])
    if not len(records):
        return []
    tables = {
        key: rows.pivot_table(index="rollout", columns=["question", "gold"], values=METRICS[metric])
        for key, rows in records.astype({METRICS[metric]: float}).groupby(["arm", "seed"])
    }
    rollouts = sorted(set.intersection(*(set(table.index) for table in tables.values())))
    questions = sorted(set.intersection(*(set(table.columns) for table in tables.values())))
    if len(rollouts) < 2 or not questions:
        return []
    spent = study.curves[study.curves["tag"] == "val/accuracy"].set_index(["arm", "seed", "rollout"])
    courses = []
    for arm in study.arms:
        seeds = sorted(seed for name, seed in tables if name == arm)
        if not seeds:
            continue
        correct = np.stack([tables[arm, seed].loc[rollouts, questions].to_numpy() for seed in seeds])
        places = pd.MultiIndex.from_product([[arm], seeds, rollouts])
        budgets = {name: spent[name].reindex(places).to_numpy().reshape(len(seeds), -1) for name in BUDGETS}
        known = {name: budget for name, budget in budgets.items() if (np.diff(budget, axis=1) > 0).all()}
        courses.append(Course(arm, seeds, np.array(rollouts, dtype=float), correct, known))
    return courses


def compute_efficiency(course: Course, targets: tuple[float, ...]) -> Efficiency:
    """Compute one arm's area, and what it took to reach each target (in 0…1)."""
    accuracy = course.correct.mean(axis=2)
    reach = {
        target: {
            name: budget_to_reach(course.budgets[name], accuracy, target) if name in course.budgets else None
            for name in BUDGETS
        }
        for target in targets
    }
    return Efficiency(course.arm, reach, mean_accuracy(area_under_curve(course.rollouts, course.correct)))


def compare_courses(courses: list[Course], targets: tuple[float, ...], interim: bool) -> list[EfficiencyPair]:
    """Compare every pair of arms over the seeds that both finished; without intervals while runs go on."""
    common = {(a.arm, b.arm): sorted(set(a.seeds) & set(b.seeds)) for a, b in combinations(courses, 2)}
    found = []
    for a, b in combinations(courses, 2):
        seeds = common[a.arm, b.arm]
        if not seeds:
            continue
        rows_a, rows_b = ([course.seeds.index(seed) for seed in seeds] for course in (a, b))
        area_a, area_b = (area_under_curve(c.rollouts, c.correct[rows]) for c, rows in ((a, rows_a), (b, rows_b)))
        area = compare_pair(area_a, area_b, pairs=sum(map(bool, common.values())))
        tokens = {}
        for target in targets:
            if "completion_tokens" in a.budgets and "completion_tokens" in b.budgets:
                ratio = budget_ratio(
                    *(a.budgets["completion_tokens"][rows_a], a.correct[rows_a]),
                    *(b.budgets["completion_tokens"][rows_b], b.correct[rows_b]),
                    target,
                )
                tokens[target] = Estimate(ratio.value) if interim else ratio
        found.append(EfficiencyPair(a.arm, b.arm, seeds, without_test(area) if interim else area, tokens))
    return found
