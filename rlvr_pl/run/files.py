"""Files that are there whole or not at all, whatever ends the process or the machine."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rlvr_pl.types import RunError

_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
_UNFINISHED = ".unfinished"


class WriteError(RunError, OSError):
    """A file could not be written; what stood in its place is as it was."""


@contextmanager
def whole_file(path: Path, keep: Path | None = None) -> Iterator[Path]:
    """Offer a file to write, which takes the place of ``path`` once it is whole and on the disk.

    Until then, and if the machine loses power, readers find the last one. Missing folders are made.

    Args:
        path: the file.
        keep: what ``path`` was until then stays under this name.

    Yields:
        A path beside ``path``.

    Raises:
        WriteError: if the disk is full, say.
    """
    unfinished = path.with_name(path.name + _UNFINISHED)
    try:
        make_folder(path.parent)
        yield unfinished
        sync(unfinished)
        if keep is not None and path.exists():
            name_also(path, keep)
        os.replace(unfinished, path)
        sync(path.parent)
    except BaseException as error:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)  # it may be what fills the disk
        if isinstance(error, OSError):
            raise WriteError(f"cannot write {path}: {why(error)} ({_room(path)})") from error
        raise


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Offer a folder to fill, which takes the place of ``path`` once it is whole and on the disk.

    Yields:
        An empty folder beside ``path``.

    Raises:
        WriteError: if the disk is full, say.
    """
    unfinished = path.with_name(path.name + _UNFINISHED)
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        make_folder(unfinished)
        yield unfinished
        for file in (*unfinished.rglob("*"), unfinished):
            sync(file)
        if path.exists():
            shutil.rmtree(path)
        os.replace(unfinished, path)
        sync(path.parent)
    except OSError as error:
        raise WriteError(f"cannot write {path}: {why(error)} ({_room(path)})") from error


def make_folder(path: Path) -> None:
    """Make a folder, and those above it that are missing, such that they outlive a power cut."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync(folder.parent)


def name_also(path: Path, other: Path) -> None:
    """Have ``other`` be the file that ``path`` is, in place of what it was, without a moment in which either is none.

    A second name costs no room. Where the file system has none, the file is copied.
    """
    unfinished = other.with_name(other.name + _UNFINISHED)
    unfinished.unlink(missing_ok=True)
    try:
        os.link(path, unfinished)
    except OSError:
        shutil.copyfile(path, unfinished)
        sync(unfinished)
    os.replace(unfinished, other)
    unfinished.unlink(missing_ok=True)  # a rename does nothing where both names are one file already


def sync(path: Path) -> None:
    """Have the disk hold what a file, or a folder's list of files, holds; some file systems cannot for folders."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP)):
            raise
    finally:
        os.close(descriptor)


def is_of_the_disk(error: BaseException) -> bool:
    """Tell whether the system could not write, rather than a program's mistake."""
    return isinstance(error, OSError) and error.errno in _OF_THE_DISK


def why(error: OSError) -> str:
    """Say why a file could not be written, without the number and the name."""
    return error.strerror or " ".join(str(error).split())


def _room(path: Path) -> str:
    """Say how much room is left around ``path``: a full disk does not always say so itself."""
    place = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    return f"{shutil.disk_usage(place).free / 1e6:,.0f} MB are free there"
