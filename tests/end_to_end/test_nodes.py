"""Two nodes, each with a launch of its own, are one process: the same run, in one folder, which one of them locks."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from rlvr_pl.main import main
from tests.helpers.paths import ROOT
from tests.helpers.policies import make_tiny_policy
from tests.helpers.runs import last_state, logged, tiny_run


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def on_two_nodes(arguments: list[str]) -> list[subprocess.CompletedProcess[str]]:
    """Start it twice, as examples/fit_nodes.slurm does with torchrun, but by the variables that Lightning reads."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "rlvr_pl", *arguments, "--trainer.num_nodes=2", "--trainer.strategy=ddp"]
    nodes = [
        subprocess.Popen(
            command,
            env={**os.environ, **shared, "NODE_RANK": str(node), "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for node in range(2)
    ]
    try:
        outputs = [node.communicate(timeout=600)[0] for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    return [
        subprocess.CompletedProcess(node.args, node.returncode, output)
        for node, output in zip(nodes, outputs, strict=True)
    ]


def test_a_run_goes_on_over_two_nodes(tmp_path: Path) -> None:
    policy = make_tiny_policy(tmp_path / "policy")
    settings: dict[str, Any] = {
        "model.optimizer": "torch.optim.SGD",  # AdamW would blow rounding up wherever a gradient is nearly 0
        "model.optimizer.lr": 0.3,
        "model.loss": "DrGRPO",
        "data.max_rollouts": 3,
    }
    whole, parted = tmp_path / "whole" / "run" / "version_0", tmp_path / "parted" / "run" / "version_0"
    main(tiny_run(policy, tmp_path / "whole", **settings))
    main(tiny_run(policy, tmp_path / "parted", **{**settings, "data.max_rollouts": 1}))
    nodes = on_two_nodes([*tiny_run(policy, tmp_path / "parted", **settings), "--ckpt_path=last"])
    assert [node.returncode for node in nodes] == [0, 0], [node.stdout for node in nodes]
    assert [folder.name for folder in parted.parent.iterdir()] == ["version_0"]
    assert sorted(file.name for file in parted.glob("config*.yaml")) == ["config-1.yaml", "config.yaml"]
    a, b = last_state(parted), last_state(whole)
    assert a["rollouts_done"] == b["rollouts_done"] == 3
    torch.testing.assert_close(a["state_dict"], b["state_dict"], rtol=1e-4, atol=1e-6)
    assert logged(parted)["train/reward"] == pytest.approx(logged(whole)["train/reward"], rel=1e-5)
    assert [sum("rollout" in line for line in node.stdout.splitlines()) for node in nodes][1] == 0, "one of them speaks"
