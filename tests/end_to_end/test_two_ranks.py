"""Two ranks are one, whether each has the whole policy (DDP) or a part of it (sharded).

The same prompts, completions, rewards, logs and records; weights up to rounding, for sums are taken in another order.
All runs of two ranks are done by one pair of processes, one after another.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from rlvr_pl import losses
from rlvr_pl.main import main
from rlvr_pl.run.checkpoints import end_launched
from rlvr_pl.run.records import read_records
from tests.helpers.paths import CONFIGS, ROOT
from tests.helpers.policies import make_tiny_policy
from tests.helpers.runs import TIMES, last_state, noted, read_scalars, tiny_run
from tests.helpers.two_ranks import run_on_two_ranks

OBJECTIVES = sorted(name for name in losses.__all__ if name != "LossStrategy")
STRATEGIES = ("ddp", "sharded")

# Of what the run has moved a weight at most. In float32 it is some 5e-7: a gradient is summed in another order. In
# bfloat16 it is up to 2e-3: products have 3 digits, and two ranks pack other completions together.
ROUNDING = {"32-true": 1e-5, "bf16-mixed": 2e-2}

# AdamW blows rounding up wherever a gradient is nearly 0.
SGD = {"model.optimizer": "torch.optim.SGD", "model.optimizer.lr": 0.3}
SETTINGS: dict[str, dict[str, Any]] = {
    **{
        f"{name} {precision}": {
            **SGD,
            "model.loss": name,
            "model.loss.beta": 0.04 if name == "GRPO" else 0.0,
            "model.gradient_checkpointing": "true",
            "trainer.precision": precision,
            "data.max_rollouts": 2 if precision == "32-true" else 1,
            "data.val_size": 3,
        }
        for name in OBJECTIVES
        for precision in ROUNDING
    },
    # A prompt a rank: the groups of one rank alone are all zero-variance now and then, or those of both.
    "nothing to learn for one": {
        **SGD,
        "model.loss": "DrGRPO",
        "model.rewards": '[{"function": "tests.helpers.runs.digit_share_of_some"}]',
        "model.minibatches_per_rollout": 1,
        "data.prompts_per_rollout": 2,
        "data.val_size": 7,
        "report_test": "true",
    },
    "an adapter and its reference": {
        **SGD,
        "model.loss": "DrGRPO",
        "model.group_size": 2,
        "model.lora.r": 4,
        "model.loss.beta": 0.04,
        "data.max_rollouts": 2,
    },
    "moments": {
        "model.optimizer": "torch.optim.AdamW",
        "model.optimizer.lr": 1e-2,
        "model.optimizer.eps": 1e-2,  # or it would blow rounding up
        "model.loss": "GSPO",
        "data.max_rollouts": 4,
    },
}
CASES = [
    *((f"{name} {precision}", "sharded") for name in OBJECTIVES for precision in ROUNDING),
    *((name, strategy) for name in ("nothing to learn for one", "moments") for strategy in STRATEGIES),
    ("an adapter and its reference", "ddp"),
]


@dataclass(frozen=True)
class Runs:
    """Where the runs lie, and how those of two ranks have ended."""

    folder: Path
    statuses: dict[str, tuple[int, int]]

    def __call__(self, *name: str) -> Path:
        return self.folder / "-".join(name) / "run" / "version_0"

    def notes(self, *name: str) -> dict[int, list[Any]]:
        return noted(self.folder / "-".join(name) / "notes")


def flags(policy: str, folder: Path, settings: dict[str, Any], strategy: str | None = None, **more: Any) -> list[str]:
    """Arguments of a run that notes its completions, on two ranks where there is a strategy."""
    notebook = {"class_path": "tests.helpers.runs.Notebook", "init_args": {"folder": str(folder / "notes")}}
    settings = {**settings, **more, "trainer.callbacks": json.dumps([notebook, *more.get("trainer.callbacks", [])])}
    if strategy is not None:
        settings["trainer.devices"] = 2
    command, *arguments = tiny_run(policy, folder, **settings)
    overlay = {"sharded": [f"--config={CONFIGS / 'sharded.yaml'}"], "ddp": ["--trainer.strategy=ddp"], None: []}
    return [command, *overlay[strategy], *arguments]


def interrupted(signum: signal.Signals, ranks: list[int]) -> dict[str, Any]:
    callback = {"during_rollout": 2, "signum": signum.value, "ranks": ranks}
    return {"trainer.callbacks": [{"class_path": "tests.helpers.runs.Interrupt", "init_args": callback}]}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    base = tmp_path_factory.mktemp("ranks")
    policy = make_tiny_policy(base / "policy")
    on_two: dict[str, list[str]] = {}
    for name, settings in SETTINGS.items():
        main(flags(policy, base / name, settings))
    for name, strategy in CASES:
        on_two[f"{name}-{strategy}"] = flags(policy, base / f"{name}-{strategy}", SETTINGS[name], strategy)
    moments, begun = SETTINGS["moments"], base / "begun on one"
    main(flags(policy, begun, moments, **{"data.max_rollouts": 2}))
    for strategy in STRATEGIES:
        folder = base / f"continued-{strategy}"
        shutil.copytree(begun, folder)
        on_two[f"continued-{strategy}"] = [*flags(policy, folder, moments, strategy), "--ckpt_path=last"]
        signum, ranks = (signal.SIGINT, [1]) if strategy == "ddp" else (signal.SIGTERM, [0, 1])
        folder = base / f"stopped-{strategy}"
        on_two[f"stopped-{strategy}"] = flags(policy, folder, moments, strategy, **interrupted(signum, ranks))
        on_two[f"resumed-{strategy}"] = [*flags(policy, folder, moments, strategy), "--ckpt_path=last"]
    on_two["odd"] = flags(policy, base / "odd", {"data.prompts_per_rollout": 6}, "ddp")
    ended = run_on_two_ranks(list(on_two.values()), base)
    main([*flags(policy, base / "stopped-sharded", {**moments, "data.max_rollouts": 5}), "--ckpt_path=last"])
    main(flags(policy, base / "five", {**moments, "data.max_rollouts": 5}))
    return Runs(base, dict(zip(on_two, ended, strict=True)))


def weights(run: Path) -> dict[str, Tensor]:
    return last_state(run)["state_dict"]


def largest_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert [(name, w.shape, w.dtype) for name, w in a.items()] == [(name, w.shape, w.dtype) for name, w in b.items()]
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def moved(runs: Runs, state: dict[str, Tensor]) -> float:
    """How far the run has moved a weight at most; an adapter's B starts from 0."""
    initial = {f"policy.{name}": w for name, w in load_file(runs.folder / "policy" / "model.safetensors").items()}
    return max(float((w - initial.get(name, 0)).abs().max()) for name, w in state.items() if "lora_A" not in name)


