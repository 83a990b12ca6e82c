"""The report: its verdict, its numbers against ones worked by hand, and its files."""

from __future__ import annotations

import html
import math
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from rlvr_pl.data import EmbeddedProblems
from rlvr_pl.report import figures, tables
from rlvr_pl.report.analysis import Analysis, PairResult, analyse, tidy_summary
from rlvr_pl.report.examples import find_examples
from rlvr_pl.report.page import write_report
from rlvr_pl.report.statistics import PairedComparison, compare_pair, mean_accuracy
from rlvr_pl.report.study import load_study
from rlvr_pl.report.two_way import Estimate
from rlvr_pl.report.verdict import verdict
from rlvr_pl.report.wording import p_value, points, with_interval
from rlvr_pl.rewards import gold_answer
from rlvr_pl.run.terminal import visible
from tests.helpers.studies import write_evaluation, write_plan, write_run, write_scalars

T, F = True, False
SMALL: dict[str, Any] = {"val_questions": 4, "rollouts": 4, "val_every": 2}
NASTY = (
    "<answer>{0}</answer>\n```\n<script src=\"https://evil.example/x.js\">alert('|')</script>\n\x1b[2J\r\u202e\x9b\n"
)
# Verdicts of 3 seeds on 4 questions, before and after.
BEFORE = [F, F, F, T]
AFTER = {
    "GSPO": [[T, T, T, F], [T, T, F, F], [T, T, T, T]],
    "DrGRPO": [[T, F, F, F], [T, F, T, F], [T, T, F, F]],
}
SECONDS = {"wall/rollout_s": 2.0, "wall/update_s": 0.5, "train/tokens_mean": 10.0}


