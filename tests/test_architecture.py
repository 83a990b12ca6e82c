"""Imports run one way, and docstrings begin with a verb."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

PACKAGE = ROOT / "rlvr_pl"

# Which room of the package, a folder or a file at its top, may import which: only rooms that stand above it here.
# The tree in docs/how-it-works.md shows them in the same order, the last one first.
MAY_IMPORT: dict[str, set[str]] = {
    "types": set(),
    "randomness": set(),
    "batching": set(),
    "varlen": set(),
    "cpu_attention": set(),
    "proportion": set(),
    "schedule": {"types"},
    "version": set(),
    "losses": {"types"},
    "verifiers": {"types"},
    "rewards": {"types", "verifiers"},
    "lora": {"types", "randomness"},
    "pretrained": {"types"},
    "sharding": {"types"},
    "scoring": {"batching", "varlen", "cpu_attention", "sharding"},
    "data": {"types", "randomness", "verifiers", "pretrained"},
    "rollout": {"types", "batching", "varlen", "cpu_attention", "lora", "sharding"},
    "memory": {"lora", "pretrained", "rollout", "scoring"},
    "evaluation": {"rewards", "verifiers"},
    "update": {"types", "losses", "scoring"},
    "ranks": {"types"},
    "run": {"types", "proportion", "version", "sharding", "rollout", "evaluation", "verifiers"},
    "preflight": {"types", "pretrained", "rollout", "run", "sharding"},
    "module": {
        *("types", "randomness", "losses", "verifiers", "rewards", "pretrained", "lora"),
        *("sharding", "scoring", "rollout", "evaluation", "update", "ranks", "run", "schedule", "preflight"),
    },
    "config_files": {"types"},
    "lightning_settings": {"types", "sharding"},
    "cli": {
        *("types", "losses", "lora", "verifiers", "data", "pretrained"),
        *("run", "preflight", "module", "config_files", "lightning_settings"),
    },
    "chat": {
        *("types", "losses", "verifiers", "rewards", "lora", "data", "rollout", "evaluation", "run", "module", "cli"),
    },
    "plan": {"types", "lora", "pretrained", "sharding", "rollout", "memory", "run", "cli"},
    "report": {"types", "proportion", "verifiers", "data", "run", "cli"},
    "compare": {"types", "config_files", "run", "cli", "report"},
    "main": {"types", "run", "cli", "chat", "plan", "report", "compare"},
    "__main__": {"version", "run", "main"},
    "embedded": {"data", "pretrained", "report", "rollout", "run", "types"},
}


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(file): file for file in sorted(PACKAGE.rglob("*.py"))}


def imports_of(text: str) -> Iterator[str]:
    """Every module of the package that a file imports, wherever in it: inside of functions too."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]  # the name may be a module itself
        else:
            continue
        for name in names:
            found = name if name in MODULES else name.rpartition(".")[0]
            if found in MODULES:
                yield found


IMPORTS = {name: set(imports_of(file.read_text(encoding="utf-8"))) for name, file in MODULES.items()}


def test_the_rooms_are_those_of_the_package_and_stand_in_order() -> None:
    assert set(MAY_IMPORT) == {room_of(file) for name, file in MODULES.items() if name != "rlvr_pl"}
    rooms = list(MAY_IMPORT)
    for i, room in enumerate(rooms):
        assert MAY_IMPORT[room] <= set(rooms[:i]), f"{room} may import what stands below it"


@pytest.mark.parametrize("name", [name for name in MODULES if name != "rlvr_pl"])
def test_no_import_runs_upward(name: str) -> None:
    own = room_of(MODULES[name])
    rooms = {room_of(MODULES[imported]) for imported in IMPORTS[name] if imported != "rlvr_pl"} - {own}
    assert rooms <= MAY_IMPORT[own], f"{name} may not import {sorted(rooms - MAY_IMPORT[own])}"


def test_what_may_be_imported_is_imported() -> None:
    """A permission that nobody uses is a door left open."""
    used: dict[str, set[str]] = {room: set() for room in MAY_IMPORT}
    for name, imported in IMPORTS.items():
        if name != "rlvr_pl":
            own = room_of(MODULES[name])
            used[own] |= {room_of(MODULES[other]) for other in imported if other != "rlvr_pl"} - {own}
    assert used == MAY_IMPORT


def test_no_file_imports_itself_in_a_circle() -> None:
    for name, imports in IMPORTS.items():
        assert name.rpartition(".")[0] not in imports - {"rlvr_pl"}, f"{name} imports its own package's __init__"
    tuple(TopologicalSorter(IMPORTS).static_order())


def test_a_circle_would_be_seen() -> None:
    with pytest.raises(CycleError):
        tuple(TopologicalSorter({"a": {"b"}, "b": {"c"}, "c": {"a"}}).static_order())


def test_imports_inside_functions_are_seen() -> None:
    text = "def f():\n    from rlvr_pl.losses import ratio\n    import rlvr_pl.types\n"
    assert set(imports_of(text)) == {"rlvr_pl.losses.ratio", "rlvr_pl.types"}


# Docstrings (PEP 257): a function's begins with a verb. What properties and classes are is a noun.

NO_VERB = {
    *("a", "an", "the", "all", "any", "each", "every", "no", "none", "one", "some", "this", "these", "its", "it"),
    *("as", "at", "by", "for", "from", "in", "of", "on", "over", "under", "until", "up", "with", "around", "per"),
    *("how", "what", "when", "where", "whether", "which", "who", "why", "that", "there", "see", "if"),
}


def public_functions() -> Iterator[tuple[str, ast.FunctionDef]]:
    def inside(node: ast.Module | ast.ClassDef, place: str) -> Iterator[tuple[str, ast.FunctionDef]]:
        for child in node.body:
            if isinstance(child, ast.ClassDef) and not child.name.startswith("_"):
                yield from inside(child, f"{place}.{child.name}")
            elif isinstance(child, ast.FunctionDef) and not child.name.startswith("_"):
                decorators = {ast.unparse(decorator) for decorator in child.decorator_list}
                if not decorators & {"property", "cached_property"}:
                    yield f"{place}.{child.name}", child

    for name, file in MODULES.items():
        yield from inside(ast.parse(file.read_text(encoding="utf-8")), name)


FUNCTIONS = dict(public_functions())


@pytest.mark.parametrize("name", [name for name, function in FUNCTIONS.items() if ast.get_docstring(function)])
def test_a_docstring_begins_with_a_verb(name: str) -> None:
    first = (ast.get_docstring(FUNCTIONS[name]) or "").split()[0]
    assert first.isalpha(), f"{name}: {first!r} is no verb"
    assert first[0].isupper(), f"{name}: {first!r} begins no sentence"
    assert first.lower() not in NO_VERB, f"{name}: {first!r} is no verb"
    assert not first.endswith(("s", "ing")) or first in {"Pass", "Process"}, f"{name}: {first!r} is no imperative"


def test_a_report_loads_no_trainer_and_no_model() -> None:
    """Reading a study in a notebook takes seconds, not those of the libraries that made it."""
    program = "import sys, rlvr_pl.report.page; print({'lightning', 'transformers', 'torchmetrics'} & {*sys.modules})"
    shown = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout == "set()\n"
