"""A run's folder: what lies where, and which run ``--ckpt_path last`` means.

::

    lightning_logs/gspo/version_0/
        config.yaml                   the whole configuration; config-1.yaml, … of each time that it was resumed
        events.out.tfevents.*         TensorBoard; csv/version_0, … of a CSV logger
        checkpoints/last.ckpt         to resume from, and previous.ckpt, the one before it; best.ckpt by val/accuracy
        evaluations/val-000020.jsonl  a record per question, after 20 rollouts
        best_model/                   the best checkpoint as a Hugging Face folder
        best_adapter/                 its adapter alone, in peft's format, where there is one
        run.json                      how far the run is, what it has cost, and what it runs on
        run.lock                      who is at work on it
        output.log                    in a comparison: what that process has printed
"""

from __future__ import annotations

import itertools
from pathlib import Path

from rlvr_pl.types import ConfigError

CONFIG, CONFIGS = "config.yaml", "config*.yaml"
EVENTS = "events.out.tfevents.*"
CHECKPOINTS = "checkpoints"
LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"
EVALUATIONS = "evaluations"
BEST_MODEL, BEST_ADAPTER = "best_model", "best_adapter"
RUN_FILE, RUN_LOCK = "run.json", "run.lock"
OUTPUT = "output.log"

# What a fit has written before its first checkpoint, from which nothing could go on.
BEGINNINGS = (EVENTS, "hparams.yaml", CONFIGS, f"{RUN_FILE}*", EVALUATIONS, CHECKPOINTS)


def find_checkpoint(name: str, runs: Path, version: str | None = None) -> Path:
    """Find the file that ``--ckpt_path`` means.

    Args:
        name: ``last`` or ``best`` of the newest run that has one; a run's folder, whose last one is meant; or a file.
        runs: the folder with the runs' ``version_*`` folders.
        version: the folder of the one run that is meant, where the configuration names it.

    Raises:
        ConfigError: if there is none.
    """
    if name not in ("last", "best"):
        path = Path(name)
        if path.is_dir():
            found = _last_of(path)
            if found is None:
                raise ConfigError(f"ckpt_path: the run in {name!r} has no {LAST} yet; leave --ckpt_path out")
            return found
        if not path.exists():
            raise ConfigError(f"ckpt_path: there is no file {name!r}")
        return path
    folders = sorted(runs.glob("version_*"), key=_version) if version is None else [runs / version]
    found_in = [found for folder in folders if (found := _last_of(folder) if name == "last" else _best_of(folder))]
    if not found_in:
        file = LAST if name == "last" else BEST
        raise ConfigError(
            f"ckpt_path: no run under {str(runs)!r} has a {file} yet; leave --ckpt_path out to start a new one"
        )
    return found_in[-1]


def _last_of(run: Path) -> Path | None:
    return next((file for name in (LAST, PREVIOUS) if (file := run / CHECKPOINTS / name).is_file()), None)


def _best_of(run: Path) -> Path | None:
    return file if (file := run / CHECKPOINTS / BEST).is_file() else None


def newer_runs(run: Path) -> list[Path]:
    """List the runs beside ``run`` that were begun after it."""
    folders = (folder for folder in run.parent.glob("version_*") if folder.is_dir())
    return sorted((folder for folder in folders if _version(folder) > _version(run)), key=_version)


def next_run(runs: Path) -> Path:
    """Name the folder of a run that is to begin: version_N, after all that are there."""
    return runs / f"version_{max((_version(folder) for folder in runs.glob('version_*')), default=-1) + 1}"


def _version(run: Path) -> int:
    number = run.name.removeprefix("version_")
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
