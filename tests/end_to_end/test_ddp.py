"""Two ranks are one: the same prompts, completions, weights, logs and records, up to rounding."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from rlvr_pl.main import main
from tests.helpers.paths import ROOT
from tests.helpers.policies import make_tiny_policy
from tests.helpers.runs import read_scalars, tiny_run


@pytest.mark.parametrize(
    "more",
    [{}, {"model.lora.r": 4, "model.loss.beta": 0.04, "data.max_rollouts": 3}],
    ids=["weights", "an adapter and its reference"],
)
def test_two_ranks_are_one(more: dict[str, Any], tmp_path: Path) -> None:
    """With unequal token counts, zero-variance groups on one rank alone, and 7 questions that do not divide by 2."""
    policy = make_tiny_policy(tmp_path / "policy")
    settings = {
        "model.optimizer": "torch.optim.SGD",  # AdamW would blow rounding up wherever a gradient is nearly 0
        "model.optimizer.lr": 0.3,
        "model.loss": "DrGRPO",
        "model.group_size": 2,
        "data.val_size": 7,
        "report_test": "true",
        **more,
    }
    main(tiny_run(policy, tmp_path / "one", **settings))
    two = tiny_run(policy, tmp_path / "two", **settings, **{"trainer.devices": 2, "trainer.strategy": "ddp"})
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-m", "rlvr_pl", *two], env=environment, check=True, timeout=240)

    runs = [tmp_path / name / "run" / "version_0" for name in ("one", "two")]
    states = [torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in runs]
    torch.testing.assert_close(states[0]["state_dict"], states[1]["state_dict"], rtol=1e-4, atol=1e-6)
    assert states[0]["completion_tokens"] == states[1]["completion_tokens"]
    initial = torch.load(runs[0] / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    if not more:
        assert any(not torch.equal(initial[name], w) for name, w in states[0]["state_dict"].items()), "it learned"
    else:  # best.ckpt may be the last one here; B starts from 0
        assert any(w.abs().max() > 0 for name, w in states[0]["state_dict"].items() if "lora_B" in name), "it learned"

    scalars = [read_scalars(run) for run in runs]
    for tag in scalars[0]:
        if not tag.startswith(("wall/",)):
            assert scalars[1][tag] == pytest.approx(scalars[0][tag], rel=1e-3, abs=1e-6), tag
    for file in (runs[0] / "evaluations").iterdir():
        assert (runs[1] / "evaluations" / file.name).read_text() == file.read_text()