def write_small(folder: Path, text: str = NASTY, **settings: Any) -> Path:
    for arm, finals in AFTER.items():
        for seed, final in enumerate(finals):
            own = SMALL | {"initial": BEFORE, "final": final, "questions": 4, "scalars": SECONDS} | settings
            run = write_run(folder, arm, seed, text=text, **own)
            course = {0: 0.0, 2: 0.5, 4: 1.0} if arm == "GSPO" else {0: 0.0, 2: 0.25, 4: 0.5}
            write_scalars(run, {"val/accuracy": course})
            for rollout, share in course.items():
                write_evaluation(run, "val", rollout, [place < 4 * share for place in range(4)], text=text)
    write_plan(folder, list(AFTER), [0, 1, 2], thresholds=(25.0, 45.0))
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished comparison whose numbers can be worked by hand, with its report."""
    folder = write_small(tmp_path_factory.mktemp("small"))
    assert write_report(folder) == folder / "report.html"
    return folder


@pytest.fixture(scope="module")
def analysis(small: Path) -> Analysis:
    return analyse(load_study(small))


# Numbers


def test_accuracies_by_hand(analysis: Analysis) -> None:
    """GSPO: (3 + 2 + 4) of 12; DrGRPO: (1 + 2 + 2) of 12; before: 1 of 4 in every run."""
    rows = {row[0]: row for row in tables.accuracy_table(analysis).rows if row[1] == "strict"}
    for arm, final, change in (("GSPO", "75.0", "+50.0"), ("DrGRPO", "41.7", "+16.7")):
        estimate = mean_accuracy(np.array(AFTER[arm], dtype=float))
        assert rows[arm][:3] == [arm, "strict", "3"]
        assert rows[arm][3].startswith("25.0 [")
        assert rows[arm][4] == f"{final} [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"
        assert rows[arm][5].startswith(f"{change} [")


def test_a_pair_by_hand(analysis: Analysis) -> None:
    """By seeds GSPO has .75, .5, 1 and DrGRPO .25, .5, .5: of 9 pairs of runs 7 are won and 2 are level."""
    (row,) = (row for row in tables.pair_table(analysis).rows if row[1] == "strict")
    expected = compare_pair(np.array(AFTER["GSPO"], dtype=float), np.array(AFTER["DrGRPO"], dtype=float))
    assert row[0] == "GSPO − DrGRPO"
    assert row[3] == with_interval(expected.difference, signed=True)
    assert row[3].startswith("+33.3 [")
    assert f"{points(expected.difference.value, signed=True)} {row[4]}" == row[3]  # of one pair they are the same
    assert row[5] == row[6] == p_value(expected.p_value)
    assert row[7].startswith("88.9 [")


def test_efficiency_by_hand(analysis: Analysis) -> None:
    """To the declared 25 and 45 %, linear between evaluations.

    A rollout is 256 samples, 2,560 tokens and 2.5 s.
    """
    table = tables.efficiency_table(analysis)
    assert list(table.columns) == [
        *("arm", "area under the curve"),
        *("tokens to 25 %", "samples to 25 %", "seconds to 25 %"),
        *("tokens to 45 %", "samples to 45 %", "seconds to 45 %"),
    ]
    gspo, drgrpo = table.rows
    assert gspo[1].startswith("50.0 [")
    assert drgrpo[1].startswith("25.0 [")
    assert gspo[2:] == ["2,560", "256", "2", "4,608", "461", "4"]
    assert drgrpo[2:] == ["5,120", "512", "5", "9,216", "922", "9"]


def test_courses_by_hand(analysis: Analysis) -> None:
    """By questions the areas are 3/4, 3/4, 1/4, 1/4 and 3/4, 1/4, 0, 0 in every run; GSPO takes half the tokens."""
    (row,) = tables.course_table(analysis).rows
    expected = compare_pair(np.array([[3, 3, 1, 1]] * 3) / 4, np.array([[3, 1, 0, 0]] * 3) / 4)
    assert row[:2] == ["GSPO − DrGRPO", "3"]
    assert row[2].startswith(with_interval(expected.difference, signed=True))
    assert row[2].startswith("+25.0 [")
    (pair,) = analysis.efficiency_pairs
    assert {target: ratio.value for target, ratio in pair.tokens.items()} == pytest.approx({0.25: 0.5, 0.45: 0.5})
    assert row[3].startswith("× 0.50 [")


def test_lengths_by_hand(tmp_path: Path) -> None:
    """A record has 40 tokens and its question's number more; A's wrong ones are questions 2, 3 and, in seed 1, 3."""
    for seed, final in enumerate(([T, T, F, F], [T, T, T, F])):
        write_run(tmp_path, "A", seed, final=final, questions=4, **SMALL)
        write_run(tmp_path, "B", seed, final=[F, F, F, T], questions=4, **SMALL)
    of_a, of_b, difference = tables.length_table(analyse(load_study(tmp_path))).rows
    half = 12.706 * (43 - 42.5) / 2  # Student's t of one degree of freedom
    assert of_a == ["A", f"42.8 [{42.75 - half:.1f}, {42.75 + half:.1f}]", "40.8 [37.6, 43.9]"]
    assert of_b == ["B", "41.0 [41.0, 41.0]", "43.0 [43.0, 43.0]"]
    assert difference[0] == "A − B"
    assert difference[1].startswith("1.8 [")
    assert difference[2].startswith("−2.2 [")


def test_undeclared_thresholds_are_not_made_up(tmp_path: Path) -> None:
    write_run(tmp_path, "A", 0, final=[T, T, T, T], questions=4, **SMALL)
    table = tables.efficiency_table(analyse(load_study(tmp_path)))
    assert list(table.columns) == ["arm", "area under the curve"]
    assert "No thresholds were declared" in table.caption


def test_flips_by_hand(analysis: Analysis) -> None:
    """GSPO's runs fix 3, 2 and 3 of the first three questions and break the last in two runs of three."""
    rows = {row[0]: row[2:] for row in tables.flip_table(analysis).rows if row[1] == "strict"}
    assert rows["GSPO"] == ["2.7", "0.7", "0.3", "0.3"]
    assert rows["DrGRPO"] == ["1.7", "1.0", "0.0", "1.3"]


def test_budgets_by_hand(analysis: Analysis) -> None:
    rows = tables.budget_table(analysis.study).rows
    assert rows[0] == ["GSPO", "3 of 3", "4", "1,024", "41,984", "16", "24", "33"]


