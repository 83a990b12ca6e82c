"""run.json is read whole, or counts as none."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from rlvr_pl.run.state import RunState, read_run_file, read_run_state


def test_a_state_comes_back_as_it_was_written(tmp_path: Path) -> None:
    state = RunState(state="finished", seed=3, rollouts_done=7, evaluation_seconds={"val": 1.5})
    (tmp_path / "run.json").write_text(json.dumps(asdict(state)))
    assert read_run_state(tmp_path) == state


def test_a_folder_without_one_has_none_and_that_is_not_wrong(tmp_path: Path) -> None:
    assert read_run_state(tmp_path) is None
    assert read_run_file(tmp_path) == ({}, None)


@pytest.mark.parametrize(
    ("content", "problem"), [("", "run.json is unreadable ("), ("[]", "run.json is not a JSON object")]
)
def test_what_is_wrong_with_a_file_is_said(content: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(content)
    values, said = read_run_file(tmp_path)
    assert values == {}
    assert said is not None
    assert said.startswith(problem)


@pytest.mark.parametrize("content", ["", '{"state": "trai', "[]", '{"state": "training"}'])
def test_what_a_power_cut_left_of_the_file_is_no_state(content: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(content)
    assert read_run_state(tmp_path) is None
