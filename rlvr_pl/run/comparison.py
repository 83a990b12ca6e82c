"""A comparison's folder: what lies where around its runs, and what its runs were run with.

::

    lightning_logs/compare/
        comparison.yaml     what was compared: base, arms, seeds, and every arm's whole configuration
        comparison.lock     who writes comparison.yaml or the report
        GSPO/seed_0/        a run, as run/folder.py describes it
        tuning/             the runs that chose each arm's settings, a comparison of their own
        report.html         the report; report.md and figures/ are the same, data/ is what both stand on
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from rlvr_pl.types import ConfigError

COMPARISON_FILE, COMPARISON_LOCK = "comparison.yaml", "comparison.lock"
REPORT_HTML, REPORT_MARKDOWN = "report.html", "report.md"
FIGURES, DATA = "figures", "data"
_SEED = "seed_"

TUNE, TUNING = "tune", "tuning"  # in comparison.yaml: what to try, and what it gave; its runs are in a folder "tuning"

MARGIN = 2.0  # points of accuracy under which arms count as equivalent, unless the comparison says otherwise
SEED_OFFSET = "seed_offset"  # of an arm in comparison.yaml: what is added to its seeds; no key of fit


def run_folder(comparison: Path, arm: str, seed: int) -> Path:
    """Name the folder of one arm's run with one seed."""
    return comparison / arm / f"{_SEED}{seed}"


def seed_of(folder: Path) -> int | None:
    """Read the seed from the name of a run's folder; None where it is not the folder of a comparison's run."""
    seed = folder.name.removeprefix(_SEED)
    return int(seed) if folder.name.startswith(_SEED) and seed.isdigit() else None


def read_comparison(folder: Path) -> dict[str, Any] | None:
    """Read ``comparison.yaml``; None where the folder has none.

    Raises:
        ConfigError: if there is one that cannot be read, or that lacks arms, seeds or their settings.
    """
    path = folder / COMPARISON_FILE
    if not path.is_file():
        return None
    try:
        comparison = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{COMPARISON_FILE}: unreadable ({' '.join(str(error).split())})") from error
    keys = {"arms": dict, "seeds": list, "resolved": dict}
    if not isinstance(comparison, dict) or not all(isinstance(comparison.get(key), keys[key]) for key in keys):
        raise ConfigError(f"{COMPARISON_FILE}: unreadable (it needs {', '.join(keys)})")
    return comparison
