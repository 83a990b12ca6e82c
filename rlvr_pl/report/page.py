"""From a folder of runs to report.html, report.md and tidy data, in the same folder.

It can be written at any time: runs that are not finished are shown as such and stay out of the final statistics.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd

from rlvr_pl.report import figures, tables
from rlvr_pl.report.analysis import Analysis, analyse, tidy_pairs, tidy_summary
from rlvr_pl.report.caveats import find_caveats
from rlvr_pl.report.examples import find_examples
from rlvr_pl.report.pictures import draw_pictures, write_pictures
from rlvr_pl.report.study import load_study
from rlvr_pl.report.verdict import verdict
from rlvr_pl.run.comparison import DATA, REPORT_HTML, REPORT_MARKDOWN
from rlvr_pl.run.files import whole_file
from rlvr_pl.run.terminal import visible

_BIG = 5_000  # rows above which a CSV is compressed


def write_report(folder: Path) -> Path:
    """Read the runs in ``folder`` and write the report into it.

    Returns:
        The path of report.html.

    Raises:
        ConfigError: if there is nothing to report on.
    """
    analysis = analyse(load_study(folder))
    frames = _tidy(analysis)
    (folder / DATA).mkdir(exist_ok=True)
    files = [file for name, frame in frames.items() for file in _write_frame(folder / DATA, name, frame)]
    pictures = draw_pictures(analysis)
    write_pictures(folder, pictures)
    context = _context(analysis, pictures, files)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rlvr_pl.report"),
        autoescape=jinja2.select_autoescape(["html.j2"], default=False),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"cell": _markdown_cell, "prose": _markdown_prose, "fence": _fence}
    for name in (REPORT_MARKDOWN, REPORT_HTML):
        with whole_file(folder / name) as file:
            file.write_text(visible(environment.get_template(f"{name}.j2").render(context)), encoding="utf-8")
    return folder / REPORT_HTML


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
        "caveats": find_caveats(study, outcomes),
        "problems": study.problems,  # those of outcomes are a caveat
        "arms": analysis.arms,
        "pictures": pictures,
        "smoothing": figures.smoothing(rollouts),
        "accuracy_table": tables.accuracy_table(analysis),
        "gain_table": tables.gain_table(analysis),
        "pair_table": tables.pair_table(analysis),
        "tuning_table": tables.tuning_table(study),
        "checkpoint_table": tables.checkpoint_table(analysis),
        "outcome_table": tables.outcome_table(analysis),
        "intended_table": tables.intended_table(analysis),
        "declaration_table": tables.declaration_table(study),
        "efficiency_table": tables.efficiency_table(analysis),
        "course_table": tables.course_table(analysis),
        "length_table": tables.length_table(analysis),
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