@pytest.mark.parametrize(("name", "strategy"), CASES)
def test_two_ranks_are_one(name: str, strategy: str, runs: Runs) -> None:
    assert runs.statuses[f"{name}-{strategy}"] == (0, 0)
    of_one, of_two = runs.notes(name)[0], runs.notes(name, strategy)
    assert set(of_two) == {0, 1}
    assert sorted(of_two[0] + of_two[1]) == of_one, "the same tokens and rewards, to the bit"
    one, two = weights(runs(name)), weights(runs(name, strategy))
    far = moved(runs, one)
    assert far > 1e-3, "it learned"
    assert largest_difference(one, two) < far * ROUNDING[SETTINGS[name].get("trainer.precision", "32-true")]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_ranks_share_what_is_unequal(strategy: str, runs: Runs) -> None:
    """Of some rollouts one rank alone has something to learn from, of some neither; tokens are never as many."""
    name = "nothing to learn for one"
    learns: dict[int, list[bool]] = {}
    tokens: dict[int, list[int]] = {}
    for rank, lines in runs.notes(name, strategy).items():
        rewards = [[reward for (i, *_), _, reward in lines if i == rollout] for rollout in range(6)]
        learns[rank] = [len(set(group)) > 1 for group in rewards]
        tokens[rank] = [sum(len(ids) for (i, *_), ids, _ in lines if i == rollout) for rollout in range(6)]
    kinds = set(zip(learns[0], learns[1], strict=True))
    assert kinds & {(True, False), (False, True)}, "which the weights have been seen to come through"
    assert any(a != b for a, b in zip(tokens[0], tokens[1], strict=True))
    scalars = [read_scalars(run) for run in (runs(name), runs(name, strategy))]
    for tag in scalars[0]:
        if not tag.startswith(TIMES):
            assert scalars[1][tag] == pytest.approx(scalars[0][tag], rel=1e-3, abs=1e-6), tag


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_each_question_is_evaluated_once(strategy: str, runs: Runs) -> None:
    """Seven questions do not divide by two."""
    name = "nothing to learn for one"
    files = sorted((runs(name) / "evaluations").iterdir())
    assert {file.stem.partition("-")[0] for file in files} == {"val", "test"}
    for file in files:
        records = runs(name, strategy) / "evaluations" / file.name
        questions = [record["question"] for record in read_records(records)]
        assert len(questions) == len(set(questions)) == (7 if "val" in file.stem else 6)
        assert records.read_text() == file.read_text()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_run_of_one_rank_goes_on_with_two(strategy: str, runs: Runs) -> None:
    assert runs.statuses[f"continued-{strategy}"] == (0, 0)
    one, two = last_state(runs("moments")), last_state(runs("continued", strategy))
    assert one["rollouts_done"] == two["rollouts_done"] == 4
    assert_near(runs, one, two)


