"""A sample of forgotten devices is noticed; ``python -m tests.helpers.mutate_devices`` tries them all."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.mutate_devices import all_mutants, copy_checkout, is_caught


@pytest.mark.parametrize(("file", "count"), [("rollout/rows.py", 8), ("scoring/layout.py", 1), ("update.py", 9)])
def test_every_device_of_a_file_is_a_mutant(file: str, count: int) -> None:
    mutants = [mutant for mutant in all_mutants() if mutant.file == f"rlvr_pl/{file}"]
    assert len(mutants) == count
    for mutant in mutants:
        compile(mutant.text, mutant.file, "exec")


@pytest.mark.parametrize("place", ["rollout/cache.py", "scoring/layout.py"])
def test_a_forgotten_device_is_noticed(place: str, tmp_path: Path) -> None:
    mutant = next(mutant for mutant in all_mutants() if mutant.file == f"rlvr_pl/{place}")
    assert is_caught(mutant, copy_checkout(tmp_path))
