"""The verdict of a comparison in one sentence.

It stands on the intervals of the differences, which hold together for all pairs of arms: one arm is better than another
where its interval lies beyond 0; they are equivalent where it lies within the margin, ±δ, that the comparison declares;
else the pair is undecided, and the interval says what is excluded. Where an arm lost more of its runs than the other,
those that are left are a choice of the better ones, and neither is called better. A study that departs from what was
declared before its first run is called exploratory.
"""

from __future__ import annotations

import math

from rlvr_pl.report.analysis import Analysis, PairResult
from rlvr_pl.report.departures import find_departures
from rlvr_pl.report.judging import where_answers_stand
from rlvr_pl.report.two_way import Estimate
from rlvr_pl.report.wording import interval, listed, p_value, points, with_interval


def verdict(analysis: Analysis) -> str:
    """Answer the comparison in one sentence of plain words, by the primary outcome."""
    done, total = len(analysis.study.finished), len(analysis.study.runs)
    if not analysis.arms:
        return f"No verdict yet: none of the {total} runs has finished with both its first and its last evaluation."
    if analysis.study.interim and len(analysis.arms) > 1:
        return (
            f"No verdict yet: {done} of {total} runs have finished ({_finals(analysis)} {analysis.outcomes.split} "
            "accuracy), and who looks before the end finds differences that are none."
        )
    split = analysis.outcomes.split
    pairs = analysis.primary
    if len(analysis.arms) == 1:
        return _one_arm(analysis)
    if all(math.isnan(pair.comparison.p_value) for pair in pairs):
        reason = "one seed cannot tell them apart" if pairs else "no seed was finished by two arms"
        return f"No verdict on final {split} accuracy ({_finals(analysis)}): {reason}."
    margin = analysis.study.margin
    failed = analysis.study.failed
    spoilt = [pair for pair in pairs if _is_beyond_zero(pair) and failed[pair.a] != failed[pair.b]]
    better = [pair for pair in pairs if _is_beyond_zero(pair) and pair not in spoilt]
    level = [pair for pair in pairs if not _is_beyond_zero(pair)]
    equivalent = [pair for pair in level if _is_within(pair, margin)]
    undecided = [pair for pair in level if not _is_within(pair, margin)]
    parts = [_win(pair, corrected=len(pairs) > 1) for pair in better]
    if equivalent:
        parts.append(f"{_named(equivalent)} are equivalent within ±{points(margin)} points")
    if undecided:
        parts.append(f"{_named(undecided)} are undecided")
    if spoilt:
        arms = dict.fromkeys(arm for pair in spoilt for arm in (pair.a, pair.b))
        counts = listed([f"{failed[arm]} of {arm}" for arm in arms])
        parts.append(f"{_named(spoilt)} cannot be compared, for not as many runs failed: {counts}")
    start = "Exploratory: in" if find_departures(analysis.study) else "In"
    return f"{start} final {split} accuracy{_by(analysis)}, {'; '.join(parts)}."


def _by(analysis: Analysis) -> str:
    return "" if analysis.study.rules.metric == "strict" else f" by {where_answers_stand(analysis.study)[1]}"


def _one_arm(analysis: Analysis) -> str:
    (only,) = analysis.arms
    scores = only.scores[analysis.study.rules.metric]
    done, total = len(analysis.study.finished), len(analysis.study.runs)
    start = f"So far, with {done} of {total} runs finished: " if analysis.study.interim else ""
    known = "" if math.isnan(scores.gain.low) else f" (95 % interval of the gain {interval(scores.gain)} points)"
    return (
        f"{start}{only.arm} went from {points(scores.initial.value)} % to {points(scores.final.value)} % "
        f"{analysis.outcomes.split} accuracy{known}, and there is no other arm to compare it with."
    )


def _finals(analysis: Analysis) -> str:
    return listed(
        [f"{arm.arm} {points(arm.scores[analysis.study.rules.metric].final.value)} %" for arm in analysis.arms]
    )


def _is_beyond_zero(pair: PairResult) -> bool:
    estimate = pair.comparison.simultaneous
    return estimate.low > 0 or estimate.high < 0


def _is_within(pair: PairResult, margin: float) -> bool:
    estimate = pair.comparison.simultaneous
    return -margin < estimate.low and estimate.high < margin


def _named(pairs: list[PairResult]) -> str:
    *others, last = [
        f"{pair.a} and {pair.b} ({with_interval(pair.comparison.simultaneous, signed=True)})" for pair in pairs
    ]
    return f"{', '.join(others)} as well as {last}" if others else last


def _win(pair: PairResult, corrected: bool) -> str:
    difference = pair.comparison.simultaneous
    better, worse = (pair.a, pair.b) if difference.value > 0 else (pair.b, pair.a)
    if difference.value < 0:
        difference = Estimate(-difference.value, -difference.high, -difference.low)
    p = pair.comparison.corrected_p_value
    p_text = f"p {p_value(p) if p < 0.001 else f'= {p_value(p)}'}".replace(" ", "\N{NO-BREAK SPACE}")
    return (
        f"{better} beat {worse} by {points(difference.value)} points (95 % interval {interval(difference)}; "
        f"{p_text}{', both for all pairs' if corrected else ''})"
    )
