"""Locks between processes that the kernel takes back when their holders end, however they end."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlvr_pl.run.folder import RUN_LOCK
from rlvr_pl.types import ConfigError

HANDED_ON = "RLVR_PL_RUN_LOCK"  # in the environment: an open descriptor that holds the run's lock already
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)  # of some network file systems


def try_lock(path: Path) -> int | None:
    """Take the lock, or return None where another process holds it.

    Returns:
        An open file descriptor that holds the lock, until it and every copy of it, those of child processes included,
        are closed. The file stays where it is: removed, it could be locked twice.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def is_locked(path: Path) -> bool:
    """Ask whether some process holds the lock; leaves no file where there was none."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock for a moment, waiting for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


class RunLock:
    """A process's hold on the run that it is at work on."""

    def __init__(self) -> None:
        self._descriptor: int | None = None

    def take(self, run: Path) -> None:
        """Take the lock in a run's folder, unless this process holds it, or its parent has handed it on.

        Raises:
            ConfigError: if another process is at work there.
        """
        if self._descriptor is not None or _is_handed_on(run / RUN_LOCK):
            return
        try:
            self._descriptor = try_lock(run / RUN_LOCK)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return
            raise
        if self._descriptor is None:
            raise ConfigError(
                f"another process is at work in {run}; wait until it ends, or leave --ckpt_path, --run_dir "
                "and trainer.logger.version out to start a run of its own"
            )

    def release(self) -> None:
        """Give it back."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _is_handed_on(lock: Path) -> bool:
    try:
        descriptor = int(os.environ[HANDED_ON])
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the same hold, not a second one
        return os.path.samestat(os.fstat(descriptor), lock.stat())
    except (KeyError, ValueError, OSError):
        return False