def test_the_gain_splits_into_answers_and_format(tmp_path: Path) -> None:
    """Strict 0 → 3 of 4; flexible 2 → 3 of 4: of 75 points 25 are better answers and 50 are format."""
    for seed in range(2):
        strict: dict[str, Any] = {"initial": [F, F, F, F], "final": [T, T, T, F]}
        write_run(tmp_path, "A", seed, **strict, flexible_initial=[T, T, F, F], questions=4, **SMALL)
    (row,) = tables.gain_table(analyse(load_study(tmp_path))).rows
    assert [cell.split(" ")[0] for cell in row] == ["A", "+75.0", "+25.0", "+50.0"]


def test_pairs_are_over_the_seeds_that_both_finished(tmp_path: Path) -> None:
    write_run(tmp_path, "A", 0, final=[T, T, T, T], questions=4, **SMALL)
    write_run(tmp_path, "A", 1, final=[T, T, F, F], questions=4, **SMALL)
    write_run(tmp_path, "B", 1, final=[T, F, F, F], questions=4, **SMALL)
    write_run(tmp_path, "B", 2, final=[F, F, F, F], questions=4, **SMALL)
    pair = analyse(load_study(tmp_path)).pairs[0]
    assert pair.seeds == [1]
    assert pair.comparison.difference.value == 0.25
    assert math.isnan(pair.comparison.p_value)


def test_the_summary_is_tidy(small: Path, analysis: Analysis) -> None:
    summary = tidy_summary(analysis).set_index(["arm", "metric", "quantity"])["value"]
    assert summary["GSPO", "strict", "final"] == 0.75
    assert summary["DrGRPO", "strict", "gain"] == pytest.approx(1 / 6)
    assert summary["GSPO", "strict", "area under the val curve"] == 0.5
    written = pd.read_csv(small / "data/summary.csv").set_index(["arm", "metric", "quantity"])["value"]
    pd.testing.assert_series_equal(written, summary)


# The verdict


def with_pairs(analysis: Analysis, *pairs: tuple[str, str, Estimate, float]) -> Analysis:
    """Pairs by their simultaneous intervals and their corrected p-values."""
    unused = Estimate(0.5, 0.1, 0.9)
    results = [
        PairResult(a, b, "strict", [0, 1, 2], PairedComparison(unused, difference, 0.5, p, unused))
        for a, b, difference, p in pairs
    ]
    return replace(analysis, pairs=results)


def plain(text: str) -> str:
    return text.replace("\N{NO-BREAK SPACE}", " ")


def test_verdict_of_a_win(analysis: Analysis) -> None:
    won = with_pairs(analysis, ("GSPO", "DrGRPO", Estimate(0.023, 0.011, 0.035), 0.004))
    assert plain(verdict(won)) == (
        "In final test accuracy, GSPO beat DrGRPO by 2.3 points (95 % interval 1.1 to 3.5; p = .004)."
    )
    lost = with_pairs(analysis, ("GSPO", "DrGRPO", Estimate(-0.023, -0.035, -0.011), 1e-5))
    assert plain(verdict(lost)) == (
        "In final test accuracy, DrGRPO beat GSPO by 2.3 points (95 % interval 1.1 to 3.5; p < .001)."
    )


