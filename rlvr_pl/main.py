"""Which command runs, and how an error or an interrupt ends: in one line on standard error, with an exit status."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

import transformers

from rlvr_pl.cli import OTHER_COMMANDS, RLVRCommandLine
from rlvr_pl.run.environment import is_first_rank
from rlvr_pl.run.files import is_of_the_disk
from rlvr_pl.run.signals import STOP, Interrupted
from rlvr_pl.run.terminal import visible
from rlvr_pl.types import ConfigError, RunError


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        args: what follows the program's name; what this process was started with where it is None.

    Raises:
        SystemExit: with status 2 for what the user can fix beforehand, 1 if a run cannot go on or one of a comparison
            has failed, 128 and the signal's number after an interrupt.
    """
    _quieten()
    arguments = sys.argv[1:] if args is None else args
    with STOP.handled():
        try:
            STOP.begin()
            _run(arguments)
        except ConfigError as error:
            _end(f"error: {error}", 2)
        except (RunError, OSError) as error:
            if not isinstance(error, RunError) and not is_of_the_disk(error):
                raise
            _end(f"error: {error}", 1)
        except Interrupted as interrupt:
            _end(str(interrupt), interrupt.status)


def _end(message: str, status: int) -> NoReturn:
    """Say why, once over all ranks, and end; a full disk may hold the log that this would go to."""
    STOP.end()
    with suppress(OSError):
        if is_first_rank():
            sys.stderr.write(visible(f"{message}\n"))
            sys.stderr.flush()
    try:
        sys.stdout.flush()
    except OSError:  # it lies on the full disk: Python would try again as it ends, and end with a status of its own
        with suppress(OSError), open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
    sys.exit(status)


def _run(arguments: Sequence[str]) -> None:
    """Only what a command needs is imported: a report's plots cost a fit nothing."""
    command, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if command == "compare":
        from rlvr_pl.compare.command import compare_command

        compare_command(rest)
    elif command == "report":
        from rlvr_pl.report.command import report_command

        report_command(rest)
    elif command == "plan":
        from rlvr_pl.plan.command import plan_command

        plan_command(rest)
    elif command == "chat":
        from rlvr_pl.chat.command import chat_command

        chat_command(rest)
    else:
        assert command not in OTHER_COMMANDS
        RLVRCommandLine(arguments)


def _quieten() -> None:
    """Leave out what libraries say that a user can do nothing about."""
    warnings.filterwarnings("ignore", "You have overridden `transfer_batch_to_device`")
    warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
    warnings.filterwarnings("ignore", "The dirpath has changed from .* `best_model_score`")  # another run's checkpoint
    warnings.filterwarnings("ignore", "`gradient_checkpointing_enable` is deprecated")  # its successor is too new
    warnings.filterwarnings("ignore", "LightningCLI's args parameter")
    warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated")
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: not any(text in record.getMessage() for text in ("Tip:", "`Trainer.fit` stopped:"))
    )