def test_a_sharded_run_goes_on_with_one_rank(runs: Runs) -> None:
    one, resumed = last_state(runs("five")), last_state(runs("stopped", "sharded"))
    assert one["rollouts_done"] == resumed["rollouts_done"] == 5
    assert_near(runs, one, resumed)


def assert_near(runs: Runs, one: dict[str, Any], two: dict[str, Any]) -> None:
    """Weights and moments are the same up to rounding."""
    far = moved(runs, one["state_dict"])
    assert largest_difference(one["state_dict"], two["state_dict"]) < 1e-4 * far
    (a,), (b,) = one["optimizer_states"], two["optimizer_states"]
    assert a["param_groups"] == b["param_groups"]
    assert list(a["state"]) == list(b["state"])
    for i, moments in a["state"].items():
        assert float(moments["step"]) == float(b["state"][i]["step"]) > 0
        for name in ("exp_avg", "exp_avg_sq"):
            apart = (moments[name] - b["state"][i][name]).abs().max()
            assert apart <= 1e-4 * max(float(x[name].abs().max()) for x in a["state"].values())


@pytest.mark.parametrize(
    ("strategy", "signum"), [("ddp", signal.SIGINT), ("sharded", signal.SIGTERM)], ids=["to one rank", "to both"]
)
def test_all_ranks_end_after_the_rollout_in_which_one_is_asked_to(
    strategy: str, signum: signal.Signals, runs: Runs
) -> None:
    assert runs.statuses[f"stopped-{strategy}"] == (128 + signum, 128 + signum)
    assert runs.statuses[f"resumed-{strategy}"] == (0, 0)
    notes = runs.notes("stopped", strategy)
    for rank in (0, 1):
        places = [tuple(place) for place, *_ in notes[rank]]
        assert len(places) == len(set(places)), "none was done twice"
        with_one = {4} if strategy == "sharded" and rank == 0 else set()  # see below
        assert {rollout for rollout, *_ in places} == {0, 1, 2, 3} | with_one
    if strategy == "ddp":
        whole, resumed = last_state(runs("moments", "ddp")), last_state(runs("stopped", "ddp"))
        for key in ("state_dict", "optimizer_states"):
            torch.testing.assert_close(resumed[key], whole[key], rtol=0, atol=0)


def test_prompts_that_do_not_divide_by_the_ranks_are_refused(runs: Runs) -> None:
    assert runs.statuses["odd"] == (2, 2)
    assert (
        "error: data.prompts_per_rollout is 6, which is not divisible by 2 minibatches (model.minibatches_per_rollout) "
        "× 2 ranks; make it a multiple of 4"
    ) in (runs.folder / "output_0").read_text()


def test_a_sharded_run_s_best_model_loads(runs: Runs) -> None:
    run = runs("GSPO 32-true", "sharded")
    model = AutoModelForCausalLM.from_pretrained(run / "best_model")
    best = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    assert best.keys() == {f"policy.{name}" for name in model.state_dict()}
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, best[f"policy.{name}"]), name
    assert json.loads((run / "best_model" / "config.json").read_text())["architectures"] == ["Qwen2ForCausalLM"]


# Ranks that Lightning launches


@pytest.fixture
def launched() -> Iterator[list[subprocess.Popen[bytes]]]:
    ranks = [subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])]
    processes = list(ranks)
    yield ranks
    for process in processes:
        process.kill()
        process.wait()


def test_whoever_ends_the_launched_ranks_is_not_ended_itself(
    launched: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning's observer kills the main process once a rank has ended with another status than 0."""
    (rank,) = launched
    killed: list[bool] = []
    monkeypatch.setattr(_ChildProcessObserver, "_terminate_all", lambda _: killed.append(True))
    observer = _ChildProcessObserver(main_pid=os.getpid(), child_processes=launched)  # looks every 5 s
    end_launched(launched)
    assert rank.wait() == -signal.SIGKILL
    assert observer._run() is True, "it has nothing more to observe"
    assert not killed


def test_sigterm_to_the_process_that_was_started(policy: str, tmp_path: Path) -> None:
    """A scheduler knows no other; the status and the last line are its own."""
    arguments = flags(policy, tmp_path, {"data.max_rollouts": 3}, "ddp", **interrupted(signal.SIGTERM, [0]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "rlvr_pl", *arguments]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 128 + signal.SIGTERM, ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("Interrupted by SIGTERM. Go on after rollout 2 of 3: python -m ")
    assert last_state(tmp_path / "run" / "version_0")["rollouts_done"] == 2
