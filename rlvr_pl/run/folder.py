"""A run's folder: what lies where, and which run ``--ckpt_path last`` means.

::

    lightning_logs/gspo/version_0/
        config.yaml                   the whole configuration; config-1.yaml, … of each time that it was resumed
        events.out.tfevents.*         TensorBoard
        checkpoints/last.ckpt         to resume from; best.ckpt by val/accuracy
        evaluations/val-000020.jsonl  a record per question, after 20 rollouts
        best_model/                   the best checkpoint as a Hugging Face folder
        run.json                      how far the run is, what it has cost, and what it runs on
        run.lock, output.log          in a comparison: who is at work on it, and what that process has printed
"""

from __future__ import annotations

import itertools
from pathlib import Path

from rlvr_pl.types import ConfigError

CONFIG, CONFIGS = "config.yaml", "config*.yaml"
EVENTS = "events.out.tfevents.*"
CHECKPOINTS = "checkpoints"
LAST, BEST = "last.ckpt", "best.ckpt"
EVALUATIONS = "evaluations"
BEST_MODEL = "best_model"
RUN_FILE, RUN_LOCK = "run.json", "run.lock"
OUTPUT = "output.log"

# What a fit has written before its first checkpoint, from which nothing could go on.
BEGINNINGS = (EVENTS, "hparams.yaml", CONFIGS, f"{RUN_FILE}*", EVALUATIONS, CHECKPOINTS)


def find_checkpoint(name: str, runs: Path) -> Path:
    """Find the file that ``--ckpt_path`` means.

    Args:
        name: ``last`` or ``best`` of the newest run that has one, or a path.
        runs: the folder with the runs' ``version_*`` folders.

    Raises:
        ConfigError: if there is none.
    """
    if name not in ("last", "best"):
        if not Path(name).exists():
            raise ConfigError(f"ckpt_path: there is no file {name!r}")
        return Path(name)
    file = LAST if name == "last" else BEST
    found = sorted(runs.glob(f"version_*/{CHECKPOINTS}/{file}"), key=_version)
    if not found:
        raise ConfigError(
            f"ckpt_path: no run under {str(runs)!r} has a {file} yet; leave --ckpt_path out to start a new one"
        )
    return found[-1]


def _version(checkpoint: Path) -> int:
    number = checkpoint.parents[1].name.removeprefix("version_")
    return int(number) if number.isdigit() else -1


def next_config_path(log_dir: str | Path) -> Path:
    """Choose ``config.yaml``, or ``config-1.yaml`` and so on where a run has been started in this folder before."""
    folder = Path(log_dir)
    stem, suffix = Path(CONFIG).stem, Path(CONFIG).suffix
    names = itertools.chain([CONFIG], (f"{stem}-{number}{suffix}" for number in itertools.count(1)))
    return next(folder / name for name in names if not (folder / name).exists())


def newest_config(log_dir: Path) -> Path | None:
    """Find the configuration of the latest start in a folder; None where there is none."""
    return max(log_dir.glob(CONFIGS), key=lambda file: (len(file.name), file.name), default=None)
