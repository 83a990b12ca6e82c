"""Which forgotten devices the tests would notice: ``python -m tests.helpers.mutate_devices``.

Takes each ``device=`` and each ``.to(…device…)`` out of the package in turn, in a copy of the checkout, and runs the
fast part of ``tests/device``. Prints what is caught and what is not: about 20 minutes.
"""

from __future__ import annotations

import argparse
import ast
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.paths import ROOT

FAST = [
    "tests/device/test_parts.py",
    "tests/device/test_runs.py::test_fit_with_its_baseline_and_its_last_test[bf16-mixed-0.04]",
]
SELECTED = "not (llama or qwen3 or dtype0 or dtype1)"


@dataclass(frozen=True)
class Mutant:
    """A file of the package without one of its devices."""

    file: str  # from the checkout
    line: int
    removed: str
    text: str  # of the whole file


def mutants_of(file: Path) -> Iterator[Mutant]:
    """Make every mutant of a file."""
    source = file.read_text(encoding="utf-8")
    name = str(file.relative_to(ROOT))
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        for keyword in node.keywords:
            if keyword.arg == "device":
                kept = [k for k in node.keywords if k is not keyword]
                call = ast.Call(node.func, node.args, kept)
                yield Mutant(name, node.lineno, ast.unparse(keyword), _replaced(source, node, ast.unparse(call)))
        is_move = isinstance(node.func, ast.Attribute) and node.func.attr == "to" and len(node.args) == 1
        if is_move and not node.keywords and "device" in ast.unparse(node.args[0]):
            assert isinstance(node.func, ast.Attribute)
            kept_value = ast.unparse(node.func.value)
            removed = f".to({ast.unparse(node.args[0])})"
            yield Mutant(name, node.lineno, removed, _replaced(source, node, kept_value))


def _replaced(source: str, node: ast.Call, text: str) -> str:
    lines = source.encode().splitlines(keepends=True)
    assert node.end_lineno is not None
    first, last = node.lineno - 1, node.end_lineno - 1
    before, after = lines[first][: node.col_offset], lines[last][node.end_col_offset :]
    return b"".join([*lines[:first], before, text.encode(), after, *lines[last + 1 :]]).decode()


def is_caught(mutant: Mutant, checkout: Path) -> bool:
    """Tell whether the fast tests fail in a copy of the checkout with this mutant."""
    file = checkout / mutant.file
    original = file.read_text(encoding="utf-8")
    file.write_text(mutant.text, encoding="utf-8")
    try:
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-n0", "-p", "no:cacheprovider", "-k", SELECTED, *FAST]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run(command, cwd=checkout, env=environment, capture_output=True).returncode != 0
    finally:
        file.write_text(original, encoding="utf-8")


def all_mutants() -> list[Mutant]:
    """Make every mutant of the package."""
    return [mutant for file in sorted((ROOT / "rlvr_pl").rglob("*.py")) for mutant in mutants_of(file)]


def copy_checkout(folder: Path) -> Path:
    """Copy what the tests need."""
    for name in ("rlvr_pl", "tests", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    survivors = []
    with tempfile.TemporaryDirectory() as name:
        checkout = copy_checkout(Path(name))
        mutants = all_mutants()
        for mutant in mutants:
            caught = is_caught(mutant, checkout)
            survivors += [] if caught else [mutant]
            verb = "caught" if caught else "MISSED"
            print(f"{verb}  {mutant.file}:{mutant.line}  {mutant.removed}", flush=True)
    print(f"{len(mutants) - len(survivors)} of {len(mutants)} caught")


if __name__ == "__main__":
    main()
