"""The statistics on examples worked by hand, and on simulated studies whose truth is known (helpers/regimes.py)."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import special, stats

from rlvr_pl.report.statistics import (
    PairedComparison,
    area_under_curve,
    budget_ratio,
    budget_to_reach,
    compare_pair,
    format_and_reasoning,
    gain,
    interquartile_mean,
    mean_accuracy,
    mean_over_runs,
)
from rlvr_pl.report.two_way import Estimate, two_way_mean
from tests.helpers.regimes import Regime

pytestmark = pytest.mark.filterwarnings("error")

Answers = NDArray[np.float64]
SEEDS = [3, 5, 10]
NAN = math.nan

REGIMES = {
    "runs ±1 point": Regime(),
    "runs alike": Regime(seed_sd=0, shared_sd=0),
    "runs ±3 points": Regime(seed_sd=0.03),
    "runs ±3 points, arms differ on questions": Regime(seed_sd=0.03, arm_sd=0.5),
    "runs ±1 point, arms differ on questions": Regime(arm_sd=1),
    "accuracy 90 %": Regime(accuracy=0.9, arm_sd=0.5),
    "1,319 questions": Regime(questions=1319, arm_sd=0.5),
}


def covers(estimate: Estimate, truth: float) -> bool:
    return estimate.low <= truth <= estimate.high


@functools.cache
def without_a_difference(name: str, S: int) -> list[tuple[PairedComparison, Estimate]]:
    """Of each of the studies: the comparison, and the accuracy of one of the arms."""
    studies = REGIMES[name].studies(S, seed=list(REGIMES).index(name))
    return [(compare_pair(a, b), mean_accuracy(b)) for a, b in studies]


@pytest.mark.parametrize("name", REGIMES)
@pytest.mark.parametrize("S", SEEDS)
def test_without_a_difference_intervals_cover_and_p_values_stay_honest(S: int, name: str) -> None:
    """The standard error of a rate of 5 % in 2,000 studies is 0.5 %. Measured here, in per cent for S = 3 / 5 / 10: how
    often the interval of the difference covers 0, how often p < .05, how often an arm's interval covers its accuracy.

                                              difference           p < .05         accuracy
    runs ±1 point                             95.7 / 95.9 / 95.7   4.3 / 4.1 / 4.3   96.3 / 94.8 / 94.5
    runs alike                                95.3 / 95.5 / 95.7   4.7 / 4.5 / 4.3   95.8 / 94.8 / 95.3
    runs ±3 points                            95.0 / 95.2 / 95.2   5.0 / 4.8 / 4.8   94.8 / 96.0 / 95.2
    runs ±3 points, arms differ on questions  95.3 / 95.5 / 95.8   4.7 / 4.5 / 4.2   95.8 / 96.2 / 95.3
    runs ±1 point, arms differ on questions   95.9 / 96.5 / 95.1   4.2 / 3.5 / 4.9   96.0 / 95.5 / 95.0
    accuracy 90 %                             95.5 / 96.2 / 96.8   4.5 / 3.8 / 3.2   96.3 / 95.8 / 95.3
    1,319 questions                           95.7 / 95.3 / 95.2   4.3 / 4.7 / 4.8   96.3 / 95.5 / 94.8
    """
    studies = without_a_difference(name, S)
    difference = np.mean([covers(comparison.difference, 0) for comparison, _ in studies])
    false_positives = np.mean([comparison.p_value < 0.05 for comparison, _ in studies])
    accuracy = np.mean([covers(estimate, REGIMES[name].accuracy) for _, estimate in studies])
    assert 0.93 <= difference <= 0.97
    assert false_positives <= 0.06
    assert 0.93 <= accuracy <= 0.97


@pytest.mark.parametrize("name", ["runs ±1 point", "runs ±3 points, arms differ on questions"])
@pytest.mark.parametrize("S", [3, 5])
def test_three_intervals_hold_together_and_agree_with_their_p_values(S: int, name: str) -> None:
    """The share of studies of three equal arms in which any interval misses 0 is under 5 %, but for chance."""
    missed = 0
    for arms in REGIMES[name].studies(S, 1000, seed=7, arms=3):
        pairs = [compare_pair(a, b, pairs=3) for a, b in itertools.combinations(arms, 2)]
        missing = [not covers(pair.simultaneous, 0) for pair in pairs]
        assert missing == [pair.corrected_p_value < 0.05 for pair in pairs]
        missed += any(missing)
    assert 0.01 <= missed / 1000 <= 0.06


HARD_CASES = {
    "accuracy 1 %": Regime(accuracy=0.01, seed_sd=0.002, shared_sd=0.002),
    "accuracy 99.5 %": Regime(accuracy=0.995, seed_sd=0.001, shared_sd=0.001),
    "four samples a question": Regime(samples=4, arm_sd=0.5),
    "one arm's runs scatter five times as much": Regime(first_seed_sd=0.05),
    "eight questions about one passage": Regime(together=8, arm_sd=1),
}


@pytest.mark.parametrize("name", HARD_CASES)
@pytest.mark.parametrize("S", [3, 5])
def test_no_difference_is_found_in_hard_cases_either(S: int, name: str) -> None:
    """Measured for S = 3 / 5, in per cent of 1,000 studies: how often the difference's interval covers 0.

    accuracy 1 %                               95.5 / 97.1
    accuracy 99.5 %                            97.4 / 97.3
    four samples a question                    95.5 / 96.4
    one arm's runs scatter five times as much  95.3 / 95.2
    eight questions about one passage          96.0 / 95.3
    """
    regime = HARD_CASES[name]
    clusters = regime.clusters if regime.together > 1 else None
    pairs = [compare_pair(a, b, clusters=clusters) for a, b in regime.studies(S, 1000, seed=11)]
    assert 0.935 <= np.mean([covers(pair.difference, 0) for pair in pairs]) <= 0.99
    assert np.mean([pair.p_value < 0.05 for pair in pairs]) <= 0.06


@pytest.mark.parametrize("S", [5, 10])
def test_an_arm_that_loses_a_fifth_of_its_runs_is_not_flattered_where_all_count(S: int) -> None:
    """Its finished runs are 3 points better, and all that were begun 11 worse.

    Measured for S = 5 / 10: the finished runs alone have p < .05 in its favour in 52 / 90 %, all that were begun in
    25 / 12 %; no run happened to fail in 33 / 12 %.
    """
    rng = np.random.default_rng(S)
    flattered, lucky = [], []
    for a, b in Regime(difference=0.03, seed_sd=0.01).studies(S, 400, seed=2):
        failed = rng.random(S) < 0.2
        intended = np.where(failed[:, None], 0.0, a)
        pair = compare_pair(intended, b)
        flattered.append(pair.p_value < 0.05 and pair.difference.value > 0)
        lucky.append(not failed.any())
    assert np.mean(flattered) <= np.mean(lucky) + 0.02


def test_questions_that_belong_together_are_no_independent_evidence() -> None:
    regime = HARD_CASES["eight questions about one passage"]
    studies = list(regime.studies(5, 500, seed=3))
    apart = np.mean([compare_pair(a, b).p_value < 0.05 for a, b in studies])
    together = np.mean([compare_pair(a, b, clusters=regime.clusters).p_value < 0.05 for a, b in studies])
    assert apart > 0.2
    assert together < 0.075
    covered = np.mean([covers(mean_accuracy(a, regime.clusters), regime.accuracy) for a, _ in studies])
    assert 0.92 <= covered <= 0.98


def test_clusters_of_one_question_each_change_nothing() -> None:
    ((a, b),) = itertools.islice(Regime(questions=64).studies(3, 1), 1)
    each = [f"question {number}" for number in range(64)]
    alone, named = two_way_mean(a - b), two_way_mean(a - b, each)
    assert (named.of_seeds, named.of_questions) == (exactly(alone.of_seeds), exactly(alone.of_questions))
    assert (named.seed_df, named.question_df) == (alone.seed_df, alone.question_df)


@pytest.mark.parametrize(("S", "points", "power"), [(3, 5, 0.57), (5, 2, 0.365), (5, 5, 0.98), (10, 2, 0.76)])
def test_power_on_a_known_difference(S: int, points: int, power: float) -> None:
    """Where runs scatter by ±1 point, three of them find 5 points in little more than half the studies."""
    studies = Regime(difference=points / 100).studies(S, 1000)
    found = np.mean([compare_pair(a, b).p_value < 0.05 for a, b in studies])
    assert found == pytest.approx(power, abs=0.03)


@pytest.mark.parametrize("name", ["runs ±1 point", "runs alike", "runs ±3 points"])
@pytest.mark.parametrize("S", SEEDS)
def test_the_interval_of_the_probability_of_improvement_covers_one_half(S: int, name: str) -> None:
    """It is conservative, the more so the fewer the runs: 3 against 3 can be ranked in 20 ways only."""
    studies = without_a_difference(name, S)
    coverage = np.mean([covers(comparison.probability_of_improvement, 0.5) for comparison, _ in studies])
    assert coverage >= 0.95


def percentile_bootstrap_coverage(regime: Regime, S: int, studies: int = 500, resamples: int = 400) -> float:
    """Of the difference, by resampling seeds and questions; the same resamples for every study."""
    rng = np.random.default_rng(0)
    Q = regime.questions
    seeds = rng.multinomial(S, np.full(S, 1 / S), resamples) / S
    questions = rng.multinomial(Q, np.full(Q, 1 / Q), resamples) / Q
    weights = (seeds[:, :, None] * questions[:, None, :]).reshape(resamples, S * Q)
    differences = np.stack([(a * 1.0 - b).ravel() for a, b in regime.studies(S, studies)])
    low, high = np.quantile(differences @ weights.T, [0.025, 0.975], axis=1)
    return float(np.mean((low <= 0) & (high >= 0)))


def test_the_percentile_bootstrap_does_not_hold_what_the_t_interval_holds() -> None:
    """Why the module has none for differences: too little where the runs differ, too much where they do not."""
    assert percentile_bootstrap_coverage(REGIMES["runs ±3 points"], S=3) < 0.9
    assert percentile_bootstrap_coverage(REGIMES["runs ±3 points"], S=5) < 0.93
    assert percentile_bootstrap_coverage(REGIMES["runs alike"], S=5) > 0.985


@pytest.mark.parametrize(("S", "covered"), [(3, 0.33), (5, 0.45), (10, 0.68)])
def test_collapses_hide_from_few_seeds_and_do_not_make_a_difference(S: int, covered: float) -> None:
    """One run in ten ends at 0: no interval knows what its runs do not show, as the docstring says."""
    rng = np.random.default_rng(S)

    def collapsing(answers: Answers) -> Answers:
        return answers * (rng.random((S, 1)) >= 0.1)

    studies = [(collapsing(a), collapsing(b)) for a, b in Regime(shared_sd=0).studies(S, 1000)]
    assert np.mean([covers(mean_accuracy(a), 0.9 * 0.7) for a, _ in studies]) == pytest.approx(covered, abs=0.05)
    assert np.mean([compare_pair(a, b).p_value < 0.05 for a, b in studies]) <= 0.05


@pytest.mark.parametrize("S", SEEDS)
@pytest.mark.parametrize(
    ("first", "last", "least", "most"),
    [
        (0.63, 0.7, 0.93, 0.97),
        (0.005, 0.01, 0.925, 0.99),  # where hardly an answer is right, or wrong, intervals are cautious
        (0.005, 0.7, 0.925, 0.99),
        (0.01, 0.995, 0.925, 0.99),
        (0.98, 0.995, 0.925, 0.99),
    ],
)
def test_the_interval_of_a_gain_covers_it(first: float, last: float, least: float, most: float, S: int) -> None:
    """From a policy that every run starts from, so that all runs begin with the same answers."""
    before = Regime()
    rng = np.random.default_rng(S)
    hits = []
    for _ in range(1000):
        difficulty = rng.normal(scale=before.difficulty_sd, size=before.questions)
        spread = math.hypot(before.difficulty_sd, 1)
        start = difficulty + rng.normal(size=before.questions) + spread * special.ndtri(first) > 0
        runs = rng.normal(scale=0.1, size=(S, 1))
        total = math.hypot(spread, 0.1)
        final = difficulty + runs + rng.normal(size=(S, before.questions)) + total * special.ndtri(last) > 0
        estimate = gain(np.tile(start, (S, 1)), final)
        hits.append(covers(estimate, last - first))
        assert -1 <= estimate.low < estimate.high <= 1
    assert least <= np.mean(hits) <= most


@pytest.mark.parametrize("S", [4, 5, 10])
def test_the_interval_of_the_interquartile_mean_covers_it(S: int) -> None:
    """The truth is the accuracy, since the runs' are as good as symmetric around it."""
    hits = [covers(interquartile_mean(b, 200), 0.7) for _, b in REGIMES["runs ±3 points"].studies(S, 500)]
    assert 0.93 <= np.mean(hits) <= 0.98


