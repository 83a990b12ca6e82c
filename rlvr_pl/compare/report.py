"""From a folder of runs to report.html, report.md and tidy data, in the same folder.

It can be written at any time: runs that are not finished are shown as such and stay out of the final statistics.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from rlvr_pl.atomic import whole_file
from rlvr_pl.compare import figures, tables
from rlvr_pl.compare.analysis import Analysis, analyse, tidy_pairs, tidy_summary
from rlvr_pl.compare.examples import find_examples
from rlvr_pl.compare.guards import find_guards
from rlvr_pl.compare.outcomes import METRICS
from rlvr_pl.compare.study import Study, load_study
from rlvr_pl.compare.words import verdict

HTML, MARKDOWN, FIGURES, DATA = "report.html", "report.md", "figures", "data"
_BIG = 5_000  # rows above which a CSV is compressed

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
    ("train/zero_variance_groups", "Groups that teach nothing", True),
    ("train/grad_norm", "Gradient norm before clipping", False),
)
_BUDGET_AXES = {
    "rollouts": ("rollout", "rollouts"),
    "tokens": ("completion_tokens", "completion tokens"),
    "seconds": ("train_seconds", "seconds of generation and updates"),
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


def write_report(folder: Path) -> Path:
    """Read the runs in ``folder`` and write the report into it.

    Returns:
        The path of report.html.

    Raises:
        ConfigError: if there is nothing to report on.
    """
    study = load_study(folder)
    analysis = analyse(study)
    frames = _tidy(analysis)
    (folder / DATA).mkdir(exist_ok=True)
    files = [file for name, frame in frames.items() for file in _write_frame(folder / DATA, name, frame)]
    pictures = {
        "outcome": list(_outcome_pictures(analysis)),
        "accuracy": {name: list(_accuracy_pictures(study, name)) for name in _BUDGET_AXES},
        "diagnostics": list(_diagnostic_pictures(study)),
        "flips": list(_flip_pictures(analysis)),
    }
    _write_pictures(folder, pictures)
    context = _context(analysis, pictures, files)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rlvr_pl.compare"),
        autoescape=jinja2.select_autoescape(["html.j2"], default=False),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"cell": _markdown_cell, "prose": _markdown_prose, "fence": _fence}
    for name in (MARKDOWN, HTML):
        with whole_file(folder / name) as file:
            file.write_text(environment.get_template(f"{name}.j2").render(context), encoding="utf-8")
    return folder / HTML


def _context(analysis: Analysis, pictures: dict[str, Any], files: list[str]) -> dict[str, Any]:
    study, outcomes = analysis.study, analysis.outcomes
    differing, shared = tables.settings_tables(study)
    rollouts = int(study.curves["rollout"].max()) if len(study.curves) else 0
    return {
        "title": " · ".join(study.arms),
        "folder": study.folder.resolve().name,
        "finished": len(study.finished),
        "total": len(study.runs),
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "verdict": verdict(analysis),
        "guards": find_guards(study, outcomes),
        "problems": study.problems,  # those of outcomes are a guard
        "arms": analysis.arms,
        "pictures": pictures,
        "smoothing": figures.smoothing(rollouts),
        "accuracy_table": tables.accuracy_table(analysis),
        "gain_table": tables.gain_table(analysis),
        "pair_table": tables.pair_table(analysis),
        "efficiency_table": tables.efficiency_table(analysis),
        "flip_table": tables.flip_table(analysis) if analysis.arms else None,
        "never_solved": _never_solved(analysis),
        "examples": find_examples(study, outcomes),
        "differing": differing,
        "shared": shared,
        "budget_table": tables.budget_table(study),
        "run_table": tables.run_table(study),
        "environment_table": tables.environment_table(study),
        "commands": tables.commands(study),
        "seeds": ", ".join(str(seed) for seed in sorted(set(study.runs["seed"]))),
        "files": files,
    }


def _never_solved(analysis: Analysis) -> str:
    """How many questions no run of any arm gets right after training, wherever the answer stands."""
    outcomes = analysis.outcomes
    best = [outcomes.final[result.arm, "flexible"].max(axis=0) for result in analysis.arms]
    count = int((np.max(best, axis=0) == 0).sum()) if best else 0
    return f"After training, {count:,} of the questions are answered right by no run of any arm (flexible)."


# Data


def _tidy(analysis: Analysis) -> dict[str, pd.DataFrame]:
    study = analysis.study
    return {
        "evaluations": study.evaluations,
        "curves": study.curves,
        "runs": study.runs,
        "summary": tidy_summary(analysis),
        "pairs": tidy_pairs(analysis),
    }


def _write_frame(folder: Path, name: str, frame: pd.DataFrame) -> Iterator[str]:
    """As parquet and as CSV, the latter compressed where it is long."""
    csv, stale = (f"{name}.csv.gz", f"{name}.csv") if len(frame) > _BIG else (f"{name}.csv", f"{name}.csv.gz")
    compression: Any = {"method": "gzip", "mtime": 0} if csv.endswith(".gz") else None  # the same data, the same bytes
    with whole_file(folder / f"{name}.parquet") as file:
        frame.to_parquet(file, index=False)
    with whole_file(folder / csv) as file:
        frame.to_csv(file, index=False, compression=compression)
    (folder / stale).unlink(missing_ok=True)
    yield from (f"{DATA}/{name}.parquet", f"{DATA}/{csv}")


# Pictures


def _picture(name: str, alt: str, figure: Figure) -> Picture:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    small = io.BytesIO()  # of so few colours, a palette takes a third of the room
    Image.open(buffer).convert("RGB").quantize(128).save(small, format="png", optimize=True)
    return Picture(name, alt, small.getvalue())


def _outcome_pictures(analysis: Analysis) -> Iterator[Picture]:
    styles = figures.styles(analysis.study.arms)
    outcomes = analysis.outcomes
    for metric in METRICS if analysis.arms else ():
        runs = {result.arm: outcomes.final[result.arm, metric].mean(axis=1) for result in analysis.arms}
        means = {result.arm: result.scores[metric].final for result in analysis.arms}
        title = f"Final {outcomes.split} accuracy, {metric}"
        alt = f"{title}: {'; '.join(f'{arm} {mean.value:.1%}' for arm, mean in means.items())}"
        yield _picture(f"final_{metric}", alt, figures.accuracies(runs, means, styles, title))
    for metric in METRICS:
        pairs = {f"{pair.a} − {pair.b}": pair.comparison.difference for pair in analysis.pairs_by(metric)}
        if pairs:
            title = f"Differences in final {outcomes.split} accuracy, {metric}"
            alt = f"{title}: {'; '.join(f'{name} {100 * d.value:+.1f} points' for name, d in pairs.items())}"
            yield _picture(f"differences_{metric}", alt, figures.differences(pairs, title))


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
            yield _picture(tag.replace("/", "_"), f"{title} over rollouts, by method", figure)


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


def _write_pictures(folder: Path, pictures: Any) -> None:
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


# Markdown


def _markdown_prose(text: str) -> str:
    """Plain text as it is: Markdown would read tags, emphasis and links into it."""
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", text)


def _markdown_cell(text: str, code: bool = False) -> str:
    text = " ".join(str(text).split())
    if not code or not text or "`" in text:
        return _markdown_prose(text)
    return f"`{text.replace('|', chr(92) + '|')}`"  # a pipe ends the cell even inside of code


def _fence(text: str) -> str:
    """A code block that nothing in the text can end."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}text\n{text.rstrip()}\n{fence}"