def test_verdict_of_three_arms(analysis: Analysis) -> None:
    """Better, equivalent or undecided, by where the interval lies; better comes first, however little it is."""
    wide, narrow = Estimate(0.01, -0.02, 0.04), Estimate(-0.004, -0.017, 0.009)
    mixed = with_pairs(
        analysis,
        ("A", "B", narrow, 0.5),
        ("A", "C", Estimate(0.05, 0.03, 0.07), 0.003),
        ("B", "C", wide, 0.3),
    )
    assert plain(verdict(mixed)) == (
        "In final test accuracy, A beat C by 5.0 points (95 % interval 3.0 to 7.0; p = .003, both for all pairs); "
        "A and B (−0.4 [−1.7, +0.9]) are equivalent within ±2.0 points; B and C (+1.0 [−2.0, +4.0]) are undecided."
    )
    none = with_pairs(analysis, ("A", "B", wide, 1), ("A", "C", wide, 0.5), ("B", "C", Estimate(0, 0, 0), 1))
    assert plain(verdict(none)) == (
        "In final test accuracy, B and C (0.0 [0.0, 0.0]) are equivalent within ±2.0 points; "
        "A and B (+1.0 [−2.0, +4.0]) as well as A and C (+1.0 [−2.0, +4.0]) are undecided."
    ).replace("(0.0 [0.0, 0.0])", "(+0.0 [+0.0, +0.0])")
    strict = replace(none, study=replace(none.study, comparison={"margin": 5}))
    assert "as well as B and C (+0.0 [+0.0, +0.0]) are equivalent within ±5.0 points." in plain(verdict(strict))
    small = with_pairs(analysis, ("A", "B", Estimate(0.005, 0.001, 0.009), 0.01))
    assert "A beat B by 0.5 points" in verdict(small)


def test_no_arm_is_better_where_another_lost_more_of_its_runs(analysis: Analysis) -> None:
    runs = analysis.study.runs.copy()
    runs.loc[(runs.arm == "DrGRPO") & (runs.seed == 2), "state"] = "failed"
    won = with_pairs(analysis, ("GSPO", "DrGRPO", Estimate(0.023, 0.011, 0.035), 0.004))
    assert plain(verdict(replace(won, study=replace(won.study, runs=runs)))) == (
        "In final test accuracy, GSPO and DrGRPO (+2.3 [+1.1, +3.5]) cannot be compared, for not as many runs failed: "
        "0 of GSPO and 1 of DrGRPO."
    )
    runs.loc[(runs.arm == "GSPO") & (runs.seed == 1), "state"] = "failed"
    assert "GSPO beat DrGRPO" in verdict(replace(won, study=replace(won.study, runs=runs)))


def test_verdict_while_runs_go_on(analysis: Analysis) -> None:
    runs = analysis.study.runs.copy()
    runs.loc[0, "state"] = "training"
    going = replace(
        with_pairs(analysis, ("A", "B", Estimate(0.3, 0.2, 0.4), 1e-5)), study=replace(analysis.study, runs=runs)
    )
    assert plain(verdict(going)) == (
        "No verdict yet: 5 of 6 runs have finished (GSPO 75.0 % and DrGRPO 41.7 % test accuracy), and who looks before "
        "the end finds differences that are none."
    )
    assert verdict(replace(going, arms=[])) == (
        "No verdict yet: none of the 6 runs has finished with both its first and its last evaluation."
    )


def test_verdict_on_one_arm_and_on_one_seed(tmp_path: Path) -> None:
    write_run(tmp_path, "A", 0, initial=[F, F, F, F], final=[T, F, F, F], questions=4, **SMALL)
    assert verdict(analyse(load_study(tmp_path))) == (
        "A went from 0.0 % to 25.0 % test accuracy, and there is no other arm to compare it with."
    )
    write_run(tmp_path, "B", 0, final=[T, T, T, F], questions=4, **SMALL)
    assert verdict(analyse(load_study(tmp_path))) == (
        "No verdict on final test accuracy (A 25.0 % and B 75.0 %): one seed cannot tell them apart."
    )


@pytest.mark.parametrize(
    ("p", "text"),
    [(0.0004, "< .001"), (0.0042, ".004"), (0.0499, ".050"), (0.32, ".32"), (1.0, "1.00"), (math.nan, "–")],
)
def test_p_values_as_text(p: float, text: str) -> None:
    assert p_value(p) == text


# Examples