def exactly(value: float) -> Any:
    return pytest.approx(value, rel=1e-12, abs=1e-15)


# Row means 1/2, 1/4, 1/4; column means 1, 2/3, 0, −1/3; mean 1/3. Sums of squares: seeds 1/6, questions 10/3, rest 7/6,
# so the mean squares are 1/12, 10/9 and 7/36, and the two parts of the variance 1/144 and (10/9 − 7/36)/12 = 11/144.
A = np.array([[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0]])
B = np.array([[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]])


def test_a_paired_comparison_worked_by_hand() -> None:
    df = 17712 / 5105  # 1/[1²/(1² + 11²/2)/2 + (11/12)²/3]
    error, quantile = math.sqrt(1 / 12), float(stats.t.ppf(0.975, df))
    result = compare_pair(A, B)
    assert result.difference.value == exactly(1 / 3)
    assert result.difference.low == exactly(1 / 3 - quantile * error)
    assert 1 / 3 + quantile * error > 1 == result.difference.high, "no difference is larger"
    assert result.p_value == exactly(2 * stats.t.sf(math.sqrt(4 / 3), df))
    assert result.difference == result.simultaneous
    assert result.corrected_p_value == result.p_value
    of_three = compare_pair(A, B, pairs=3)
    assert (of_three.difference, of_three.p_value) == (result.difference, result.p_value)
    assert of_three.corrected_p_value == exactly(min(1, 3 * result.p_value))
    strict_quantile = float(stats.t.ppf(1 - 0.025 / 3, df))
    assert of_three.simultaneous.low == exactly(max(-1, 1 / 3 - strict_quantile * error))
    assert 1 / 3 + strict_quantile * error > 1 == of_three.simultaneous.high


