"""The report's pictures: every figure as a PNG that is a file and part of the page."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from rlvr_pl.report import figures
from rlvr_pl.report.analysis import Analysis
from rlvr_pl.report.outcomes import METRICS
from rlvr_pl.report.study import Study
from rlvr_pl.report.wording import number
from rlvr_pl.run.comparison import FIGURES, Trial
from rlvr_pl.run.files import whole_file

# What training logs, as far as a comparison of objectives asks for it: tag, title, in percent.
_DIAGNOSTICS = (
    ("train/reward", "Reward", False),
    ("train/tokens_mean", "Tokens per completion", False),
    ("train/truncated_rate", "Truncated completions", True),
    ("train/entropy", "Entropy, nats per token", False),
    ("train/kl", "KL to the sampling policy, per token", False),
    ("train/kl_ref", "KL to the initial policy, per token", False),
    ("train/ratio_mean", "Mean ratio", False),
    ("train/ratio_max", "Largest ratio", False),
    ("train/clip_fraction_low", "Clipped below", True),
    ("train/clip_fraction_high", "Clipped above", True),
    ("train/zero_variance_groups", "Zero-variance groups", True),
    ("train/grad_norm", "Gradient norm before clipping", False),
)
_BUDGET_AXES = {
    "tokens": ("completion_tokens", "completion tokens"),
    "rollouts": ("rollout", "rollouts"),
    "seconds": ("train_seconds", "seconds of generation, rewards and updates"),
}


@dataclass(frozen=True)
class Picture:
    """A figure as a file and as part of the page."""

    name: str
    alt: str
    png: bytes

    @property
    def file(self) -> str:
        return f"{FIGURES}/{self.name}.png"

    @property
    def uri(self) -> str:
        return "data:image/png;base64," + base64.b64encode(self.png).decode()

    @property
    def size(self) -> tuple[int, int]:
        """In pixels of the page."""
        width, height = (int.from_bytes(self.png[start : start + 4]) for start in (16, 20))  # of PNG's first chunk
        scale = figures.PIXELS_PER_INCH / 96
        return round(width / scale), round(height / scale)


def draw_pictures(analysis: Analysis) -> dict[str, Any]:
    """Draw all pictures of a report, by the section that shows them."""
    return {
        "outcome": list(_outcome_pictures(analysis)),
        "tuning": list(_tuning_pictures(analysis.study)),
        "accuracy": {name: list(_accuracy_pictures(analysis.study, name)) for name in _BUDGET_AXES},
        "diagnostics": list(_diagnostic_pictures(analysis.study)),
        "flips": list(_flip_pictures(analysis)),
    }


def write_pictures(folder: Path, pictures: Any) -> None:
    """Write every picture of nested groups, and remove those of an earlier report that has more."""

    def every(group: Any) -> Iterator[Picture]:
        if isinstance(group, Picture):
            yield group
        else:
            for part in group.values() if isinstance(group, dict) else group:
                yield from every(part)

    (folder / FIGURES).mkdir(exist_ok=True)
    written = set()
    for picture in every(pictures):
        path = folder / picture.file
        with whole_file(path) as file:
            file.write_bytes(picture.png)
        written.add(path)
    for stale in set((folder / FIGURES).glob("*.png")) - written:
        stale.unlink()


def _picture(name: str, alt: str, figure: Figure) -> Picture:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    small = io.BytesIO()  # of so few colours, a palette takes a third of the room
    Image.open(buffer).convert("RGB").quantize(128).save(small, format="png", optimize=True)
    return Picture(name, alt, small.getvalue())


def _outcome_pictures(analysis: Analysis) -> Iterator[Picture]:
    styles = figures.styles(analysis.study.arms)
    outcomes = analysis.outcomes
    for metric in METRICS:
        pairs = {f"{pair.a} − {pair.b}": pair.comparison.difference for pair in analysis.pairs_by(metric)}
        if pairs:
            title = f"Differences in final {outcomes.split} accuracy, {metric}"
            alt = f"{title}: {'; '.join(f'{name} {100 * d.value:+.1f} points' for name, d in pairs.items())}"
            yield _picture(f"differences_{metric}", alt, figures.differences(pairs, title))
    for metric in METRICS if analysis.arms else ():
        runs = {result.arm: outcomes.final[result.arm, metric].mean(axis=1) for result in analysis.arms}
        means = {result.arm: result.scores[metric].final for result in analysis.arms}
        title = f"Final {outcomes.split} accuracy, {metric}"
        alt = f"{title}: {'; '.join(f'{arm} {mean.value:.1%}' for arm, mean in means.items())}"
        yield _picture(f"final_{metric}", alt, figures.accuracies(runs, means, styles, title))


def _tuning_pictures(study: Study) -> Iterator[Picture]:
    """A picture for each setting of the grid whose values are numbers, the others at their best with each of them."""
    styles = figures.styles(study.arms)
    whole = [trial for trial in study.trials if trial.mean is not None]
    for key in whole[0].settings if whole else ():
        best: dict[tuple[str, float], Trial] = {}
        for trial in sorted(whole, key=lambda trial: trial.mean or 0.0):
            best[trial.arm, number(trial.settings[key])] = trial
        if any(math.isnan(x) for _, x in best):
            continue  # words have no order
        rows = [(arm, x, value) for (arm, x), trial in best.items() for value in trial.val]
        values = pd.DataFrame(rows, columns=["arm", "x", "value"])
        alt = f"Accuracy on val over {key}: a line for each of {', '.join(values['arm'].unique())}"
        yield _picture(f"tuning_{key.rpartition('.')[2]}", alt, figures.sensitivity(values, styles, key))


def _accuracy_pictures(study: Study, budget: str) -> Iterator[Picture]:
    styles = figures.styles(study.arms)
    column, label = _BUDGET_AXES[budget]
    for metric, tag in (("strict", "val/accuracy"), ("flexible", "val/accuracy_flexible")):
        values = study.curves[study.curves["tag"] == tag].dropna(subset=column)
        if len(values):
            title = f"Accuracy on val, {metric}"
            alt = f"{title}, over {label}: a line for each of {', '.join(study.arms)}"
            figure = figures.curves(values, styles, title, column, label, percent=True)
            yield _picture(f"accuracy_{metric}_{budget}", alt, figure)


def _diagnostic_pictures(study: Study) -> Iterator[Picture]:
    styles = figures.styles(study.arms)
    for tag, title, percent in _DIAGNOSTICS:
        values = study.curves[study.curves["tag"] == tag]
        if len(values):
            figure = figures.curves(values, styles, title, "rollout", "rollouts", percent)
            yield _picture(tag.replace("/", "_"), f"{title} over rollouts, by arm", figure)


def _flip_pictures(analysis: Analysis) -> Iterator[Picture]:
    order = [result.arm for result in analysis.arms]
    for metric in METRICS if order else ():
        shares = analysis.flips[analysis.flips["metric"] == metric].pivot(index="arm", columns="kind", values="share")
        title = f"Questions before → after training, {metric}"
        alt = "; ".join(
            f"{arm}: {', '.join(f'{kind} {share:.0%}' for kind, share in row.items())}"
            for arm, row in shares.loc[order].iterrows()
        )
        yield _picture(f"flips_{metric}", f"{title}. {alt}", figures.flips(shares.loc[order], title))