def test_examples_are_what_each_arm_leads_in(analysis: Analysis) -> None:
    """GSPO leads by 2/3 in questions 1, 2 (1/3) and 3 (1/3); DrGRPO leads in none."""
    examples = find_examples(analysis.study, analysis.outcomes)
    assert [(e.question, e.why, e.gold, e.text) for e in examples] == [
        (1, "GSPO ahead of the others", "1", None),
        (2, "GSPO ahead of the others", "2", None),
        (3, "GSPO ahead of the others", "3", None),
    ]
    before, gspo, drgrpo = examples[0].answers
    assert (before.who, before.solved, before.right) == ("before training", "0 of 3", False)
    assert (gspo.who, gspo.seed, gspo.solved, gspo.right) == ("GSPO", 0, "3 of 3", True)
    assert (drgrpo.who, drgrpo.seed, drgrpo.solved, drgrpo.right) == ("DrGRPO", 0, "1 of 3", False)
    assert gspo.completion == NASTY.format(1)
    # Of question 3 GSPO's usual verdict is wrong: the run shown is seed 0, not seed 2 that has it right.
    assert (examples[2].answers[1].seed, examples[2].answers[1].right) == (0, False)


@pytest.mark.parametrize("right_source", [True, False])
def test_question_texts_only_from_the_very_source(right_source: bool, tmp_path: Path) -> None:
    """The golds of the records must be the source's, or its texts belong to other questions."""
    rows: Any = EmbeddedProblems(test_size=4)("test")
    run = write_run(tmp_path, "A", 0, config={"data.source": "embedded"}, questions=4, **SMALL)
    for rollout, right in ((0, F), (4, T)):
        path = write_evaluation(run, "test", rollout, [right] * 4)
        text = path.read_text()
        for number, row in enumerate(rows if right_source else rows[::-1]):
            text = text.replace(f'"gold": "{number}"', f'"gold": "g{gold_answer(row["answer"])}"')
        path.write_text(text.replace('"gold": "g', '"gold": "'))
    study = load_study(tmp_path)
    texts = [e.text for e in find_examples(study, analyse(study).outcomes)]
    assert texts == ([row["question"] for row in rows] if right_source else [None] * 4)


# The page