def test_without_a_part_of_the_questions_it_is_a_t_test_over_runs() -> None:
    """Row means 1/2, 0, 3/4; mean squares 7/12, 1/12 and 1/4, so the questions' part would be negative and is 0. With
    two degrees of freedom Student's t is elementary: t² = 25/7, p = 1 − √(t²/(2 + t²)), and so is its quantile."""
    result = compare_pair([[1, 0, 0, 1], [0, 0, 0, 0], [0, 1, 1, 1]], np.zeros((3, 4)))
    half = 0.95 / math.sqrt(2 * 0.975 * 0.025) * math.sqrt(7 / 144)
    assert result.p_value == exactly(1 - 5 / math.sqrt(39))
    assert result.p_value == exactly(float(stats.ttest_1samp([0.5, 0, 0.75], 0).pvalue))
    assert (result.difference.low, result.difference.high) == (exactly(5 / 12 - half), 1)


def test_runs_that_are_copies_of_each_other_are_a_t_test_over_questions() -> None:
    """As before training, where every seed starts from the same policy."""
    one = np.array([1, 0, 0, 1, 1, 0, 0, 0, 1.0])
    test = stats.ttest_1samp(one, 0)
    result = compare_pair(np.tile(one, (4, 1)), np.zeros((4, 9)))
    assert result.p_value == exactly(float(test.pvalue))
    interval = test.confidence_interval()
    assert (result.difference.low, result.difference.high) == (exactly(interval.low), exactly(interval.high))


