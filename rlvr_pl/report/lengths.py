"""How long right and wrong completions are: dividing by a completion's own length is said to let wrong ones grow.

Within a sequence's mean over tokens, a long wrong completion is punished less per token than a short one (Dr.GRPO,
arXiv 2503.20783, §3.1). Whether that shows is asked of every comparison.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from rlvr_pl.report.outcomes import METRICS, ROLLOUT_OF, Outcomes
from rlvr_pl.report.statistics import mean_over_runs
from rlvr_pl.report.study import Study
from rlvr_pl.report.two_way import Estimate


@dataclass(frozen=True)
class Lengths:
    """Mean tokens of the final completions of one arm, or the difference of two arms', over runs."""

    name: str
    wrong: Estimate
    right: Estimate


def compute_lengths(study: Study, outcomes: Outcomes) -> list[Lengths]:
    """Compute each arm's lengths with the final checkpoint, then the differences of pairs over their common seeds."""
    column = METRICS[study.rules.metric]
    places = study.finished.rename(columns={ROLLOUT_OF[outcomes.checkpoint]: "rollout"})[["arm", "seed", "rollout"]]
    records = study.evaluations[study.evaluations["split"] == outcomes.split].merge(places.dropna())
    means = records.groupby(["arm", "seed", records[column].astype(bool)])["tokens"].mean()

    def of_runs(arm: str, seeds: list[int], right: bool) -> np.ndarray:
        return means.reindex(pd.MultiIndex.from_product([[arm], seeds, [right]])).to_numpy(dtype=float)

    found = [
        Lengths(arm, *(mean_over_runs(of_runs(arm, outcomes.seeds[arm], right)) for right in (False, True)))
        for arm in outcomes.arms
    ]
    for a, b in combinations(outcomes.arms, 2):
        seeds = outcomes.common_seeds(a, b)
        if len(seeds) > 1 and not study.interim:
            wrong, right = (mean_over_runs(of_runs(a, seeds, r) - of_runs(b, seeds, r)) for r in (False, True))
            found.append(Lengths(f"{a} − {b}", wrong, right))
    return found
