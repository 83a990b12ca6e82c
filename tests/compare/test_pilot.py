"""The dry run's table of what a comparison would find."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rlvr_pl.compare.command import compare_command
from rlvr_pl.compare.pilot import pilot_table
from rlvr_pl.types import ConfigError
from tests.helpers.paths import ROOT
from tests.helpers.studies import write_run

CONFIG = str(ROOT / "configs" / "compare_embedded.yaml")


def write_pilot(folder: Path, arms: dict[str, list[list[bool]]]) -> None:
    """Finished runs: of each arm a row per seed of right answers after training."""
    for arm, seeds in arms.items():
        for seed, right in enumerate(seeds):
            write_run(folder, arm, seed, final=right, questions=len(right))


def cells(folder: Path, arms: int) -> dict[str, list[str]]:
    table = pilot_table(folder, arms)
    questions, *points = (list(column.cells) for column in table.columns)
    return {str(q): [str(column[i]) for column in points] for i, q in enumerate(questions)}


def test_the_fewer_pairs_and_the_more_questions_the_fewer_seeds(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    answers = (rng.random((1, 1, 200)) < 0.7) ^ (rng.random((2, 3, 200)) < 0.05)  # what runs share, and chance
    write_pilot(tmp_path, {arm: of_arm.tolist() for arm, of_arm in zip("AB", answers, strict=True)})
    two, four = cells(tmp_path, 2), cells(tmp_path, 4)
    assert list(two) == list(four) == ["200", "512", "1,319", "4,096"]
    points = [int(row[2]) for row in two.values()]
    assert points == sorted(points, reverse=True)
    assert points[0] > points[-1]
    for questions, row in four.items():
        assert int(row[2]) > int(two[questions][2])


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ({"A": [[True, False]], "B": [[True, True]]}, "no two arms with two seeds"),
        ({"A": [[True, False]] * 2, "B": [[True, False]] * 2}, "gave the same answers throughout"),
    ],
)
def test_a_pilot_that_tells_nothing_is_refused(arms: dict[str, list[list[bool]]], message: str, tmp_path: Path) -> None:
    write_pilot(tmp_path, arms)
    with pytest.raises(ConfigError, match=message):
        pilot_table(tmp_path, 2)


def test_a_pilot_is_for_the_dry_run() -> None:
    with pytest.raises(ConfigError, match="--pilot plans a comparison, and is for --dry-run"):
        compare_command(["--config", CONFIG, "--pilot", "somewhere"])


def test_a_pilot_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match="there is no folder 'nowhere'"):
        compare_command(["--config", CONFIG, "--dry-run", "--pilot", "nowhere"])