def test_an_accuracy_worked_by_hand() -> None:
    """Mean squares 1/12, 3/4 and 1/12, so the variance is 1/144 + 8/144 = 1/16, with 1/[1²/(1² + 8²/2)/2 + (8/9)²/3]
    degrees of freedom. Wilson's ends are where (p − 5/12)² = t²·p(1 − p)/n, for n = (5/12)(7/12)/(1/16)."""
    t, n = float(stats.t.ppf(0.975, 5346 / 1489)), 35 / 9
    result = mean_accuracy(A)
    assert result.value == exactly(5 / 12)
    assert 0 < result.low < 5 / 12 < result.high < 1
    for end in (result.low, result.high):
        assert (end - 5 / 12) ** 2 == exactly(t * t * end * (1 - end) / n)


def test_an_accuracy_of_0_or_1_has_an_interval_too() -> None:
    """Under 0.75 % of 512 questions: the rule of three would say 3/512 = 0.59 %, one-sided."""
    upper = float(stats.t.ppf(0.975, 511)) ** 2
    for estimate in (mean_accuracy(np.zeros((3, 512))), interquartile_mean(np.zeros((5, 512)))):
        assert estimate == Estimate(0.0, 0.0, exactly(upper / (512 + upper)))
    right = mean_accuracy(np.ones((3, 512)))
    assert right == Estimate(1.0, exactly(512 / (512 + upper)), 1.0)


