"""Comparison files for the tests, over the quickstart's configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from rlvr_pl.compare.comparison_file import load_comparison
from rlvr_pl.compare.plan import Comparison
from tests.helpers.paths import CONFIGS

QUICKSTART = str(CONFIGS / "quickstart.yaml")


def write(folder: Path, **changes: Any) -> Path:
    """A comparison file; a change to None leaves the key out."""
    values = {
        "folder": str(folder / "runs"),
        "base": [QUICKSTART],
        "arms": {"GSPO": {"model.loss": "GSPO"}, "GRPO": {"model.loss": "GRPO"}},
        "seeds": [0, 1],
        **changes,
    }
    file = folder / "compare.yaml"
    file.write_text(yaml.safe_dump({k: v for k, v in values.items() if v is not None}, sort_keys=False))
    return file


def plan(folder: Path, **changes: Any) -> Comparison:
    return load_comparison(write(folder, **changes))
