"""A run lies in one folder, whatever its loggers are, and goes on there."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from rlvr_pl.main import main
from rlvr_pl.run.place import Place, place_of
from tests.helpers.runs import last_state, read_scalars, tiny_run

TENSORBOARD, CSV, WANDB = (f"lightning.pytorch.loggers.{name}Logger" for name in ("TensorBoard", "CSV", "Wandb"))
DIARY = "tests.helpers.runs.Diary"


def logger(class_path: str, **init_args: Any) -> dict[str, Any]:
    return {"class_path": class_path, "init_args": init_args}


@pytest.mark.parametrize(
    ("run_dir", "loggers", "place"),
    [
        (None, [], Place(Path("lightning_logs/run"))),
        (None, [logger(TENSORBOARD, save_dir="logs", name="gspo", version=None)], Place(Path("logs/gspo"))),
        (None, [logger(TENSORBOARD, save_dir="logs", name="a", version=3)], Place(Path("logs/a"), "version_3")),
        (None, [logger(TENSORBOARD, save_dir="logs/c", name="A", version="seed_0")], Place(Path("logs/c/A"), "seed_0")),
        (None, [logger(DIARY, save_dir="x", name="y"), logger(CSV, save_dir="logs", name="")], Place(Path("logs"))),
        (None, [logger(DIARY, save_dir="logs", name="gspo", version="3f9a")], Place(Path("logs/gspo"))),
        (None, [logger(DIARY, save_dir=".", name=None)], Place(Path("lightning_logs/run"))),
        ("runs/mine", [logger(TENSORBOARD, save_dir="logs", name="a", version=3)], Place(Path("runs"), "mine")),
        ("mine", [], Place(Path(), "mine")),
    ],
)
def test_where_a_configuration_places_its_run(run_dir: str | None, loggers: list[dict[str, Any]], place: Place) -> None:
    assert place_of(run_dir, loggers) == place


WHOLE = {"checkpoints", "config.yaml", "evaluations", "run.json", "run.lock", "best_model"}


@pytest.mark.parametrize(
    ("loggers", "place", "written"),
    [
        (False, "lightning_logs/run/version_0", set()),
        ([logger(DIARY, save_dir="logs", name="mine")], "logs/mine/version_0", {"diary.txt"}),
        (
            [logger(DIARY), logger(CSV, save_dir="logs", name="mine"), logger(TENSORBOARD, save_dir="elsewhere")],
            "logs/mine/version_0",
            {"diary.txt", "csv", "hparams.yaml"},
        ),
        ([logger(WANDB, save_dir="logs", name="mine", offline=True)], "logs/mine/version_0", {"wandb"}),
    ],
    ids=["none", "one that Lightning does not know", "three", "wandb"],
)
def test_a_run_lies_in_one_folder_and_goes_on_there(
    loggers: Any,
    place: str,
    written: set[str],
    policy: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = [a for a in tiny_run(policy, tmp_path, **{"trainer.val_check_interval": 1}) if "trainer.logger" not in a]
    arguments = [*flags, f"--trainer.logger={json.dumps(loggers)}"]
    main([*arguments, "--data.max_rollouts=1"])
    main([*arguments, "--data.max_rollouts=2", "--ckpt_path=last"])
    run = Path(place)
    assert {file.name for file in run.iterdir() if "tfevents" not in file.name} == WHOLE | written | {"config-1.yaml"}
    assert {file.name for file in tmp_path.iterdir()} == {run.parts[0]}
    assert [folder.name for folder in run.parent.iterdir()] == ["version_0"]
    assert last_state(run)["rollouts_done"] == 2
    assert json.loads((run / "run.json").read_text())["rollouts_done"] == 2
    shown = capsys.readouterr().out.splitlines()
    paths = [line.partition(":")[2].strip() for line in shown if line.startswith(("logs:", "best", "exp", "records:"))]
    assert len(paths) == 8
    assert all(Path(path).exists() for path in paths)
    assert any(line.startswith("TensorBoard:") for line in shown) == ("hparams.yaml" in written)
    if "diary.txt" in written:
        steps = {int(line.split()[0]) for line in (run / "diary.txt").read_text().splitlines()}
        assert steps == {0, 1, 2}
    if "csv" in written:
        assert set(read_scalars(run)["train/reward"]) == {1, 2}
        rows = [list(csv.DictReader((run / f"csv/version_{n}/metrics.csv").open())) for n in (0, 1)]
        assert [{row["step"] for row in part} for part in rows] == [{"0", "1"}, {"2"}]


def test_a_run_dir_is_the_runs_folder(policy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "mine"
    arguments = [*tiny_run(policy, tmp_path / "logs", **{"data.max_rollouts": 1}), f"--run_dir={run}"]
    main(arguments)
    assert set(read_scalars(run)["train/reward"]) == {1}
    assert not (tmp_path / "logs").exists()
    assert "run_dir: null" in (run / "config.yaml").read_text(), "who repeats it wants another folder"
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    with pytest.raises(SystemExit):
        main(arguments)
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"error: run_dir: {run} holds a run with checkpoints already; add --ckpt_path last to go on with it, or name "
        "another folder"
    )
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before
    main([*arguments, "--ckpt_path=last", "--data.max_rollouts=2"])
    assert last_state(run)["rollouts_done"] == 2
