"""What the README shows runs as it stands there."""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from rlvr_pl import types
from rlvr_pl.main import main
from rlvr_pl.module import GroupPolicyModule
from tests.helpers.paths import ROOT
from tests.helpers.policies import make_tiny_policy
from tests.helpers.runs import read_scalars, tiny_run
from tests.test_architecture import MAY_IMPORT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_extensions_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README[README.index("## Extend it") :], flags=re.DOTALL)
    assert len(blocks) == 3
    (tmp_path / "my_project.py").write_text("\n\n".join(blocks))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_project", raising=False)
    flags = [line.strip("`").split(" ", 1) for line in README.splitlines() if re.fullmatch(r"`--[^`]+`", line)]
    flags[0][1], clip = flags[0][1].split(" --model.loss.clip_low ")
    named = {key.removeprefix("--"): value.strip("'") for key, value in flags}
    assert set(named) == {"model.loss", "model.rewards", "data.source"}
    short = {"data.max_rollouts": 1, "model.max_completion_tokens": 64}  # long enough for some to end
    arguments = tiny_run(make_tiny_policy(tmp_path / "policy"), tmp_path, **named, **short)
    main([a for a in arguments if not a.startswith("--data.source.")] + [f"--model.loss.clip_low={clip}"])
    scalars = read_scalars(tmp_path / "run" / "version_0")
    assert 0 < scalars["train/reward/brevity"][1] <= 1
    assert scalars["train/reward"][1] == pytest.approx(
        scalars["train/reward/correctness"][1] + 0.5 * scalars["train/reward/brevity"][1], rel=1e-6
    )


def test_the_program_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (program,) = re.findall(r"## From Python\n\n```python\n(.*?)```", README, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # given back after the test
    short = "max_rollouts=1, val_size=4, eval_batch_size=64"
    assert program.count("max_rollouts=24") == 1
    names: dict[str, Any] = {}
    exec(program.replace("max_rollouts=24", short), names)
    assert names["module"].rollouts_done == names["trainer"].current_epoch == 1
    assert 0 <= names["trainer"].callback_metrics["test/accuracy"] <= 1


def test_the_training_step_reads_as_the_readme_prints_it() -> None:
    (printed,) = re.findall(r"```\n(rollout = .*?)```", README, flags=re.DOTALL)
    source = textwrap.dedent(inspect.getsource(GroupPolicyModule.training_step))
    body = [line.strip() for line in source.splitlines() if re.match(r" +\w+ = ", line)]
    assert body == printed.splitlines()


def test_the_tree_is_that_of_the_package() -> None:
    tree = re.findall(r"```\nrlvr_pl/\n(.*?)\ntests/", README, flags=re.DOTALL)[0]
    shown = [re.findall(r"\w+\.py|\w+/", line)[0] for line in tree.splitlines()]
    rooms = {path.name + "/" * path.is_dir() for path in (ROOT / "rlvr_pl").iterdir()}
    assert set(shown) == rooms - {"__init__.py", "__pycache__/"}
    names = [name.rstrip("/").removesuffix(".py") for name in shown]
    for i, name in enumerate(names):
        assert MAY_IMPORT[name] <= set(names[i + 1 :]), f"{name} imports what stands above it in the tree"


def test_the_words_are_those_of_the_code() -> None:
    defined = re.findall(r"^    ([a-z-]+) {3,}\S", types.__doc__ or "", flags=re.MULTILINE)
    shown = re.findall(
        r"^\| ([a-z, -]+) \| [^|]+ \|$", README[README.index("| word | meaning |") :], flags=re.MULTILINE
    )
    assert {word for row in shown for word in row.split(", ")} - {"word"} == set(defined)


def test_every_file_and_target_that_is_named_exists() -> None:
    for config in re.findall(r"configs/\w+\.yaml", README):
        assert (ROOT / config).is_file(), config
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make (\w+)", README):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
    for file in re.findall(r"`(\w+\.py)`", README):
        assert list((ROOT / "rlvr_pl").rglob(file)) or file == "my_project.py", file