def test_arms_with_the_same_answers_throughout_differ_by_nothing() -> None:
    answers = np.random.default_rng(0).random((5, 64)) < 0.7
    result = compare_pair(answers, answers)
    assert result.difference == Estimate(0, 0, 0)
    assert result.p_value == 1
    assert result.probability_of_improvement.low < 0.5 < result.probability_of_improvement.high


def test_arms_that_differ_by_the_same_everywhere() -> None:
    result = compare_pair(np.ones((3, 8)), np.zeros((3, 8)))
    assert result.difference == Estimate(1, 1, 1)
    assert result.p_value == 0


def test_runs_that_happen_to_be_equally_good_are_no_proof() -> None:
    """Arm a is two questions of 64 ahead in each of three runs, on other questions each time: the runs' mean square is
    0, but they scatter by chance all the same."""
    rng = np.random.default_rng(0)
    scores = np.array([1] * 10 + [-1] * 8 + [0] * 46)
    difference = np.stack([rng.permutation(scores) for _ in range(3)])
    result = compare_pair(difference > 0, difference < 0)
    assert result.difference.value == 2 / 64
    assert result.p_value > 0.05


def test_one_seed_gives_values_without_intervals() -> None:
    a, b = A[:1], B[:1]
    result = compare_pair(a, b)
    estimates = {
        0.5: [
            mean_accuracy(a),
            interquartile_mean(a),
            gain(b, a),
            result.difference,
            mean_over_runs([0.5]),
        ],
        1.0: [result.probability_of_improvement],
        0.0: [mean_accuracy(b), interquartile_mean(b)],
    }
    for value, found in estimates.items():
        for estimate in found:
            assert estimate.value == value
            assert math.isnan(estimate.low)
            assert math.isnan(estimate.high)
    assert math.isnan(result.p_value)


def test_one_question_gives_values_without_intervals() -> None:
    result = compare_pair(A[:, :1], B[:, :1])
    assert result.difference.value == 1
    assert math.isnan(result.difference.low)
    assert math.isnan(result.p_value)


def test_interval_and_p_value_never_contradict_each_other() -> None:
    """And swapping the arms turns the result around, while the order of seeds and questions is nothing to it."""
    found = set()
    for a, b in Regime(difference=0.03, questions=64).studies(4, 200):
        result, swapped = compare_pair(a, b), compare_pair(b, a)
        found.add(result.p_value < 0.05)
        assert (result.p_value < 0.05) == (not covers(result.difference, 0))
        assert swapped.difference.low == exactly(-result.difference.high)
        assert swapped.p_value == exactly(result.p_value)
        assert swapped.probability_of_improvement.low == pytest.approx(1 - result.probability_of_improvement.high)
        shuffled = compare_pair(a[::-1, ::-1], b[::-1, ::-1])
        assert shuffled.p_value == exactly(result.p_value)
    assert found == {True, False}


def test_arms_without_the_same_seeds_and_questions_are_no_pair() -> None:
    with pytest.raises(ValueError, match=r"same seeds and questions.*\(3, 4\) and \(2, 4\)"):
        compare_pair(A, B[:2])
    with pytest.raises(ValueError, match=r"row per seed.*\(4,\)"):
        mean_accuracy(A[0])
    with pytest.raises(ValueError, match="empty"):
        mean_accuracy(np.empty((3, 0)))


