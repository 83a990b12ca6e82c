"""The reference comparisons that come with the project, and what the page on comparing says of them."""

from __future__ import annotations

from benchmarks.referee import repeated_aa
from rlvr_pl.report.analysis import analyse
from rlvr_pl.report.departures import find_departures
from rlvr_pl.report.study import Study, load_study
from rlvr_pl.report.tables import accuracy_table, pair_table, tuning_table
from rlvr_pl.report.two_way import Estimate
from rlvr_pl.report.verdict import verdict
from rlvr_pl.report.wording import brackets, with_interval
from tests.helpers.paths import ROOT
from tests.helpers.texts import PAGES, README, in_one_line

REFERENCE = ROOT / "lightning_logs" / "reference"
PAGE = PAGES["comparing"]
LINE = in_one_line(PAGE)


def load_whole(name: str, runs: int) -> Study:
    """A reference comparison, of which every run has finished as was declared."""
    study = load_study(REFERENCE / name)
    assert study.problems == []
    assert len(study.finished) == runs
    assert find_departures(study) == []
    return study


def test_the_page_shows_the_results_of_the_embedded_comparison() -> None:
    study = load_whole("compare_embedded", runs=18)
    analysis = analyse(study)
    for method, accuracy, _, initial, final, gain, _ in accuracy_table(analysis).rows:
        assert f"| {method} | {accuracy} | {initial} | {final} | {gain} |" in PAGE
    pairs = [row for row in pair_table(analysis).rows if row[1] == "strict"]
    for pair, _, _, difference, *_ in pairs:
        assert f"{pair} {difference}" in LINE.replace("is ", "").replace(" points", "")
    for _, _, _, _, simultaneous, *_ in pairs:
        assert simultaneous in LINE
    assert verdict(analysis).startswith("In final test accuracy, GSPO and GRPO (+0.2 [−1.3, +1.7]), GSPO and DrGRPO")
    assert verdict(analysis).endswith("are equivalent within ±2.0 points.")
    areas = {(pair.a, pair.b): pair.area.difference for pair in analysis.efficiency_pairs}
    for arm, text in (
        ("GSPO", "8.4 points larger than GSPO's [6.2, 10.6]"),
        ("GRPO", "8.3 larger than GRPO's [4.7, 11.9]"),
    ):
        area = areas[arm, "DrGRPO"]
        assert text in LINE
        assert brackets(Estimate(-area.value, -area.high, -area.low)) in text
    tokens = {(pair.a, pair.b): pair.tokens for pair in analysis.efficiency_pairs}
    for threshold, times in ((0.3, "1.5"), (0.6, "1.3")):
        assert {f"{tokens[arm, 'DrGRPO'][threshold].value:.1f}" for arm in ("GSPO", "GRPO")} == {times}
    assert "to 30 % on `val` the others need 1.5 times its tokens, to 60 % 1.3 times" in LINE
    assert "to 30 % the others need 1.5 times its tokens" in in_one_line(README)
    assert "all three are equivalent within ±2 points" in in_one_line(README)
    rows: dict[str, list[str]] = {}
    for arm, _, mean, _, chosen in tuning_table(study).rows:
        rows.setdefault(arm, []).append(f"**{mean}**" if chosen else mean)
    for arm, means in rows.items():
        assert f"| {arm} | {' | '.join(means)} |" in PAGE


def test_the_controls_found_what_is_there_and_nothing_where_nothing_is() -> None:
    analysis = analyse(load_whole("compare_controls", runs=15))
    pairs = {(pair, metric): (difference, p) for pair, metric, _, difference, _, p, *_ in pair_table(analysis).rows}
    found, p = pairs["GRPO-a − GRPO-tenth", "strict"]
    assert p == "< .001"
    assert f"it is {found} behind, p {p}".replace("+", "") == "it is 32.9 [25.4, 40.4] behind, p < .001"
    assert "it is 32.9 points behind [25.4, 40.4], p < .001" in LINE
    found, p = pairs["GRPO-a − GRPO-tenth", "flexible"]
    assert f"{found}, p = {p}".replace("+", "") in LINE
    itself, p = pairs["GRPO-a − GRPO-b", "strict"]
    assert f"{itself}, p = {p}" in LINE.replace(" points", "")
    assert repeated_aa(REFERENCE / "compare_controls", ["GRPO-a", "GRPO-b"]) == "10 runs, 126 ways: p < .05 in 2.4%"
    assert "in 126 ways, and p falls under .05 in 2.4 % of these" in LINE


def test_the_page_shows_how_many_updates_a_rollout_bears() -> None:
    analysis = analyse(load_whole("compare_staleness", runs=12))
    areas = {efficiency.arm: with_interval(efficiency.area) for efficiency in analysis.efficiency}
    for arm, accuracy, _, _, final, *_ in accuracy_table(analysis).rows:
        if accuracy == "strict":
            assert f"| {arm} | {final} | {areas[arm]} |" in PAGE
    rows = {(pair, metric): rest for pair, metric, *rest in pair_table(analysis).rows}
    _, difference, _, p, *_ = rows["GRPO-1 − GRPO-4", "strict"]
    assert f"One update is far behind four: {difference}, p = {p}." in LINE.replace(" points", "")
    _, difference, _, p, *_ = rows["GRPO-4 − GRPO-8", "strict"]
    assert f"end {difference} lower, p = {p}".replace("+", "") == "end 3.5 [0.5, 6.6] lower, p = .039"
    assert "end 3.5 points lower [0.5, 6.6], p = .039" in LINE
    assert all(float(p) > 0.05 for _, _, _, _, p, *_ in rows.values()), "corrected for all pairs"
    area = next(pair.area.difference for pair in analysis.efficiency_pairs if (pair.a, pair.b) == ("GRPO-4", "GRPO-8"))
    assert with_interval(Estimate(-area.value, -area.high, -area.low)) == "4.9 [1.2, 8.6]"
    assert "with an area 4.9 points larger [1.2, 8.6]" in LINE
    _, _, simultaneous, *_ = rows["GRPO-1 − GSPO-1", "strict"]
    assert f"−0.1 points {simultaneous} for all pairs: equivalent" in LINE
    assert verdict(analysis).startswith("In final test accuracy, GRPO-1 and GSPO-1 (−0.1 [−1.7, +1.4]) are equivalent")


def test_with_one_update_a_rollout_gspo_answered_as_grpo_did() -> None:
    """Stored completions are those of the last checkpoint; of the other evaluations answers and lengths are."""
    same = {}
    for seed in (10, 11, 12):
        one, other = (
            REFERENCE / "compare_staleness" / arm / f"seed_{seed}" / "evaluations" for arm in ("GRPO-1", "GSPO-1")
        )
        names = sorted(file.name for file in one.iterdir() if file.name != "test-000000.jsonl")
        same[seed] = [name for name in names if (one / name).read_text() == (other / name).read_text()]
    assert len(names) == 12
    assert [len(same[seed]) for seed in (10, 11, 12)] == [7, 12, 12]
    assert same[10][-1] == "val-000024.jsonl"
