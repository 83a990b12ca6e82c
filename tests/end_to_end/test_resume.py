"""A run that was interrupted and resumed ends exactly as one that was not."""

from __future__ import annotations

import math
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


@pytest.mark.parametrize("rollout", [1, 2, 3, 5])
def test_ctrl_c_during_a_rollout(
    uninterrupted: tuple[Path, dict[str, Any]], policy: str, tmp_path: Path, rollout: int
) -> None:
    """In a first and in a later epoch, and where an evaluation follows (3): the rollout is finished, then resumed."""
    whole, settings = uninterrupted
    arguments = tiny_run(policy, tmp_path, **settings)
    interrupt = ["--trainer.callbacks=tests.helpers.runs.Interrupt", f"--trainer.callbacks.during_rollout={rollout}"]
    with pytest.raises(SystemExit) as stopped:
        main(arguments + interrupt)
    assert stopped.value.code == 130
    run = tmp_path / "run" / "version_0"
    assert last_state(run)["rollouts_done"] == rollout
    main([*arguments, "--ckpt_path=last"])
    assert [f.name for f in (tmp_path / "run").iterdir()] == ["version_0"], "the run goes on in its own folder"
    assert_same_run(run, whole)


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
    changed = tiny_run(policy, tmp_path, **{"data.max_rollouts": 3, "model.temperature": 0.5})
    main([*changed, f"--ckpt_path={checkpoint}"])
    resumed = tmp_path / "run" / "version_1"  # a file starts a run of its own
    state = last_state(resumed)
    assert state["rollouts_done"] == 3
    assert state["hyper_parameters"]["temperature"] == 0.5
    main([*tiny_run(policy, tmp_path / "cold", **{"data.max_rollouts": 3, "model.temperature": 1.0})])
    warm = logged(tmp_path / "cold" / "run" / "version_0")["train/entropy"][3]
    assert logged(resumed)["train/entropy"][3] < warm, "the rollout was sampled at the flag's temperature"
