"""A run that was interrupted and resumed ends exactly as one that was not."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from rlvr_pl.main import main
from tests.helpers.runs import PowerCut, assert_same_run, last_state, logged, tiny_run

SETTINGS: dict[str, dict[str, Any]] = {
    "one update a rollout": {"model.minibatches_per_rollout": 1},
    "four updates, a KL term and a schedule": {
        "model.loss": "GRPO",  # its beta is 0.04
        "model.epochs_per_rollout": 2,
        "model.lr_schedule": "{warmup: 0.25, decay: cosine}",  # over 24 optimizer steps
    },
}


@pytest.fixture(scope="module", params=SETTINGS, ids=lambda name: name)
def uninterrupted(
    request: pytest.FixtureRequest, policy: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """A whole run, and the settings that it ran with."""
    folder = tmp_path_factory.mktemp("whole")
    main(tiny_run(policy, folder, **SETTINGS[request.param]))
    whole = folder / "run" / "version_0"
    assert set(logged(whole)["val/accuracy"]) == {0, 3, 6}
    assert set(logged(whole)["train/reward"]) == {1, 2, 3, 4, 5, 6}
    assert [logged(whole)["train/epoch"][r] for r in (2, 3, 5)] == [0, 1, 2]
    if "model.lr_schedule" in SETTINGS[request.param]:
        rates = logged(whole)["train/lr"]
        assert rates[1] == pytest.approx(1e-3 * 4 / 6), "of the rollout's last step"
        assert rates[6] == pytest.approx(1e-3 * (1 + math.cos(math.pi * 17 / 18)) / 2)
    grad_norms = logged(whole)["train/grad_norm"]
    assert all(norm > 0 for norm in grad_norms.values()), "a run without gradients could not tell a wrong resume"
    return whole, SETTINGS[request.param]


@pytest.mark.parametrize(
    ("rollout", "signum"),
    [(1, signal.SIGINT), (2, signal.SIGTERM), (3, signal.SIGHUP), (5, signal.SIGTERM), (6, signal.SIGINT)],
)
def test_a_signal_during_a_rollout(
    uninterrupted: tuple[Path, dict[str, Any]],
    policy: str,
    tmp_path: Path,
    rollout: int,
    signum: signal.Signals,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In a first and in a later epoch, where an evaluation follows (3), and in the last: the rollout is finished."""
    whole, settings = uninterrupted
    arguments = tiny_run(policy, tmp_path, **settings)
    with pytest.raises(SystemExit) as stopped:
        main(arguments + interrupt(during_rollout=rollout, signum=signum.value))
    assert stopped.value.code == 128 + signum
    left = f"after rollout {rollout} of 6" if rollout < 6 else "with the test; training is done"
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"Interrupted by {signum.name}. Go on {left}: python -m rlvr_pl fit --")
    assert said.endswith(" --ckpt_path last")
    run = tmp_path / "run" / "version_0"
    assert last_state(run)["rollouts_done"] == rollout
    assert json.loads((run / "run.json").read_text())["state"] == "interrupted"
    main([*arguments, "--ckpt_path=last"])
    assert [f.name for f in (tmp_path / "run").iterdir()] == ["version_0"], "the run goes on in its own folder"
    assert_same_run(run, whole)


def interrupt(**settings: Any) -> list[str]:
    flags = [f"--trainer.callbacks.{key}={value}" for key, value in settings.items()]
    return ["--trainer.callbacks=tests.helpers.runs.Interrupt", *flags]


@pytest.mark.parametrize(
    ("phase", "said"),
    [("baseline", "Nothing is saved yet; start anew: "), ("test", "Go on with the test; training is done")],
)
def test_a_signal_around_training_ends_the_run_at_once(
    phase: str, said: str, policy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = tiny_run(policy, tmp_path, report_test="true", **{"data.max_rollouts": 1})
    with pytest.raises(SystemExit) as stopped:
        main(arguments + interrupt(phase=phase, signum=signal.SIGTERM.value))
    assert stopped.value.code == 143
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"Interrupted by SIGTERM. {said}")
    run = tmp_path / "run" / "version_0"
    assert json.loads((run / "run.json").read_text())["state"] == "interrupted"
    if phase == "test":
        main([*arguments, "--ckpt_path=last"])
        assert json.loads((run / "run.json").read_text())["state"] == "finished"
        assert set(logged(run)["test/accuracy"]) == {0, 1}


def test_power_cut_inside_an_update(uninterrupted: tuple[Path, dict[str, Any]], policy: str, tmp_path: Path) -> None:
    """The rollout in progress is lost; the checkpoint before it is whole, and the rollout is done again."""
    whole, settings = uninterrupted
    arguments = tiny_run(policy, tmp_path, **settings)
    cut = ["--trainer.callbacks=tests.helpers.runs.PowerCut", "--trainer.callbacks.during_rollout=5"]
    with pytest.raises(PowerCut.Cut):
        main(arguments + cut)
    run = tmp_path / "run" / "version_0"
    assert last_state(run)["rollouts_done"] == 4
    main([*arguments, "--ckpt_path=last"])
    assert_same_run(run, whole)


