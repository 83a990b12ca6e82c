"""Numbers as people read them, and the verdict in one sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rlvr_pl.compare.analysis import Analysis, PairResult
from rlvr_pl.compare.statistics import Estimate

SIGNIFICANT = 0.05
MISSING = "–"


def points(share: float, signed: bool = False) -> str:
    """``0.0234`` → ``2.3``."""
    if math.isnan(share):
        return MISSING
    text = f"{100 * share:{'+' if signed else ''}.1f}"
    return text.replace("-", "−")


def interval(estimate: Estimate) -> str:
    """``1.1 to 3.5``, in points."""
    return f"{points(estimate.low)} to {points(estimate.high)}"


def with_interval(estimate: Estimate, signed: bool = False) -> str:
    """``2.3 [1.1, 3.5]``, in points; without brackets where there is no interval."""
    value = points(estimate.value, signed)
    if math.isnan(estimate.low) or math.isnan(estimate.high):
        return value
    return f"{value} [{points(estimate.low, signed)}, {points(estimate.high, signed)}]"


def p_value(p: float) -> str:
    """``.004``, ``.32``, ``< .001``."""
    if math.isnan(p):
        return MISSING
    if p < 0.001:
        return "< .001"
    return (f"{p:.3f}" if p < 0.1 else f"{p:.2f}").removeprefix("0")


def amount(value: float | None) -> str:
    """``254,839``."""
    return MISSING if value is None or math.isnan(value) else f"{value:,.0f}"


def names(items: Sequence[str]) -> str:
    """``A, B and C``."""
    return " and ".join(filter(None, [", ".join(items[:-1]), items[-1]]))


def verdict(analysis: Analysis) -> str:
    """The answer of the comparison in one sentence of plain words, on strict final accuracy."""
    done, total = len(analysis.study.finished), len(analysis.study.runs)
    if not analysis.arms:
        return f"No verdict yet: none of the {total} runs has finished with records of both its ends."
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
        finals = names([f"{a.arm} {points(a.scores['strict'].final.value)} %" for a in analysis.arms])
        reason = "one seed cannot tell them apart" if pairs else "no seed was finished by two arms"
        return f"{start}No verdict on final {split} accuracy ({finals}): {reason}."
    won = [pair for pair in pairs if pair.holm < SIGNIFICANT]
    level = [pair for pair in pairs if not pair.holm < SIGNIFICANT]
    if not won:
        between = names(list(dict.fromkeys(name for pair in level for name in (pair.a, pair.b))))
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
