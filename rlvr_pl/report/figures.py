"""The report's figures. Colour-blind-safe (Okabe and Ito's palette), and told apart without any colour too.

Figures are made without pyplot, so that nothing of a caller's matplotlib changes. One panel a figure: the page lays
them side by side where there is room.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, ScalarFormatter
from numpy.typing import ArrayLike

from rlvr_pl.report.two_way import Estimate

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
INK, FAINT = "#333333", "#DDDDDD"
PIXELS_PER_INCH = 200
WIDTH, HEIGHT = 4.6, 3.1  # inches: 440 pixels of a page at 96 an inch, where 9 points read as 12 pixels
_LONGEST_BESIDE, _LONGEST = 18, 70  # characters of a name beside its row, and over it
_SMOOTHED_TO = 60  # points of a curve that is logged at every rollout


@dataclass(frozen=True)
class Style:
    """How an arm looks, the same in every figure."""

    colour: str
    line: str | tuple[int, tuple[int, ...]]
    marker: str


def styles(arms: Sequence[str]) -> dict[str, Style]:
    """Choose a style for each arm; with more than 35 of them some look alike."""
    return {
        arm: Style(COLOURS[i % len(COLOURS)], LINES[i % len(LINES)], MARKERS[i % len(MARKERS)])
        for i, arm in enumerate(arms)
    }


def _panel(title: str, xlabel: str, ylabel: str = "", height: float = HEIGHT) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), dpi=PIXELS_PER_INCH, layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold", color=INK)
    axes.set_xlabel(xlabel, fontsize=9, color=INK)
    axes.set_ylabel(ylabel, fontsize=9, color=INK)
    axes.tick_params(labelsize=8.5, colors=INK, length=0)
    axes.grid(color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#999999")
    return figure, axes


def _legend(figure: Figure, axes: Axes) -> None:
    """Under the panel, where it covers nothing; a legend of several rows makes the figure higher."""
    handles, labels = axes.get_legend_handles_labels()
    columns = max(1, min(len(labels), int(56 // (max(map(len, labels), default=1) + 6))))
    figure.set_figheight(figure.get_figheight() + 0.19 * (math.ceil(len(labels) / columns) - 1))
    figure.legend(
        handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=8.5, handlelength=2.6
    )


def _percent(axis: Axis) -> None:
    """Ticks of shares as percentages, with as many digits as tell one from the next."""
    ticks = axis.get_majorticklocs()
    step = 100 * float(np.min(np.diff(ticks))) if len(ticks) > 1 else 1.0
    digits = 0 if step >= 1 else min(6, math.ceil(-math.log10(step) - 1e-9))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.{digits}f} %"))


def _name(arm: str) -> str:
    """An arm's name as text: between two dollars, matplotlib would read a formula."""
    return arm.replace("$", r"\$")


def curves(
    values: pd.DataFrame, arms: Mapping[str, Style], title: str, x: str, xlabel: str, percent: bool = False
) -> Figure:
    """Draw one quantity over a budget: the mean over seeds, in a band from the lowest seed to the highest.

    Args:
        values: rows of one tag of ``Study.curves``.
        arms: those to draw, with their styles; the ones without values are left out.
        x: the column of the budget. The mean is over seeds at the same rollout, placed at their mean budget.
    """
    figure, axes = _panel(title, xlabel)
    for arm, style in arms.items():
        at_rollout = values[values["arm"] == arm].groupby("rollout")
        if not len(at_rollout):
            continue
        band = at_rollout["value"].agg(["mean", "min", "max"])
        window = math.ceil(len(band) / _SMOOTHED_TO)
        band = band.rolling(window, center=True, min_periods=1).mean()
        where = at_rollout[x].mean()
        few = len(band) <= 30
        axes.fill_between(where, band["min"], band["max"], color=style.colour, alpha=0.15, linewidth=0)
        axes.plot(
            where,
            band["mean"],
            color=style.colour,
            linestyle=style.line,
            linewidth=1.6,
            marker=style.marker if few else None,
            markersize=3.5,
            label=_name(arm),
        )
    if values["value"].min() >= 0 and axes.get_ylim()[0] < 0:
        axes.set_ylim(bottom=0)
    if percent:
        _percent(axes.yaxis)
    else:
        axes.yaxis.set_major_formatter(ScalarFormatter(useOffset=False))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(_amount))
    _legend(figure, axes)
    return figure


