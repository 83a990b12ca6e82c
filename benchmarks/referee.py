"""What a hostile referee simulates: studies without a difference, and one with failures, in every hard case.

    python benchmarks/referee.py                                            # about ten minutes on one core
    python benchmarks/referee.py --equal FOLDER GRPO-a GRPO-b               # an A/A study, repeated

A row a case, with 3, 5 and 10 seeds: how often the interval of the difference covers it, how often p < .05 for one pair
and for some pair of three arms (corrected), and how often an arm's own interval covers its accuracy. In per cent.

An A/A study is one draw at 5 %. With ``--equal`` the runs of arms that differ in their seeds alone are shared out into
two halves in every way, and each time compared: the share of them in which something is found.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from rlvr_pl.report.outcomes import collect_outcomes
from rlvr_pl.report.statistics import compare_pair, mean_accuracy
from rlvr_pl.report.study import load_study
from tests.helpers.regimes import Regime

CASES = {
    "accuracy 70 %": Regime(),
    "runs alike": Regime(seed_sd=0, shared_sd=0),
    "runs ±3 points, arms differ on questions": Regime(seed_sd=0.03, arm_sd=0.5),
    "accuracy 1 %": Regime(accuracy=0.01, seed_sd=0.002, shared_sd=0.002),
    "accuracy 10 %": Regime(accuracy=0.1),
    "accuracy 90 %": Regime(accuracy=0.9),
    "accuracy 99.5 %": Regime(accuracy=0.995, seed_sd=0.001, shared_sd=0.001),
    "four samples a question": Regime(samples=4, arm_sd=0.5),
    "one arm's runs scatter five times as much": Regime(first_seed_sd=0.05),
    "eight questions about one passage": Regime(together=8, arm_sd=1),
    "the same, not declared as such": Regime(together=8, arm_sd=1),
    "one run in five of one arm collapses": Regime(shared_sd=0),
}
SEEDS = (3, 5, 10)


def rates(name: str, regime: Regime, S: int, studies: int) -> list[str]:
    """Simulate one cell."""
    clusters = regime.clusters if regime.together > 1 and "not declared" not in name else None
    rng = np.random.default_rng(S)
    covered, found, any_found, own = [], [], [], []
    truth = 0.0
    for a, b, c in regime.studies(S, studies, seed=5, arms=3):
        if "collapses" in name:  # to nothing: the arm is worse by a fifth of its accuracy
            a, truth = a * (rng.random((S, 1)) >= 0.2), -0.2 * regime.accuracy
        pair = compare_pair(a, b, clusters=clusters)
        covered.append(pair.difference.low <= truth <= pair.difference.high)
        found.append(pair.p_value < 0.05)
        pairs = [compare_pair(x, y, pairs=3, clusters=clusters) for x, y in itertools.combinations((a, b, c), 2)]
        any_found.append(any(pair.corrected_p_value < 0.05 for pair in pairs))
        estimate = mean_accuracy(b, clusters)
        own.append(estimate.low <= regime.accuracy <= estimate.high)
    return [f"{100 * np.mean(hits):.1f}" for hits in (covered, found, any_found, own)]


def repeated_aa(folder: Path, arms: list[str]) -> str:
    """Compare the halves of equal runs with each other, in every way to share them out."""
    outcomes = collect_outcomes(load_study(folder))
    runs = np.concatenate([outcomes.final[arm, "strict"] for arm in arms])
    half, count = len(runs) // 2, len(runs)
    ways = [(0, *rest) for rest in itertools.combinations(range(1, count), half - 1)]
    found = [
        compare_pair(runs[list(way)], runs[[i for i in range(count) if i not in way]][:half]).p_value < 0.05
        for way in ways
    ]
    return f"{count} runs, {len(ways)} ways: p < .05 in {np.mean(found):.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=1000, help="in each cell")
    parser.add_argument("--equal", nargs="+", metavar="FOLDER|ARM", help="a comparison, and its arms that are the same")
    parsed = parser.parse_args()
    if parsed.equal:
        print(repeated_aa(Path(parsed.equal[0]), parsed.equal[1:]))
        return
    studies = parsed.studies
    print("| case | difference covered | p < .05 | of three arms | accuracy covered |\n|---|---|---|---|---|")
    for name, regime in CASES.items():
        cells = zip(*(rates(name, regime, S, studies) for S in SEEDS), strict=True)
        print(f"| {name} | {' | '.join(' / '.join(cell) for cell in cells)} |", flush=True)


if __name__ == "__main__":
    main()
