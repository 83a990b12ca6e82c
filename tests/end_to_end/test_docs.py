"""What README and the pages in docs/ show runs as it stands there."""

from __future__ import annotations

import inspect
import re
import shlex
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from rlvr_pl import types
from rlvr_pl.compare.comparison_file import load_comparison
from rlvr_pl.main import main
from rlvr_pl.module import GroupPolicyModule
from tests.helpers.paths import ROOT
from tests.helpers.runs import read_scalars, tiny_run
from tests.helpers.texts import PAGES, README, TEXTS, in_one_line
from tests.test_architecture import MAY_IMPORT

OWN = PAGES["your-data"]
OWN_FLAGS = [line.strip("`") for line in OWN.splitlines() if re.fullmatch(r"`--[^`]+`", line)]


@pytest.fixture
def my_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All programs of a page in one file, as the page says."""
    blocks = re.findall(r"```python\n(.*?)```", OWN, flags=re.DOTALL)
    (tmp_path / "my_project.py").write_text("\n\n".join(blocks))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_project", raising=False)


def test_there_are_extensions_of_each_kind() -> None:
    keys = {flag.split()[0] for flag in OWN_FLAGS}
    assert {"--model.loss", "--model.rewards", "--data.source"} <= keys


@pytest.mark.usefixtures("my_project")
@pytest.mark.parametrize("flags", OWN_FLAGS)
def test_an_extension_runs(flags: str, tmp_path: Path, policy: str) -> None:
    short = {"data.max_rollouts": 1, "model.max_completion_tokens": 64}  # long enough for some to end
    arguments = tiny_run(policy, tmp_path, **short)
    if "--data.source" in flags:
        arguments = [argument for argument in arguments if not argument.startswith("--data.source")]
    main([*arguments, *shlex.split(flags)])
    scalars = read_scalars(tmp_path / "run" / "version_0")
    assert scalars["train/grad_norm"][1] > 0
    if "my_project.brevity" in flags:
        assert 0 < scalars["train/reward/brevity"][1] <= 1
        assert scalars["train/reward"][1] == pytest.approx(
            scalars["train/reward/correctness"][1] + 0.5 * scalars["train/reward/brevity"][1], rel=1e-6
        )


COMPARISONS = [
    pytest.param(block, id=name)
    for name, text in PAGES.items()
    for block in re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    if "\narms:" in block
]


@pytest.mark.parametrize("block", COMPARISONS)
def test_a_comparison_file_is_one_whose_arms_may_be_compared(
    block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(block)
    comparison = load_comparison(Path("mine.yaml"))
    assert list(comparison.resolved) == list(comparison.arms)  # what fit would run with; unequal arms are refused
    assert len(comparison.runs([])) == len(comparison.arms) * len(comparison.seeds) >= 6


def test_the_program_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (program,) = re.findall(r"## From Python\n\n```python\n(.*?)```", PAGES["training"], flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # given back after the test
    short = "max_rollouts=1, val_size=4, eval_batch_size=64"
    assert program.count("max_rollouts=24") == 1
    names: dict[str, Any] = {}
    exec(program.replace("max_rollouts=24", short), names)
    assert names["module"].rollouts_done == names["trainer"].current_epoch == 1
    assert 0 <= names["trainer"].callback_metrics["test/accuracy"] <= 1


def test_the_training_step_reads_as_it_is_printed() -> None:
    (printed,) = re.findall(r"```\n(rollout = .*?)```", PAGES["how-it-works"], flags=re.DOTALL)
    source = textwrap.dedent(inspect.getsource(GroupPolicyModule.training_step))
    body = [line.strip() for line in source.splitlines() if re.match(r" +\w+ = ", line)]
    assert body == printed.splitlines()


def test_the_tree_is_that_of_the_package() -> None:
    tree = re.findall(r"```\nrlvr_pl/\n(.*?)\ntests/", PAGES["how-it-works"], flags=re.DOTALL)[0]
    shown = [re.findall(r"\w+\.py|\w+/", line)[0] for line in tree.splitlines()]
    rooms = {path.name + "/" * path.is_dir() for path in (ROOT / "rlvr_pl").iterdir()}
    assert set(shown) == rooms - {"__init__.py", "__pycache__/"}
    names = [name.rstrip("/").removesuffix(".py") for name in shown]
    for i, name in enumerate(names):
        assert MAY_IMPORT[name] <= set(names[i + 1 :]), f"{name} imports what stands above it in the tree"


def test_the_words_are_those_of_the_code() -> None:
    defined = re.findall(r"^    ([a-z-]+) {3,}\S", types.__doc__ or "", flags=re.MULTILINE)
    page = PAGES["how-it-works"]
    shown = re.findall(r"^\| ([a-z, -]+) \| [^|]+ \|$", page[page.index("| word | meaning |") :], flags=re.MULTILINE)
    assert {word for row in shown for word in row.split(", ")} - {"word"} == set(defined)


@pytest.mark.parametrize("name", TEXTS)
def test_every_file_and_target_that_is_named_exists(name: str) -> None:
    text = TEXTS[name]
    for config in re.findall(r"configs/\w+\.yaml", text):
        assert (ROOT / config).is_file(), config
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make ([\w-]+)|^make ([\w-]+)", text, flags=re.MULTILINE):
        assert re.search(rf"^{''.join(target)}:", makefile, flags=re.MULTILINE), target
    for file in re.findall(r"`(\w+\.py)`", text):
        assert list((ROOT / "rlvr_pl").rglob(file)) or file == "my_project.py", file


@pytest.mark.parametrize("name", TEXTS)
def test_every_file_that_is_linked_exists(name: str) -> None:
    folder = ROOT if name == "README" else ROOT / "docs"
    links = re.findall(r"\]\(([^)#\s]+)", TEXTS[name])
    missing = [link for link in links if not link.startswith("https://") and not (folder / link).is_file()]
    assert missing == []


def test_the_readme_is_one_page() -> None:
    assert len(README.splitlines()) <= 120


def test_no_sentence_stands_in_two_places() -> None:
    """Sentences of eight words and more, in prose and tables."""
    places: dict[str, list[str]] = {}
    for name, text in TEXTS.items():
        prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
        for sentence in re.split(r"(?<=[.:;?])\s|\n\n|\|", in_one_line(prose)):
            if len(sentence.split()) >= 8:
                places.setdefault(sentence, []).append(name)
    assert {sentence: names for sentence, names in places.items() if len(names) > 1} == {}
