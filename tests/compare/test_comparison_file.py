"""A mistake in a comparison file is named, with its remedy, before fit is asked for anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlvr_pl.compare.comparison_file import load_comparison
from rlvr_pl.config_files import find_config
from rlvr_pl.main import main
from rlvr_pl.types import ConfigError
from tests.helpers.comparisons import plan

LR = {"model.optimizer.lr": [1e-4, 2e-4]}


def tuned(grid: dict[str, Any], seeds: tuple[int, ...] | list[int] = (100, 101)) -> dict[str, Any]:
    return {"tune": {"grid": grid, "seeds": list(seeds)}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": [0]}, r"unknown key 'seed'\. Did you mean seeds\?"),
        ({"colour": "red"}, r"unknown key 'colour'\. Choose from folder, base, arms, seeds"),
        ({"arms": None}, "arms is missing"),
        ({"arms": {}}, "arms is empty"),
        ({"arms": {"a/b": {}}}, r"arms: 'a/b' cannot name a folder"),
        ({"arms": {"..": {}}}, r"arms: '\.\.' cannot name a folder"),
        ({"arms": {"figures": {}}}, "arms: 'figures' cannot name a folder of its own"),
        ({"arms": {"a,1": {}}}, "arms: 'a,1' cannot name"),
        ({"arms": {1: {}}}, "arms: the name 1 is not a string in YAML; put it in quotes"),
        ({"arms": {"GRPO": {}, "grpo": {}}}, "differ only in case"),
        ({"arms": {"A": ["model.loss"]}}, "arms: A is .* must map dotted keys"),
        ({"arms": {"A": {"seed_everything": 3}}}, "arms: A: seed_everything belongs to a single run"),
        ({"arms": {"A": {"seed_offset": -1}}}, "arms: A: seed_offset is -1; it must be an integer of at least 0"),
        ({"overrides": {"trainer.logger.name": "x"}}, r"overrides: trainer\.logger\.name belongs to a single run"),
        (
            {"arms": {"A": {"trainer.enable_progress_bar": True}}},
            r"arms: A: trainer\.enable_progress_bar belongs to a single run",
        ),
        (
            {"arms": {"A": {"trainer": {"logger": {"name": "x"}}}}},
            r"arms: A: trainer\.logger\.name belongs to a single",
        ),
        ({"seeds": []}, r"seeds is \[\]; it must be a list"),
        ({"seeds": [0, 1, 0]}, "seeds: 0 is listed twice"),
        ({"seeds": [-1]}, r"seeds is \[-1\]"),
        ({"seeds": [True]}, r"seeds is \[True\]"),
        ({"base": "quickstart.yaml"}, "base is 'quickstart.yaml'; it must be a list"),
        ({"processes": 0}, "processes is 0; it must be a number of at least 1"),
        ({"devices": ["cuda:0"]}, r"devices is \['cuda:0'\]; it must be a list of GPU numbers"),
        ({"margin": 0}, r"margin is 0; it must be a number of points of accuracy, such as 2\.0"),
        ({"margin": "2 %"}, "margin is '2 %'"),
        ({"metric": "accuracy"}, "metric is 'accuracy'; choose from strict, flexible"),
        ({"checkpoint": "first"}, "checkpoint is 'first'; choose from best, last"),
        ({"thresholds": [0.5, 170]}, r"thresholds is \[0\.5, 170\]; it must be a list of percent of val accuracy"),
        ({"thresholds": 50}, "thresholds is 50; it must be a list"),
        ({"arms": {"tuning": {}}}, "arms: 'tuning' cannot name a folder of its own"),
        ({"tune": {"grid": LR}}, "tune is .* must have the keys grid and seeds, such as"),
        (tuned({}), r"tune: grid is \{\}; it must map"),
        (tuned({"model.optimizer.lr": 1e-4}), r"tune: grid: model\.optimizer\.lr is 0\.0001; it must be a list"),
        (tuned({"model.optimizer.lr": [1e-4]}), "tune: grid has one setting, and nothing to choose from"),
        (tuned({"model.optimizer.lr": [1e-4, 1e-4]}), "tried twice adds no choice"),
        (tuned({"trainer.logger.name": ["a", "b"]}), r"tune: grid: trainer\.logger\.name belongs to a single run"),
        (tuned(LR, seeds=[7, 7]), "tune: seeds: 7 is listed twice"),
        (tuned(LR, seeds=[0, 7]), "tune: seeds: 0 would be of the result as well.*take others"),
        (
            tuned(LR) | {"arms": {"A": {"model.optimizer.lr": 1e-4}}},
            r"tune: grid: model\.optimizer\.lr is set by arm A as well",
        ),
        (
            tuned(LR, seeds=[100]) | {"arms": {"A": {}, "B": {"seed_offset": 100}}},
            "tune: seeds: 100 would be of the result",
        ),
        ({"allow_unequal_budgets": "yes"}, "allow_unequal_budgets is 'yes'; it must be true or false"),
    ],
)
def test_a_mistake_in_the_file_is_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"compare\.yaml: .*{message}"):
        plan(tmp_path, **changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("arms: {A: {}, A: {model.loss: GRPO}}", "'A' is listed twice"),
        ("arms: [", "compare.yaml: while parsing"),
        ("- arms", "a comparison is a mapping"),
        ("", "a comparison is a mapping"),
    ],
)
def test_what_is_no_comparison_is_refused(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "compare.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_comparison(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--config: cannot read .*nowhere\.yaml"):
        load_comparison(tmp_path / "nowhere.yaml")


def test_a_shipped_comparison_is_found_by_name_and_its_base_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    comparison = load_comparison(Path(find_config("compare_embedded")))
    assert comparison.fit_arguments(comparison.runs()[0])[:2] == ["fit", "--config=quickstart"]
    assert comparison.resolved["GRPO"]["model.loss.init_args.clip_low"] == 0.2
    with pytest.raises(SystemExit) as stopped:
        main(["compare", "--config", "compare_embeded"])
    assert stopped.value.code == 2
    assert "Did you mean compare_embedded" in capsys.readouterr().err
