"""``python -m rlvr_pl report``: write the report of a folder of runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rlvr_pl.cli import CommandParser
from rlvr_pl.run.comparison import COMPARISON_LOCK
from rlvr_pl.run.lock import locked
from rlvr_pl.types import ConfigError


def report_command(arguments: Sequence[str]) -> None:
    """Run ``report`` with these arguments.

    Raises:
        ConfigError: if there is nothing to report on.
    """
    parser = CommandParser("report")
    parser.add_argument("folder", type=Path, metavar="RUNS_DIR", help="one folder per arm, with one per seed in it")
    report_on(parser.parse_args(arguments).folder)


def report_on(folder: Path) -> None:
    """Write the report, one process at a time, and say where it is.

    Raises:
        ConfigError: if there is no such folder, or no run in it.
    """
    from rlvr_pl.report.page import write_report  # loads plots and tables, which the runs do without

    if not folder.is_dir():
        raise ConfigError(f"there is no folder {str(folder)!r}")
    with locked(folder / COMPARISON_LOCK):
        print(f"report: {write_report(folder)}")