def test_training_does_not_depend_on_evaluation(
    uninterrupted: tuple[Path, dict[str, Any]], policy: str, tmp_path: Path
) -> None:
    whole, settings = uninterrupted
    more = {"trainer.val_check_interval": 1, "model.eval_temperature": 1.0, "model.eval_samples": 2}
    main(tiny_run(policy, tmp_path, **settings, **more))
    torch.testing.assert_close(
        last_state(tmp_path / "run" / "version_0")["state_dict"], last_state(whole)["state_dict"], rtol=0, atol=0
    )


def test_a_finished_run_can_be_given_more_rollouts(policy: str, tmp_path: Path) -> None:
    main(tiny_run(policy, tmp_path / "short", **{"data.max_rollouts": 3}))
    main([*tiny_run(policy, tmp_path / "short"), "--ckpt_path=last"])
    main(tiny_run(policy, tmp_path / "whole"))
    assert_same_run(tmp_path / "short" / "run" / "version_0", tmp_path / "whole" / "run" / "version_0")


def test_flags_beat_the_checkpoint_on_resume(policy: str, tmp_path: Path) -> None:
    arguments = tiny_run(policy, tmp_path, **{"data.max_rollouts": 2})
    main(arguments)
    checkpoint = tmp_path / "run" / "version_0" / "checkpoints" / "last.ckpt"
    changes = {"data.max_rollouts": 3, "model.temperature": 0.5, "model.optimizer.lr": 5e-4}
    changed = tiny_run(policy, tmp_path, **changes)
    main([*changed, f"--ckpt_path={checkpoint}"])
    resumed = tmp_path / "run" / "version_1"  # a file starts a run of its own
    state = last_state(resumed)
    assert state["rollouts_done"] == 3
    assert state["hyper_parameters"]["temperature"] == 0.5
    assert logged(resumed)["train/lr"] == {3: pytest.approx(5e-4)}
    main([*tiny_run(policy, tmp_path / "cold", **{"data.max_rollouts": 3, "model.temperature": 1.0})])
    warm = logged(tmp_path / "cold" / "run" / "version_0")["train/entropy"][3]
    assert logged(resumed)["train/entropy"][3] < warm, "the rollout was sampled at the flag's temperature"


def test_a_rate_that_no_number_can_be_ends_in_one_line(
    policy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    schedule = {"model.lr_scheduler": "tests.helpers.runs.exploding_schedule"}
    with pytest.raises(SystemExit) as stopped:
        main(tiny_run(policy, tmp_path, **{"data.max_rollouts": 1}, **schedule))
    assert stopped.value.code == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: an optimizer step of rollout 1 overflows at a learning rate of 1e+39. Nothing is ")
    assert said.endswith(" --model.optimizer.lr=0.0005")


def test_a_signal_of_slurm_s_is_a_signal_to_stop(
    policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lightning would save in the middle of the rollout, where nobody goes on from, and requeue the job by itself."""
    slurm = {"NTASKS": 1, "NTASKS_PER_NODE": 1, "NNODES": 1, "JOB_ID": 7, "JOB_NAME": "fit", "NODELIST": "localhost"}
    for name, value in slurm.items() | {"PROCID": 0, "LOCALID": 0, "NODEID": 0}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    (tmp_path / "scontrol").write_text(f"#!/bin/sh\ntouch {tmp_path / 'requeued'}\n")
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(tiny_run(policy, tmp_path) + interrupt(during_rollout=2, signum=signal.SIGUSR1.value))
    assert stopped.value.code == 138
    assert "Interrupted by SIGUSR1. Go on after rollout 2 of 6: " in capsys.readouterr().err
    assert last_state(tmp_path / "run" / "version_0")["rollouts_done"] == 2
    assert not (tmp_path / "requeued").exists()
    assert not list(tmp_path.rglob("hpc_ckpt*"))


def test_a_run_that_has_diverged_goes_on_as_its_message_says(
    policy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the newest checkpoint, whose weights are finite, and with the rate that was asked for."""
    main(tiny_run(policy, tmp_path, **{"data.max_rollouts": 1}))
    run = tmp_path / "run" / "version_0"
    arguments = [
        *tiny_run(policy, tmp_path, **{"data.max_rollouts": 2, "model.optimizer.lr": 1e30}),
        "--ckpt_path=last",
    ]
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: the ")
    assert "not finite" in said
    assert "Go on with a lower learning rate after rollout 1 of 2: python -m rlvr_pl fit --" in said
    assert said.endswith("--ckpt_path last --model.optimizer.lr=5e+29")
    assert json.loads((run / "run.json").read_text())["state"] == "failed"
    assert all(torch.isfinite(weight).all() for weight in last_state(run)["state_dict"].values())
    main([*arguments, "--model.optimizer.lr=0.001"])
    assert json.loads((run / "run.json").read_text())["state"] == "finished"
    assert logged(run)["train/lr"] == {1: pytest.approx(1e-3), 2: pytest.approx(1e-3)}
