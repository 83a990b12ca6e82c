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

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from rlvr_pl.run.configuration import Flat
from rlvr_pl.types import ConfigError

COMPARISON_FILE, COMPARISON_LOCK = "comparison.yaml", "comparison.lock"
REPORT_HTML, REPORT_MARKDOWN = "report.html", "report.md"
FIGURES, DATA = "figures", "data"
_SEED = "seed_"

TUNE, TUNING = "tune", "tuning"  # in comparison.yaml: what to try, and what it gave; its runs are in a folder "tuning"

SEED_OFFSET = "seed_offset"  # of an arm in comparison.yaml: what is added to its seeds; no key of fit


@dataclass(frozen=True)
class Trial:
    """One arm at one point of the grid that every arm tries.

    Attributes:
        val: of each tuning seed, the accuracy on val (in 0…1) of the checkpoint that the run would report, by the
            primary outcome's metric; None where it failed.
    """

    arm: str
    settings: Flat
    val: tuple[float | None, ...]

    @property
    def mean(self) -> float | None:
        """The mean over seeds; None where a seed failed, for a setting that may fail is none to choose."""
        whole = [value for value in self.val if value is not None]
        return fmean(whole) if len(whole) == len(self.val) else None

    def as_written(self) -> dict[str, Any]:
        """Write it for ``comparison.yaml``."""
        return asdict(self) | {"val": list(self.val)}

    @classmethod
    def read(cls, row: Mapping[str, Any]) -> Trial:
        """Read what ``as_written`` wrote."""
        return cls(row["arm"], dict(row["settings"]), tuple(row["val"]))


def choices(trials: Sequence[Trial]) -> dict[str, Flat]:
    """Choose each arm's settings: those with the best mean, the first of equals; an arm that always failed has none."""
    best: dict[str, tuple[float, Flat]] = {}
    for trial in trials:
        if trial.mean is not None and (trial.arm not in best or trial.mean > best[trial.arm][0]):
            best[trial.arm] = trial.mean, trial.settings
    return {arm: settings for arm, (_, settings) in best.items()}


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