def runs_at(*right: int) -> Answers:
    """Runs with so many right answers of 100."""
    return np.arange(100) < np.array(right)[:, None]


def test_the_interquartile_mean_is_the_middle_half_of_the_runs() -> None:
    assert interquartile_mean(runs_at(70, 72, 10, 74, 99)).value == exactly(0.72)
    assert interquartile_mean(runs_at(70, 72, 10, 74, 99, 71, 73, 1)).value == exactly((0.70 + 0.71 + 0.72 + 0.73) / 4)
    assert interquartile_mean(runs_at(60, 70, 95)).value == exactly(0.75)


def test_with_three_runs_the_interquartile_mean_is_the_mean() -> None:
    assert interquartile_mean(runs_at(60, 70, 95)) == mean_accuracy(runs_at(60, 70, 95))


def test_the_bootstrap_of_the_interquartile_mean_comes_near_all_resamples() -> None:
    """Of 0.74, 0.76, 0.78 and 0.80 there are 4⁴. No question is failed twice, which is less than by chance, so the
    questions have no part in the variance; the ends are Wilson's, as for an accuracy, with three degrees of freedom."""
    failed = np.repeat([0, 1, 2, 3, 4], [26, 24, 22, 20, 8])
    runs = failed != np.arange(4)[:, None]
    every = np.array(list(itertools.product(runs.mean(axis=1), repeat=4)))
    variance = np.sort(every, axis=1)[:, 1:3].mean(axis=1).var()
    result = interquartile_mean(runs, resamples=100_000)
    assert result.value == exactly(0.77)
    for end in (result.low, result.high):
        t_squared = (end - 0.77) ** 2 * (0.77 * 0.23) / (end * (1 - end)) / variance
        assert math.sqrt(t_squared) == pytest.approx(stats.t.ppf(0.975, 3), rel=0.01)
    assert interquartile_mean(runs) == interquartile_mean(runs, seed=0) != interquartile_mean(runs, seed=1)


def test_the_probability_of_improvement_counts_pairs_of_runs() -> None:
    """Of 9 pairs of runs a wins 6, and 2 are ties."""
    result = compare_pair(runs_at(70, 72, 74), runs_at(70, 74, 60)).probability_of_improvement
    assert result.value == exactly((5 + 2 / 2) / 9)
    assert compare_pair(A / 3, A / 7 * (7 / 3)).probability_of_improvement.value == 0.5


def test_the_interval_of_the_probability_of_improvement_ends_where_the_variance_says() -> None:
    """Hanley & McNeil's variance of the Mann-Whitney statistic at the end itself, with t for 2S − 2 degrees of freedom.
    Three runs that beat three others are no proof: chance does so in one ranking of 20."""
    result = compare_pair(runs_at(72, 73, 74), runs_at(69, 70, 71)).probability_of_improvement
    p, t = result.low, float(stats.t.ppf(0.975, 4))
    variance = (p * (1 - p) + 2 * (p / (2 - p) - p * p) + 2 * (2 * p * p / (1 + p) - p * p)) / 9
    assert (1 - p) ** 2 == pytest.approx(t * t * variance)
    assert p < 0.5
    assert result.high == 1


def test_a_gain_splits_into_reasoning_and_format() -> None:
    """Two runs of four questions. Strict: 0 → 5 of 8; flexible: 4 → 6 of 8, so the format did 3 of the 5."""
    strict_final = np.array([[1, 1, 1, 0], [1, 1, 0, 0]])
    flexible_initial = np.array([[1, 0, 0, 1], [1, 1, 0, 0]])
    flexible_final = np.array([[1, 1, 1, 0], [1, 1, 0, 1]])
    split = format_and_reasoning(np.zeros((2, 4)), flexible_initial, strict_final, flexible_final)
    assert (split.total.value, split.reasoning.value, split.format.value) == (5 / 8, 2 / 8, 3 / 8)
    assert split.total == gain(np.zeros((2, 4)), strict_final)
    assert split.reasoning == gain(flexible_initial, flexible_final)
    assert split.format == gain(-flexible_initial, strict_final - flexible_final)


