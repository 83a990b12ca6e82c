"""A comparison ends in the same runs whatever interrupts it: real processes, killed for real."""

from __future__ import annotations

import errno
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from rlvr_pl.compare import runner
from rlvr_pl.compare.comparison_file import load_comparison
from rlvr_pl.compare.plan import Run
from rlvr_pl.compare.runner import child_environment, remove_beginning
from rlvr_pl.main import main
from rlvr_pl.run.lock import is_locked
from rlvr_pl.run.state import RunState, read_run_state
from tests.helpers.paths import ROOT
from tests.helpers.runs import assert_same_run, last_state, tiny_settings

# Stands in for the report, whose own tests are elsewhere, in this process and in those that it starts.
REPORT = """
import sys, types
report = types.ModuleType("rlvr_pl.report.page")
report.write_report = lambda folder: folder / "report.html"
sys.modules[report.__name__] = report
"""


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text(REPORT)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    report = ModuleType("rlvr_pl.report.page")
    report.write_report = lambda folder: folder / "report.html"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, report.__name__, report)
    importlib.import_module("rlvr_pl.compare.command")


def write(folder: Path, policy: str, arms: dict[str, Any], seeds: list[int], gate: int = 0, **changes: Any) -> Path:
    """A comparison of tiny runs; with a gate, each stops before that rollout until the file ``gate`` is there."""
    overrides = tiny_settings(policy)
    if gate:
        overrides["trainer.callbacks"] = "tests.helpers.runs.Gate"
        overrides["trainer.callbacks.before_rollout"] = str(gate)
        overrides["trainer.callbacks.file"] = str(folder / "gate")
    file = folder / "compare.yaml"
    values = {"folder": str(folder / "runs"), "base": [str(ROOT / "configs" / "quickstart.yaml")], **changes}
    file.write_text(yaml.safe_dump({**values, "overrides": overrides, "arms": arms, "seeds": seeds}, sort_keys=False))
    return file


def wait_until(condition: Callable[[], object], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)


def rollouts_done(run: Path) -> int:
    state = read_run_state(run)
    return 0 if state is None else state.rollouts_done


def starts(run: Path) -> int:
    """How many times a fit has been started in a folder."""
    return sum(line.startswith("$ ") for line in (run / "output.log").read_text().splitlines())


def meanwhile(act: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=act)
    thread.start()
    return thread


