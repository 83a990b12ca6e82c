"""The verdict of a comparison in one sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rlvr_pl.report.analysis import Analysis, PairResult
from rlvr_pl.report.statistics import Estimate
from rlvr_pl.report.wording import interval, listed, p_value, points

SIGNIFICANT = 0.05


def verdict(analysis: Analysis) -> str:
    """Answer the comparison in one sentence of plain words, on strict final accuracy."""
    done, total = len(analysis.study.finished), len(analysis.study.runs)
    if not analysis.arms:
        return f"No verdict yet: none of the {total} runs has finished with both its first and its last evaluation."
    return _sentence(analysis, f"So far, with {done} of {total} runs finished: " if done < total else "")


def _sentence(analysis: Analysis, start: str) -> str:
    split = analysis.outcomes.split
    pairs = analysis.pairs_by("strict")
    if len(analysis.arms) == 1:
        only = analysis.arms[0]
        scores = only.scores["strict"]
        known = "" if math.isnan(scores.gain.low) else f" (95 % interval of the gain {interval(scores.gain)} points)"
        return (
            f"{start}{only.arm} went from {points(scores.initial.value)} % to {points(scores.final.value)} % {split} "
            f"accuracy{known}, and there is no other arm to compare it with."
        )
    if all(math.isnan(pair.comparison.p_value) for pair in pairs):
        finals = listed([f"{a.arm} {points(a.scores['strict'].final.value)} %" for a in analysis.arms])
        reason = "one seed cannot tell them apart" if pairs else "no seed was finished by two arms"
        return f"{start}No verdict on final {split} accuracy ({finals}): {reason}."
    won = [pair for pair in pairs if pair.holm < SIGNIFICANT]
    level = [pair for pair in pairs if not pair.holm < SIGNIFICANT]
    if not won:
        between = listed(list(dict.fromkeys(name for pair in level for name in (pair.a, pair.b))))
        text = f"no difference found between {between} in final {split} accuracy{_excluded(level)}."
    else:
        text = f"in final {split} accuracy {', and '.join(_win(pair, corrected=len(pairs) > 1) for pair in won)}"
        if level:
            between = " nor between ".join(f"{pair.a} and {pair.b}" for pair in level)
            text += f"; no difference was found between {between}{_excluded(level)}"
        text += "."
    return start + (text if start else text[0].upper() + text[1:])


def _win(pair: PairResult, corrected: bool) -> str:
    difference = pair.comparison.difference
    better, worse = (pair.a, pair.b) if difference.value > 0 else (pair.b, pair.a)
    if difference.value < 0:
        difference = Estimate(-difference.value, -difference.high, -difference.low)
    p = p_value(pair.holm) if pair.holm < 0.001 else f"= {p_value(pair.holm)}"
    p = f"p {p}".replace(" ", "\N{NO-BREAK SPACE}")
    return (
        f"{better} beat {worse} by {points(difference.value)} points (95 % interval {interval(difference)}; "
        f"{p}{' after Holm’s correction' if corrected else ''})"
    )


def _excluded(pairs: Sequence[PairResult]) -> str:
    """How large a difference the lack of one excludes: the largest over these pairs."""
    sizes = [pair.comparison.detectable for pair in pairs]
    if any(math.isnan(size) for size in sizes):
        return ""
    return f": a difference of {points(max(sizes))} points or more would have been found (with 80 % power)"
