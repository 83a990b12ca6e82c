"""The saved notebooks run, and what they print is what they would print now."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook

from tests.helpers.notebooks import NOTEBOOKS, execute
from tests.helpers.paths import ROOT

NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
ABSOLUTE_PATH = r"(?:^|[\s'\"(=])(?:/\w[^\s/]*/|[A-Z]:\\)"
MAX_BYTES = 400_000

saved_notebooks = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def results(cell: NotebookNode) -> list[NotebookNode]:
    """Outputs other than what was written to stdout and stderr."""
    return [output for output in cell.outputs if output.output_type != "stream"]


def printed(cell: NotebookNode) -> str:
    """All text of a cell's outputs: stdout, and the text forms of its results."""
    streams = [output.text for output in cell.outputs if output.get("name") == "stdout"]
    forms = [form for output in results(cell) for kind, form in sorted(output.data.items()) if kind.startswith("text/")]
    return "\n".join(["".join(streams), *forms])


def assert_prints_the_same(saved: str, fresh: str) -> None:
    """Equal texts and equal numbers, but for residues of rounding, which another processor may leave otherwise."""
    assert re.sub(NUMBER, "#", saved).split() == re.sub(NUMBER, "#", fresh).split()
    numbers = [[float(number) for number in re.findall(NUMBER, text)] for text in (saved, fresh)]
    assert numbers[0] == pytest.approx(numbers[1], rel=1e-9, abs=1e-12)


def test_the_notebooks_are_found() -> None:
    assert "objectives.ipynb" in [path.name for path in NOTEBOOKS]


@saved_notebooks
def test_the_saved_outputs_are_what_the_notebook_gives_now(path: Path) -> None:
    saved, fresh = code_cells(nbformat.read(path, as_version=4)), code_cells(execute(path))
    assert any("image/png" in output.data for cell in saved for output in results(cell))
    assert any(printed(cell).strip() for cell in saved)
    for was, now in zip(saved, fresh, strict=True):
        kinds = [[sorted(output.data) for output in results(cell)] for cell in (was, now)]
        assert kinds[0] == kinds[1], was.id
        assert_prints_the_same(printed(was), printed(now))


@saved_notebooks
def test_a_notebook_is_saved_clean(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.stat().st_size < MAX_BYTES
    assert notebook.metadata.kernelspec.name == "python3"
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert all(re.fullmatch(r"[a-z][a-z-]+", cell.id) for cell in notebook.cells), "an id is a name, not a hash"
    assert not any(cell.metadata for cell in notebook.cells)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), "run from top to bottom, once"
    for cell in cells:
        assert not any(output.get("name") == "stderr" for output in cell.outputs), cell.id
        assert not re.search(ABSOLUTE_PATH, printed(cell)), cell.id


def test_a_notebook_runs_in_this_interpreter_with_this_checkout(tmp_path: Path) -> None:
    source = "import sys, rlvr_pl.losses\nprint(sys.executable)\nprint(rlvr_pl.losses.__file__)"
    nbformat.write(new_notebook(cells=[new_code_cell(source)]), tmp_path / "where.ipynb")
    (cell,) = execute(tmp_path / "where.ipynb").cells
    losses = ROOT / "rlvr_pl" / "losses" / "__init__.py"
    assert printed(cell).split() == [sys.executable, str(losses)]


def test_a_cell_that_raises_is_an_error(tmp_path: Path) -> None:
    nbformat.write(new_notebook(cells=[new_code_cell("1 / 0")]), tmp_path / "raises.ipynb")
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        execute(tmp_path / "raises.ipynb")


@pytest.mark.parametrize(
    ("saved", "fresh"),
    [
        ("accuracy 71.1 %", "accuracy 71.2 %"),
        ("factor 4", "factor 5"),
        ("difference 1.2e-03", "difference 1.3e-03"),
        ("difference 3.5e-18", "difference 3.5e-08"),
        ("gain +0.5", "gain -0.5"),
        ("GRPO 1.0", "GSPO 1.0"),
        ("1.0 2.0", "1.0"),
        ("", "1.0"),
    ],
)
def test_a_stale_output_is_noticed(saved: str, fresh: str) -> None:
    with pytest.raises(AssertionError):
        assert_prints_the_same(saved, fresh)


def test_rounding_and_spacing_are_no_difference() -> None:
    assert_prints_the_same("max abs  3.5e-18\nof 0.25", "max abs 0.0e+00 of 0.25")


@pytest.mark.parametrize("text", ["/home/me/runs", "in (/opt/x/y)", "folder='/srv/data'", r"at C:\runs"])
def test_absolute_paths_are_noticed(text: str) -> None:
    assert re.search(ABSOLUTE_PATH, text)


@pytest.mark.parametrize("text", ["1 / 2", "GRPO/GSPO", "lightning_logs/compare/x", "<td>1</td>"])
def test_other_slashes_are_not(text: str) -> None:
    assert not re.search(ABSOLUTE_PATH, text)
