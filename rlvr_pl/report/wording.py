"""Numbers and lists as people read them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rlvr_pl.report.two_way import Estimate

MISSING = "–"


def points(share: float, signed: bool = False) -> str:
    """Write ``0.0234`` as ``2.3``."""
    if math.isnan(share):
        return MISSING
    text = f"{100 * share:{'+' if signed else ''}.1f}"
    return text.replace("-", "−")


def interval(estimate: Estimate) -> str:
    """Write ``1.1 to 3.5``, in points."""
    return f"{points(estimate.low)} to {points(estimate.high)}"


def brackets(estimate: Estimate, signed: bool = False) -> str:
    """Write ``[1.1, 3.5]``, in points; nothing where there is no interval."""
    if math.isnan(estimate.low) or math.isnan(estimate.high):
        return ""
    return f"[{points(estimate.low, signed)}, {points(estimate.high, signed)}]"


def with_interval(estimate: Estimate, signed: bool = False) -> str:
    """Write ``2.3 [1.1, 3.5]``, in points; without brackets where there is no interval."""
    return f"{points(estimate.value, signed)} {brackets(estimate, signed)}".rstrip()


def times(ratio: Estimate) -> str:
    """Write ``× 1.32 [1.10, 1.58]``; without brackets where there is no interval."""
    if math.isnan(ratio.value):
        return MISSING
    within = "" if math.isnan(ratio.low) else f" [{ratio.low:.2f}, {ratio.high:.2f}]"
    return f"× {ratio.value:.2f}{within}"


def plain(estimate: Estimate) -> str:
    """Write ``41.3 [40.2, 42.4]``, in the estimate's own unit."""
    if math.isnan(estimate.value):
        return MISSING
    within = "" if math.isnan(estimate.low) else f" [{estimate.low:.1f}, {estimate.high:.1f}]"
    return f"{estimate.value:.1f}{within}".replace("-", "−")


def p_value(p: float) -> str:
    """Write ``.004``, ``.32``, ``< .001``."""
    if math.isnan(p):
        return MISSING
    if p < 0.001:
        return "< .001"
    return (f"{p:.3f}" if p < 0.1 else f"{p:.2f}").removeprefix("0")


def number(value: Any) -> float:
    """Read a number; NaN for a word or for what is missing."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def amount(value: float | None) -> str:
    """Write ``254,839``."""
    return MISSING if value is None or math.isnan(value) else f"{value:,.0f}"


def listed(items: Sequence[str]) -> str:
    """Write ``A, B and C``."""
    return " and ".join(filter(None, [", ".join(items[:-1]), items[-1]]))
