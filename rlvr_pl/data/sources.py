"""Where problems come from: rows by split, in GSM8K's schema, ``{"question": str, "answer": "… #### 18"}``, or another.

A source is any callable that takes a split's name and returns its rows, or None where it has no such split. Rows are
passed on unchecked; :mod:`rlvr_pl.data.questions` refuses bad ones by their number.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import datasets

from rlvr_pl.data.problems import Split, embedded_problems
from rlvr_pl.types import ConfigError

DataSource = Callable[[Split], Iterable[object] | None]
"""The rows of ``train`` or ``test``, in a fixed order, or None where there is no such split."""


class EmbeddedProblems:
    """Generated arithmetic word problems; see :mod:`rlvr_pl.data.problems`.

    Args:
        train_size: how many train problems.
        test_size: how many test problems.
        seed: of the generator. It is not the run's seed: every run has the same problems.
    """

    def __init__(self, train_size: int = 8192, test_size: int = 512, seed: int = 0) -> None:
        self.sizes = {"train": train_size, "test": test_size}
        self.seed = seed

    def __call__(self, split: Split) -> Iterable[object] | None:
        return embedded_problems(split, self.sizes[split], self.seed)


class HubDataset:
    """A dataset of the Hugging Face hub.

    Args:
        path: its id.
        name: its configuration, ``main`` for GSM8K.
    """

    def __init__(self, path: str, name: str | None = None) -> None:
        self.path = path
        self.name = name

    def __call__(self, split: Split) -> Iterable[object] | None:
        try:
            loaded = datasets.load_dataset(self.path, self.name)
        except Exception as error:  # whatever a stranger's dataset makes the library stumble over
            reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
            raise ConfigError(
                f"data.source: cannot load {self.path!r}: it is neither a local file or folder nor available on the "
                f"Hugging Face hub ({reason}). Check the name and the network, or give a local path, or 'embedded'"
            ) from error
        return loaded.get(split)


class LocalDataset:
    """A jsonl or parquet file, a folder with ``train`` and ``test`` files of these kinds, or a ``save_to_disk`` folder.

    Args:
        path: of the file or folder. A single file is the train split.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path).expanduser()

    def file(self, split: Split) -> Path | None:
        """Find the file, or the saved dataset's folder, that a split is in; None where there is none."""
        if self.path.is_file():
            return self.path if split == "train" else None
        if self._is_saved():
            return self.path
        files = [self.path / f"{split}{suffix}" for suffix in _READERS]
        return next((file for file in files if file.is_file()), None)

    def _is_saved(self) -> bool:
        return (self.path / "dataset_dict.json").is_file() or (self.path / "state.json").is_file()

    def __call__(self, split: Split) -> Iterable[object] | None:
        if self._is_saved():
            try:
                saved = datasets.load_from_disk(str(self.path))
            except Exception as error:  # see HubDataset
                raise ConfigError(
                    f"data.source: cannot read {str(self.path)!r}: {str(error).splitlines()[0]}"
                ) from error
            if isinstance(saved, datasets.DatasetDict):
                return saved.get(split)
            return saved if split == "train" else None
        file = self.file(split)
        return None if file is None else read_file(file)


def _read_jsonl(path: Path) -> list[object]:
    """One row a line; a line that is not JSON stands for itself, to be refused by its number like other bad rows."""
    rows: list[object] = []
    with path.open(encoding="utf-8-sig") as lines:
        for line in lines:
            try:
                rows.append(json.loads(line))
            except (json.JSONDecodeError, RecursionError):
                rows.append(line)
    while rows and isinstance(rows[-1], str) and not rows[-1].strip():
        rows.pop()  # blank lines at the end
    return rows


def _read_parquet(path: Path) -> Iterable[object]:
    return datasets.Dataset.from_parquet(str(path))


_READERS = {".jsonl": _read_jsonl, ".parquet": _read_parquet}


def read_file(path: Path) -> Iterable[object]:
    """Read the rows of a jsonl or parquet file.

    Raises:
        ConfigError: for another kind of file, or one that cannot be read.
    """
    reader = _READERS.get(path.suffix)
    if reader is None:
        raise ConfigError(f"data.source: {str(path)!r} is neither a .jsonl nor a .parquet file")
    try:
        return reader(path)
    except Exception as error:  # see HubDataset
        raise ConfigError(f"data.source: cannot read {str(path)!r}: {str(error).splitlines()[0]}") from error


def find_source(source: str | DataSource) -> DataSource:
    """Find the data source that a setting names.

    Args:
        source: ``embedded``; the path of a local dataset; a hub id; the import path of a data source, or of a
            class that makes one without arguments; or a data source, which is returned as it is.

    Raises:
        ConfigError: if it is a path and nothing is there.
    """
    if not isinstance(source, str):
        return source
    if source == "embedded":
        return EmbeddedProblems()
    path = Path(source).expanduser()
    if path.exists():
        return LocalDataset(source)
    if path.is_absolute() or path.suffix in _READERS or source.startswith((".", "~")) or source.count("/") > 1:
        raise ConfigError(f"data.source: there is no file or folder {source!r}")
    module, _, name = source.rpartition(".")
    if "/" not in source and module:
        try:
            found = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"data.source: cannot import {source!r}: {error}") from error
        return found() if isinstance(found, type) else found
    return HubDataset(source, "main" if source == "openai/gsm8k" else None)