def test_the_budget_to_reach_an_accuracy() -> None:
    """Halfway between evaluations, at the very first one, exactly on one, after a relapse, never, and not yet."""
    accuracy = [
        [0.1, 0.4, 0.6, 0.7],
        [0.5, 0.3, 0.6, 0.7],
        [0.1, 0.2, 0.5, 0.4],
        [0.1, 0.2, 0.4, 0.2],
        [0.1, 0.4, NAN, NAN],
    ]
    result = budget_to_reach([0, 10, 30, 40], accuracy, 0.5)
    assert result.runs == pytest.approx((20, 0, 30, NAN, NAN), nan_ok=True)
    assert result.reached == 3
    assert result.median == 30


def test_the_median_budget_counts_runs_that_never_arrived_as_the_worst() -> None:
    accuracy = [[0, 1.0], [0, 0.2], [0, 0.1]]
    assert budget_to_reach([0, 8], accuracy, 0.5).runs[0] == 4
    assert math.isnan(budget_to_reach([0, 8], accuracy, 0.5).median)
    assert math.isnan(budget_to_reach([0, 8], accuracy[:2], 0.5).median)


def test_each_run_may_have_a_budget_of_its_own() -> None:
    budget = [[0, 10, 20], [0, 100, 400]]
    accuracy = [[0, 0.4, 0.8], [0, 0.4, 0.8]]
    assert budget_to_reach(budget, accuracy, 0.6).runs == pytest.approx((15, 250))


def test_the_area_under_the_curve_is_the_mean_accuracy_over_the_budget() -> None:
    """One run on two questions: one is right from 30 on, the other in half of the samples throughout."""
    correct = np.array([[[0, 0.5], [1, 0.5], [1, 0.5]]])
    assert area_under_curve([0, 30, 40], correct).tolist() == [[pytest.approx((15 + 10) / 40), 0.5]]


def test_how_many_times_the_tokens_it_takes() -> None:
    """By seeds 2 and 4 times: a geometric mean of √8; by both questions, alike, there is nothing to add."""
    correct = np.repeat(np.array([0.0, 1.0])[None, :, None], 2, axis=0) * np.ones((2, 2, 40))
    ratio = budget_ratio([[0, 20], [0, 40]], correct, [[0, 10], [0, 10]], correct, 0.5)
    half = stats.t.ppf(0.975, 1) * math.log(2) / 2
    assert ratio.value == pytest.approx(math.sqrt(8))
    assert (ratio.low, ratio.high) == pytest.approx((math.sqrt(8) * math.exp(-half), math.sqrt(8) * math.exp(half)))
    never = correct * [[[1.0]], [[0.4]]]
    assert math.isnan(budget_ratio([0, 20], never, [0, 10], correct, 0.5).value)
    assert math.isnan(budget_ratio([0, 20], correct + 1, [0, 10], correct, 0.5).value), "it starts there"
    alone = budget_ratio([0, 20], correct[:1], [0, 10], correct[:1], 0.5)
    assert (alone.value, math.isnan(alone.low)) == (pytest.approx(2), True)


def test_the_interval_of_a_ratio_covers_it() -> None:
    """Both arms rise alike over 11 evaluations, each run at a pace of its own: no ratio but 1 is true."""
    rng = np.random.default_rng(0)
    tokens, hits = np.linspace(0, 1, 11), []
    for _ in range(300):
        difficulty = 2 * rng.standard_normal(64)
        courses = [
            (difficulty + 4 * (tokens[:, None] * pace - 0.5) + rng.standard_normal((5, 1, 64)) > 0).astype(float)
            for pace in rng.normal(1, 0.1, (2, 5, 1, 1))
        ]
        a, b = courses
        hits.append(covers(budget_ratio(tokens, a, tokens, b, 0.5), 1.0))
    assert 0.94 <= np.mean(hits) <= 0.995


def test_a_budget_that_goes_backwards_is_refused() -> None:
    with pytest.raises(ValueError, match="increase"):
        area_under_curve([0, 20, 10], np.zeros((2, 3, 4)))
    with pytest.raises(ValueError, match="increase"):
        budget_to_reach([0, 10, 10], np.zeros((2, 3)), 0.5)
