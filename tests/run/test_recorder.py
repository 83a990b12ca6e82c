"""run.json says how far a run is and what it has cost, also over an interruption."""

from __future__ import annotations

import re
import resource
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rlvr_pl.main import main
from rlvr_pl.run.display import RolloutProgressBar
from rlvr_pl.run.state import RunState, read_run_state
from tests.helpers.runs import PowerCut, read_scalars, tiny_run


def state_of(run: Path) -> RunState:
    state = read_run_state(run)
    assert state is not None
    return state


def assert_whole(run: Path) -> None:
    """Six rollouts of 8 prompts × 4 completions in 2 minibatches, and the seconds that were logged for each."""
    state, scalars = state_of(run), read_scalars(run)
    assert (state.state, state.objective, state.seed) == ("finished", "GSPO", 0)
    assert (state.rollouts_done, state.max_rollouts, state.samples, state.optimizer_steps) == (6, 6, 192, 12)
    assert state.completion_tokens == round(sum(scalars["train/tokens_mean"].values()) * 32)
    logged = [scalars[f"wall/{part}_s"][rollout] for part in ("rollout", "reward", "update") for rollout in range(1, 7)]
    assert state.train_seconds == pytest.approx(sum(logged), rel=1e-4)
    assert state.wall_seconds > state.train_seconds
    assert state.best_rollout == 3, "the first of two evaluations that were equally good"
    assert state.val_accuracy == scalars["val/accuracy"][6]


def test_a_run_from_start_to_end(policy: str, tmp_path: Path) -> None:
    main(tiny_run(policy, tmp_path, report_test="true"))
    run = tmp_path / "run" / "version_0"
    assert_whole(run)
    state = state_of(run)
    assert set(state.evaluation_seconds) == {"val", "test"}
    assert state.environment["precision"] == "32-true"
    assert state.environment["hardware"].endswith("cores")


def test_ctrl_c_and_resume_count_everything_once(
    policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In run.json, in the table at the end and in the progress bar."""
    arguments = tiny_run(policy, tmp_path)
    interrupt = ["--trainer.callbacks=tests.helpers.runs.Interrupt", "--trainer.callbacks.during_rollout=4"]
    with pytest.raises(SystemExit):
        main(arguments + interrupt)
    run = tmp_path / "run" / "version_0"
    before = state_of(run)
    assert (before.state, before.rollouts_done, before.best_rollout) == ("interrupted", 4, None)
    summaries: list[dict[str, Any]] = []
    monkeypatch.setattr("rlvr_pl.cli.print_summary", lambda *_, **values: summaries.append(values))
    monkeypatch.setattr("rlvr_pl.cli.make_progress_bar", RolloutProgressBar)  # as on a terminal
    capsys.readouterr()
    main([*arguments, "--ckpt_path=last", "--trainer.enable_progress_bar=true"])
    assert_whole(run)
    assert state_of(run).wall_seconds > before.wall_seconds
    assert [summary["seconds"] for summary in summaries] == [state_of(run).wall_seconds]
    bars = re.findall(r"Rollouts: .*?(\d+)/(\d+) \[", capsys.readouterr().out)
    assert sorted(set(bars)) == [("4", "6"), ("5", "6"), ("6", "6")]


def test_a_power_cut_counts_the_lost_rollout_once(policy: str, tmp_path: Path) -> None:
    arguments = tiny_run(policy, tmp_path, **{"resume_point.every_n_rollouts": 2})
    cut = ["--trainer.callbacks=tests.helpers.runs.PowerCut", "--trainer.callbacks.during_rollout=6"]
    with pytest.raises(PowerCut.Cut):
        main(arguments + cut)
    run = tmp_path / "run" / "version_0"
    assert (state_of(run).state, state_of(run).rollouts_done) == ("failed", 5)
    main([*arguments, "--ckpt_path=last"])  # from 4 rollouts: the fifth is done again
    assert_whole(run)
    shown = EventAccumulator(str(run)).Reload().Scalars("train/reward")
    assert [event.step for event in shown] == [1, 2, 3, 4, 5, 6], "TensorBoard has forgotten the first of the two"


def test_a_full_disk_ends_in_one_line_and_loses_nothing(
    policy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The system refuses files as large as a checkpoint."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 17, limits[1]))
    try:
        with pytest.raises(SystemExit) as stopped:
            main(tiny_run(policy, tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    run = tmp_path / "run" / "version_0"
    assert stopped.value.code == 1
    said = capsys.readouterr().err.splitlines()
    assert sum("rror" in line for line in said) == 1
    assert re.match(rf"error: cannot write {run}/checkpoints/last\.ckpt: File too large \(.* MB are free", said[-1])
    assert state_of(run).state == "failed"
    assert list((run / "checkpoints").iterdir()) == []


def test_a_reward_that_fails_is_named_in_one_line(
    policy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rewards = '[{"function": "tests.helpers.runs.broken_reward"}]'
    with pytest.raises(SystemExit) as stopped:
        main(tiny_run(policy, tmp_path, **{"model.rewards": rewards}))
    assert stopped.value.code == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert re.search(r"error: model\.rewards: broken_reward raised \(ZeroDivisionError: .*runs\.py, line \d+", said)
    assert state_of(tmp_path / "run" / "version_0").state == "failed"
