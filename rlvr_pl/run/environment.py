"""What a run ran on and with: what somebody needs to run it again, and to judge its times."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import lightning
import torch
import transformers
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_only

import rlvr_pl
from rlvr_pl.version import __version__

PACKAGE = Path(rlvr_pl.__file__).parent


def describe_environment(trainer: Trainer) -> dict[str, Any]:
    """Describe versions, commit, hardware, threads and precision, as ``run.json`` holds them."""
    return {
        "rlvr_pl": __version__,
        **commit_of(PACKAGE),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "lightning": lightning.__version__,
        "hardware": describe_hardware(trainer),
        "threads": torch.get_num_threads(),
        "precision": str(trainer.precision),
    }


def is_first_rank() -> bool:
    """Tell whether this process speaks and writes for all ranks; it is known before they are connected.

    Until there is a trainer, Lightning takes the first process of every node for rank 0, if nothing but the node's
    number was given to it.
    """
    node = os.environ.get("NODE_RANK") or os.environ.get("GROUP_RANK") or "0"
    return getattr(rank_zero_only, "rank", 0) == 0 and node == "0"


def commit_of(package: Path) -> dict[str, Any]:
    """Find the commit that a package in a checkout stands at, and whether its own files differ from it.

    Args:
        package: a folder at the top level of a checkout. Elsewhere, in site-packages say, a repository around it would
            not be its own, and the commit is None.
    """
    unknown = {"commit": None, "commit_dirty": False}
    if not (package.parent / ".git").exists():
        return unknown
    try:
        commit = _git(package, "rev-parse", "HEAD")
        changes = _git(package, "status", "--porcelain", "--", str(package))
    except (OSError, subprocess.CalledProcessError):  # git is not installed, or does not trust the folder's owner
        return unknown
    return {"commit": commit, "commit_dirty": bool(changes)}


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def describe_hardware(trainer: Trainer) -> str:
    """Name the GPU and how many, or the CPU and the cores that this process may use, in one line."""
    device = trainer.strategy.root_device
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} × {trainer.world_size}"
    return f"{cpu_model()}, {available_cores()} cores"


def cpu_model() -> str:
    """Name the processor as Linux does, or by what Python knows elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def available_cores() -> int:
    """Count the cores that this process may use, which a scheduler can have made fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