def _amount(value: float, _: object = None) -> str:
    """``1500`` → ``1.5k``, as an axis has room for."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.3g}{name}"
    return f"{value:.4g}"


def smoothing(rollouts: int) -> int:
    """Choose over how many rollouts a curve of this many is averaged."""
    return math.ceil(rollouts / _SMOOTHED_TO)


def accuracies(
    runs: Mapping[str, ArrayLike], means: Mapping[str, Estimate], arms: Mapping[str, Style], title: str
) -> Figure:
    """Draw the final accuracy of each arm: its runs as dots, their mean with its interval.

    Args:
        runs: of each arm, (S,) accuracies.
    """
    figure, axes = _panel(title, "final accuracy", height=1.2 + 0.45 * len(runs))
    for row, (arm, points) in enumerate(runs.items()):
        dots = np.asarray(points, dtype=float)
        axes.plot(dots, np.full(len(dots), row + 0.22), "o", color=arms[arm].colour, alpha=0.45, markersize=4, mew=0)
        _interval(axes, means[arm], row, arms[arm])
    _rows(axes, list(runs))
    _percent(axes.xaxis)
    return figure


def differences(pairs: Mapping[str, Estimate], title: str) -> Figure:
    """Draw the difference of each pair of arms, with its interval, against no difference."""
    figure, axes = _panel(title, "difference in points", height=1.2 + 0.45 * len(pairs))
    axes.axvline(0, color="#777777", linewidth=1.2)
    for row, estimate in enumerate(pairs.values()):
        points = Estimate(100 * estimate.value, 100 * estimate.low, 100 * estimate.high)
        _interval(axes, points, row, Style(INK, "-", "D"))
    _rows(axes, list(pairs))
    return figure


def _interval(axes: Axes, estimate: Estimate, row: float, style: Style) -> None:
    axes.plot([estimate.low, estimate.high], [row, row], color=style.colour, linewidth=2, solid_capstyle="butt")
    axes.plot([estimate.value], [row], style.marker, color=style.colour, markersize=7, mec="white", mew=0.8)


def _rows(axes: Axes, names: list[str]) -> None:
    """A row per name, the first on top."""
    if max(map(len, names)) <= _LONGEST_BESIDE:
        axes.set_yticks(range(len(names)), [_name(name) for name in names], fontsize=9)
    else:  # over its row, where it takes nothing from the panel's width
        axes.set_yticks([])
        for row, name in enumerate(names):
            text = name if len(name) <= _LONGEST else f"{name[: _LONGEST // 2]}…{name[-_LONGEST // 2 :]}"
            label = axes.text(0, row - 0.42, _name(text), fontsize=7.5, color=INK, va="center")
            label.set(transform=axes.get_yaxis_transform(), bbox={"facecolor": "white", "linewidth": 0, "pad": 1})
    axes.set_ylim(len(names) - 0.5, -0.6)
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.08)
    axes.xaxis.set_major_locator(MaxNLocator(6))


def sensitivity(values: pd.DataFrame, arms: Mapping[str, Style], setting: str) -> Figure:
    """Draw accuracy on val over a setting that every arm tried: the mean over seeds, in a band from lowest to highest.

    Args:
        values: a row per run of a trial: arm, x (the setting's value), value (in 0..1).
        arms: those to draw, with their styles.
        setting: its name.
    """
    figure, axes = _panel("Accuracy on val over what was tried", setting)
    for arm, style in arms.items():
        band = values[values["arm"] == arm].groupby("x")["value"].agg(["mean", "min", "max"])
        if len(band):
            axes.fill_between(band.index, band["min"], band["max"], color=style.colour, alpha=0.15, linewidth=0)
            axes.plot(
                band.index,
                band["mean"],
                color=style.colour,
                linestyle=style.line,
                linewidth=1.6,
                marker=style.marker,
                markersize=4.5,
                label=_name(arm),
            )
    tried = np.unique(values["x"])
    if tried[0] > 0 and tried[-1] >= 4 * tried[0]:
        axes.set_xscale("log")
        axes.minorticks_off()
    axes.set_xticks(tried, [f"{x:g}" for x in tried])
    _percent(axes.yaxis)
    _legend(figure, axes)
    return figure


FLIP_COLOURS = {"always solved": "#56B4E9", "fixed": "#0072B2", "broken": "#D55E00", "never solved": "#CCCCCC"}


def flips(shares: pd.DataFrame, title: str) -> Figure:
    """Draw what became of the questions: bars that add up to all of them.

    Args:
        shares: a row per arm, a column per kind of ``FLIP_COLOURS``, in 0..1.
    """
    figure, axes = _panel(title, "share of the questions", height=1.5 + 0.42 * len(shares))
    left = np.zeros(len(shares))
    for kind, colour in FLIP_COLOURS.items():
        widths = shares[kind].to_numpy(dtype=float)
        axes.barh(range(len(shares)), widths, left=left, color=colour, label=kind, height=0.62, edgecolor="white")
        for row, (start, width) in enumerate(zip(left, widths, strict=True)):
            if width >= 0.07:
                ink = "white" if kind in ("fixed", "broken") else INK
                axes.text(
                    start + width / 2, row, f"{100 * width:.0f} %", ha="center", va="center", fontsize=8, color=ink
                )
        left += widths
    _rows(axes, list(shares.index))
    axes.set_xlim(0, 1)
    axes.grid(visible=False)
    _percent(axes.xaxis)
    _legend(figure, axes)
    return figure
