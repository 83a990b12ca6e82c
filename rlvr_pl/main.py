"""Which command runs, and how an error ends: in one line on standard error, with exit status 2."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Sequence

import transformers

from rlvr_pl.cli import OTHER_COMMANDS, RLVRCommandLine
from rlvr_pl.run.checkpoints import Interrupted
from rlvr_pl.run.terminal import visible
from rlvr_pl.types import ConfigError


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        args: what follows the program's name; what this process was started with where it is None.

    Raises:
        SystemExit: with status 2 for what the user can fix, 130 after an interrupt, 1 if a run of a comparison failed.
    """
    _quieten()
    arguments = sys.argv[1:] if args is None else args
    try:
        _run(arguments)
    except ConfigError as error:
        sys.stderr.write(visible(f"error: {error}\n"))
        sys.exit(2)
    except Interrupted as interrupt:
        sys.stderr.write(f"{interrupt}\n")
        sys.exit(130)


def _run(arguments: Sequence[str]) -> None:
    """Only what a command needs is imported: a report's plots cost a fit nothing."""
    command, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if command == "compare":
        from rlvr_pl.compare.command import compare_command

        compare_command(rest)
    elif command == "report":
        from rlvr_pl.report.command import report_command

        report_command(rest)
    else:
        assert command not in OTHER_COMMANDS
        RLVRCommandLine(arguments)


def _quieten() -> None:
    """Leave out what libraries say that a user can do nothing about."""
    warnings.filterwarnings("ignore", "You have overridden `transfer_batch_to_device`")
    warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
    warnings.filterwarnings("ignore", "The dirpath has changed from .* `best_model_score`")  # another run's checkpoint
    warnings.filterwarnings("ignore", "LightningCLI's args parameter")
    warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated")
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: not any(text in record.getMessage() for text in ("Tip:", "`Trainer.fit` stopped:"))
    )
