"""The reference comparisons that come with the project, and what the page on comparing says of them."""

from __future__ import annotations

import pandas as pd

from rlvr_pl.report.analysis import analyse
from rlvr_pl.report.departures import find_departures
from rlvr_pl.report.study import load_study
from rlvr_pl.report.tables import accuracy_table, pair_table, tuning_table
from rlvr_pl.report.two_way import Estimate
from rlvr_pl.report.verdict import verdict
from rlvr_pl.report.wording import brackets, p_value, with_interval
from tests.helpers.paths import ROOT
from tests.helpers.texts import PAGES, README, in_one_line

REFERENCE = ROOT / "lightning_logs" / "reference"
PAGE = PAGES["comparing"]
LINE = in_one_line(PAGE)


def test_the_page_shows_the_results_of_the_embedded_comparison() -> None:
    study = load_study(REFERENCE / "compare_embedded")
    assert study.problems == []
    assert len(study.finished) == 18
    assert find_departures(study) == []
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


def test_the_page_shows_the_result_of_the_aa_study() -> None:
    pairs = pd.read_csv(REFERENCE / "compare_aa" / "data" / "pairs.csv").set_index("metric")
    strict = pairs.loc["strict"]
    difference = with_interval(Estimate(strict["difference"], strict["low"], strict["high"]), signed=True)
    assert f"{difference}, p = {p_value(strict['p'])}" in LINE.replace(" points", "")
    assert (pairs["p"] > 0.05).all()