@pytest.fixture
def killed() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that do not outlive the test."""
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait()


def test_kill_9_of_the_comparison_and_then_of_its_run(
    policy: str, tmp_path: Path, killed: list[subprocess.Popen[bytes]]
) -> None:
    """A run that outlives its comparison is not run twice; killed as well, it goes on to the same end, bit for bit."""
    file = write(tmp_path, policy, {"GSPO": {"model.loss": "GSPO"}}, [0], gate=5)
    run = tmp_path / "runs" / "GSPO" / "seed_0"
    command = [sys.executable, "-m", "rlvr_pl", "compare", "--config", str(file)]
    comparison = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    killed.append(comparison)
    wait_until(lambda: rollouts_done(run) == 4)
    (fit,) = Path(f"/proc/{comparison.pid}/task/{comparison.pid}/children").read_text().split()
    comparison.kill()
    comparison.wait()

    seen = {}

    def look_then_kill_the_run() -> None:
        time.sleep(1.5)
        seen.update(starts=starts(run), locked=is_locked(run / "run.lock"), done=rollouts_done(run))
        (tmp_path / "gate").touch()
        os.kill(int(fit), signal.SIGKILL)

    thread = meanwhile(look_then_kill_the_run)
    main(["compare", "--config", str(file)])
    thread.join()
    assert seen == {"starts": 1, "locked": True, "done": 4}
    assert starts(run) == 2
    assert f"--ckpt_path={run}/checkpoints/last.ckpt" in (run / "output.log").read_text()

    whole = tmp_path / "whole" / "GSPO" / "seed_0"
    comparison_again = load_comparison(file)
    main(comparison_again.fit_arguments(Run("GSPO", 0, whole)))
    assert_same_run(run, whole)


def test_a_failed_run_is_reported_and_stops_no_other(
    policy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arms = {"broken": {"data.source.train_size": 1}, "sound": {}}  # fit alone can know that val_size is too large
    file = write(tmp_path, policy, arms, [0], processes=2)
    sound = tmp_path / "runs" / "sound" / "seed_0"
    sound.mkdir(parents=True)
    (sound / "events.out.tfevents.0.host.1.0").touch()  # of a start that was cut short before its first checkpoint
    with pytest.raises(SystemExit) as stopped:
        main(["compare", "--config", str(file)])
    assert stopped.value.code == 1
    shown = capsys.readouterr().out
    assert "broken seed 0 failed: ended with exit status 2" in shown
    assert "data.val_size is 6, but there are only 1 train problems" in shown
    assert f"report: {tmp_path / 'runs' / 'report.html'}" in shown
    assert rollouts_done(sound) == 6
    assert not (sound / "events.out.tfevents.0.host.1.0").exists()
    lines = [line.split(" ", 1)[1] for line in shown.splitlines() if "sound seed 0" in line]
    assert lines[0] == "sound seed 0: starting"
    assert lines[-1].startswith("sound seed 0: finished, 6/6 rollouts, val accuracy 0.0%")

    main(["compare", "--config", str(file), "--only", "sound"])  # a finished run is kept as it is
    assert starts(sound) == 1
    assert starts(tmp_path / "runs" / "broken" / "seed_0") == 1

    write(tmp_path, policy, {"sound": {"model.temperature": 0.5}}, [0])
    with pytest.raises(SystemExit) as refused:
        main(["compare", "--config", str(file)])
    assert refused.value.code == 2
    assert "sound: model.temperature: 1.0 → 0.5" in capsys.readouterr().err


def test_a_full_disk_stops_what_is_not_finished_and_nothing_else(
    policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the comparison's own process, which writes comparison.yaml, locks, the runs' output and the report."""
    file = write(tmp_path, policy, {"done": {}, "next": {}}, [0])
    runs, full = tmp_path / "runs", {"comparison.yaml": True, "done": False, "next": True}
    fsync, lock = os.fsync, runner.try_lock

    def check(path: Path) -> None:
        if any(full[name] for name in full if name in str(path)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    def fsync_on_a_full_disk(descriptor: int) -> None:
        check(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def lock_on_a_full_disk(path: Path) -> int | None:
        check(path)
        return lock(path)

    monkeypatch.setattr(os, "fsync", fsync_on_a_full_disk)
    monkeypatch.setattr(runner, "try_lock", lock_on_a_full_disk)

    def status() -> int:
        with pytest.raises(SystemExit) as stopped:
            main(["compare", "--config", str(file)])
        return int(stopped.value.code or 0)

    assert status() == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(f"error: cannot write {runs}/comparison.yaml: No space left .*MB are free there.", said)

    full["comparison.yaml"], full["done"] = False, True
    assert status() == 1
    shown = capsys.readouterr().out
    for arm in ("done", "next"):
        assert f"{arm} seed 0 failed: could not be started (No space left on device)" in shown

    finish(runs / "done" / "seed_0")
    full["done"] = False
    assert status() == 1
    shown = capsys.readouterr().out
    assert "done seed 0 failed" not in shown
    assert "next seed 0 failed: could not be started (No space left on device)" in shown
    assert f"report: {runs / 'report.html'}" in shown

    finish(runs / "next" / "seed_0")
    full["next"] = False
    main(["compare", "--config", str(file)])
    assert "failed" not in capsys.readouterr().out


def finish(run: Path) -> None:
    run.mkdir(parents=True, exist_ok=True)
    (run / "run.json").write_text(json.dumps(asdict(RunState(state="finished", rollouts_done=6, max_rollouts=6))))


def test_ctrl_c_lets_every_run_finish_its_rollout_and_save(
    policy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path, policy, {"GSPO": {}, "GRPO": {"model.loss": "GRPO"}}, [0, 1], gate=3, processes=2)
    runs = [tmp_path / "runs" / arm / "seed_0" for arm in ("GSPO", "GRPO")]

    def press() -> None:
        wait_until(lambda: all(rollouts_done(run) == 2 for run in runs))
        os.kill(os.getpid(), signal.SIGINT)
        wait_until(lambda: all("Interrupted: finishing" in (run / "output.log").read_text() for run in runs))
        (tmp_path / "gate").touch()

    thread = meanwhile(press)
    with pytest.raises(SystemExit) as stopped:
        main(["compare", "--config", str(file)])
    thread.join()
    assert stopped.value.code == 130
    shown = capsys.readouterr()
    assert "2 at work finish a rollout and write a checkpoint" in shown.out
    assert shown.err == "Interrupted: 0 of 4 runs finished. The same command goes on from there.\n"
    for run in runs:
        assert json.loads((run / "run.json").read_text())["state"] == "interrupted"
        assert last_state(run)["rollouts_done"] == 3
        assert not is_locked(run / "run.lock")
    assert not (tmp_path / "runs" / "GSPO" / "seed_1").exists(), "nothing was started after it"


def test_the_dry_run_measures_and_leaves_nothing(
    policy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path, policy, {"GSPO": {}, "GRPO": {"model.loss": "GRPO"}}, [0, 1])
    before = sorted(tmp_path.rglob("*"))
    pilot = str(ROOT / "lightning_logs" / "reference" / "compare_embedded")
    main(["compare", "--config", str(file), "--dry-run", "--only", "GSPO", "--only", "GRPO,1", "--pilot", pilot])
    assert sorted(tmp_path.rglob("*")) == before
    shown = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if "│" in line]
    points_of_512, _, _, *plan = rows
    assert plan == [["GSPO", "0 1", "6", "192", "12"], ["GRPO", "1", "6", "192", "12"]]
    assert points_of_512[0] == "512"
    assert 2 <= int(points_of_512[3]) < int(points_of_512[2])
    assert "seeds: waits" in shown
    assert "in all 18 rollouts, 576 samples" in shown
    assert "Measuring one rollout of GSPO" in shown
    assert "what is left of 3 runs about" in shown


TUNE = {"grid": {"model.optimizer.lr": [1e-12, 1e-3]}, "seeds": [5]}  # the first learns nothing


def test_arms_are_tuned_first_and_the_choice_is_made_once(
    policy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arms = {name: {"model.loss": loss, "report_test": True} for name, loss in (("A", "GSPO"), ("B", "GRPO"))}
    file = write(tmp_path, policy, arms, [0], processes=2, tune=TUNE)
    main(["compare", "--config", str(file)])
    shown = capsys.readouterr().out
    assert "Tuning: 4 settings × 1 seeds" in shown
    runs = tmp_path / "runs"
    record = yaml.safe_load((runs / "comparison.yaml").read_text())
    assert len(record["tuning"]) == 4
    for arm in arms:
        trials = {row["settings"]["model.optimizer.lr"]: row for row in record["tuning"] if row["arm"] == arm}
        for rate, row in trials.items():
            folder = runs / "tuning" / f"{arm}+lr={rate}" / "seed_5"
            assert not list((folder / "evaluations").glob("test-*")), "the test split chooses nothing"
            assert len(row["val"]) == 1
        chosen = next(rate for rate, row in trials.items() if row["chosen"])
        assert trials[chosen]["val"] == max(row["val"] for row in trials.values())
        config = yaml.safe_load((runs / arm / "seed_0" / "config.yaml").read_text())
        assert config["model"]["optimizer"]["init_args"]["lr"] == chosen
        assert list((runs / arm / "seed_0" / "evaluations").glob("test-*"))
    before = {log: log.stat().st_size for log in runs.rglob("output.log")}
    assert len(before) == 6
    main(["compare", "--config", str(file)])
    assert {log: log.stat().st_size for log in runs.rglob("output.log")} == before
    assert "Tuning" not in capsys.readouterr().out


def test_a_dry_run_plans_the_tuning_as_well(policy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path, policy, {"A": {}, "B": {"model.loss": "GSPO"}}, [0, 1], tune=TUNE)
    before = sorted(tmp_path.rglob("*"))
    main(["compare", "--config", str(file), "--dry-run"])
    assert sorted(tmp_path.rglob("*")) == before
    shown = capsys.readouterr().out
    assert shown.index("A+lr=1e-12") < shown.index("Then, each arm with what is best on val:")
    assert shown.index("Then, each arm") < shown.index("what is left of 4 runs about", shown.index("Then, each arm"))


def test_the_slurm_script_runs_the_part_of_its_task(policy: str, tmp_path: Path) -> None:
    script = ROOT / "examples" / "compare.slurm"
    file = write(tmp_path, policy, {"A": {}, "B": {"model.loss": "GRPO"}}, [0, 7])
    slurm = {"SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1", "SLURM_NNODES": "1", "SLURM_JOB_NAME": "compare"}
    slurm |= {"SLURM_JOB_ID": "12", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
    own = {"CONFIG": str(file), "ARMS": "A B", "SEEDS": "0 7", "PYTHON": sys.executable, "SLURM_ARRAY_TASK_ID": "3"}
    subprocess.run(["bash", str(script)], env={**os.environ, **slurm, **own}, cwd=ROOT, check=True, timeout=240)
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.glob("runs/*/seed_*")] == ["runs/B/seed_7"]
    state = read_run_state(tmp_path / "runs" / "B" / "seed_7")
    assert state is not None
    assert (state.state, state.objective, state.seed) == ("finished", "GRPO", 7)


# Without a process


def test_a_beginning_is_removed_and_nothing_else(tmp_path: Path) -> None:
    run = Run("A", 0, tmp_path)
    for name in ("run.json", "run.lock", "output.log", "notes.txt", "config.yaml", "events.out.tfevents.1.host.2.0"):
        (tmp_path / name).touch()
    for folder in ("evaluations", "checkpoints", "mine"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "file").touch()
    remove_beginning(run)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "sitecustomize.py") == [
        "mine",
        "notes.txt",
        "output.log",
        "run.lock",
    ]


def test_runs_side_by_side_share_the_cores_and_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("rlvr_pl.compare.runner.available_cores", lambda: 8)
    assert "OMP_NUM_THREADS" not in child_environment(1, None), "a run by itself has all of them"
    assert child_environment(3, None)["OMP_NUM_THREADS"] == "2"
    assert child_environment(16, None)["OMP_NUM_THREADS"] == "1"
    assert "CUDA_VISIBLE_DEVICES" not in child_environment(3, None)
    assert child_environment(2, 1)["CUDA_VISIBLE_DEVICES"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert child_environment(2, 1)["OMP_NUM_THREADS"] == "5", "the user's own"
    assert child_environment(2, 1)["CUDA_VISIBLE_DEVICES"] == "6", "the second of those that are visible"