class Page(HTMLParser):
    """Collects what a browser would fetch or run, and checks that tags nest."""

    VOID = ("meta", "link", "img", "input", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.images_without_text = 0
        self.headers_without_scope = 0
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append(tag)
        self.links += [str(values[name]) for name in ("src", "href", "srcset", "action", "data") if name in values]
        self.images_without_text += tag == "img" and not values.get("alt")
        self.headers_without_scope += tag == "th" and values.get("scope") not in ("row", "col")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def page(small: Path) -> str:
    return (small / "report.html").read_text(encoding="utf-8")


def test_the_page_is_one_sound_file(page: str) -> None:
    parsed = Page(page)
    assert parsed.open == []
    assert "script" not in parsed.tags
    assert parsed.images_without_text == 0
    assert parsed.headers_without_scope == 0
    assert parsed.tags.count("table") >= 9
    assert parsed.tags.count("img") == len(re.findall(r'src="data:image/png;base64,', page)) >= 15
    outside = [link for link in parsed.links if not link.startswith("data")]
    assert outside == []
    assert not re.search(r"url\(|@import", page)


def test_completions_are_text_and_nothing_else(page: str) -> None:
    assert "<script" not in page
    assert "&lt;script src=&#34;https://evil.example/x.js&#34;&gt;" in page


@pytest.mark.parametrize("name", ["report.html", "report.md"])
def test_control_characters_are_shown_and_not_sent(name: str, small: Path) -> None:
    text = (small / name).read_bytes().decode()
    assert r"\x1b[2J\r\u202e\x9b" in text
    assert set("\x1b\r\u202e\x9b").isdisjoint(text)


def test_the_page_says_what_the_tables_say(page: str, analysis: Analysis) -> None:
    text = html.unescape(re.sub(r"<[^>]+>", " ", page))
    assert verdict(analysis) in text
    assert "Fewer than 5 seeds." in text
    for table in (tables.accuracy_table(analysis), tables.pair_table(analysis), tables.flip_table(analysis)):
        for row in table.rows:
            for cell in row:
                assert cell in text
    assert "model.loss.init_args.clip_low" in text
    assert "0123456789abcdef" in text
    assert "python -m rlvr_pl compare --config compare.yaml" in text


def test_markdown_says_the_same_and_its_links_lead_somewhere(small: Path, analysis: Analysis) -> None:
    text = (small / "report.md").read_text(encoding="utf-8")
    for line in (verdict(analysis), *("| " + " | ".join(row) for row in tables.pair_table(analysis).rows)):
        assert line.replace("[", r"\[").replace("]", r"\]").replace("<", r"\<") in text
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    assert len(targets) > 20
    assert [target for target in targets if not (small / target).is_file()] == []
    assert {f"figures/{file.name}" for file in (small / "figures").iterdir()} <= set(targets)


def test_markdown_keeps_completions_in_their_block(small: Path) -> None:
    """Nasty ones hold a fence of their own, and a tag."""
    text = (small / "report.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^(`{3,})text\n(.*?)\n\1$", text, flags=re.MULTILINE | re.DOTALL)
    assert visible(NASTY.format(1)).rstrip() in [content for _, content in blocks]
    outside = re.sub(r"^(`{3,})text\n(.*?)\n\1$", "", text, flags=re.MULTILINE | re.DOTALL)
    assert "<script" not in outside


def test_tables_of_markdown_have_as_many_cells_in_every_row(small: Path) -> None:
    text = (small / "report.md").read_text(encoding="utf-8")
    tables_found = re.findall(r"(?:^\|.*\|\n)+", text, flags=re.MULTILINE)
    assert len(tables_found) >= 9
    for table in tables_found:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_data_comes_out_tidy(small: Path) -> None:
    study = load_study(small)
    for name, frame in (("evaluations", study.evaluations), ("curves", study.curves)):
        written = pd.read_parquet(small / f"data/{name}.parquet")
        pd.testing.assert_frame_equal(written, frame, check_dtype=False)
        assert len(pd.read_csv(small / f"data/{name}.csv")) == len(frame)
    assert pd.read_csv(small / "data/runs.csv")["arm"].tolist() == ["GSPO"] * 3 + ["DrGRPO"] * 3
    assert not list(small.rglob("*.unfinished"))


def test_a_report_while_runs_go_on(tmp_path: Path) -> None:
    """It replaces the last one, and takes away figures that it no longer has."""
    run = write_run(tmp_path, "A", 0, done=2, questions=4, **SMALL)
    write_run(tmp_path, "$B_x|$\\frac$", 0, done=2, questions=4, **SMALL)
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures/flips_strict.png").write_bytes(b"of an earlier report")
    (run / "evaluations/val-000002.jsonl").write_text('{"question": 0, "sam')
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "No verdict yet: none of the 2 runs has finished" in page
    assert "2 of 2 runs are not finished" in page
    assert "its last line is torn; the other 0 records are used" in page
    assert not (tmp_path / "figures/flips_strict.png").exists()
    assert (tmp_path / "figures/train_reward.png").stat().st_size > 5_000
    assert Page(page).open == []


def test_arms_look_different_without_colour() -> None:
    styles = figures.styles([f"arm {i}" for i in range(35)])
    assert len({(s.line, s.marker) for s in styles.values()}) == 35


# In a real browser

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_overflows(width: int, page: str, tmp_path: Path) -> None:
    """The page stands in a frame of that width, since a window of a headless Chromium has a least width."""
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<iframe width="{width}" height="800" style="border:0" srcdoc="{html.escape(page)}"></iframe>'
        '<p id="found"></p>'
        "<script>onload = () => {"
        "  const inside = document.querySelector('iframe').contentWindow, root = inside.document.documentElement;"
        "  for (const details of root.querySelectorAll('details')) details.open = true;"
        "  document.querySelector('#found').textContent ="
        "    `${inside.innerWidth} ${root.scrollWidth} ${root.querySelectorAll('img').length}`;"
        "}</script>",
        encoding="utf-8",
    )
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--enable-logging=stderr",
    ]
    flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    flags += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,900", "--dump-dom"]
    done = subprocess.run(
        [str(CHROMIUM), *flags, frame.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    found = re.search(r'<p id="found">(\d+) (\d+) (\d+)</p>', done.stdout)
    assert found is not None
    inner, needed, images = map(int, found.groups())
    assert inner == width
    assert needed <= inner
    assert images >= 15
    assert "CONSOLE" not in done.stderr
