"""A folder of runs → tables: what they hold, and what becomes of files that a kill has torn."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from rlvr_pl.report.analysis import analyse
from rlvr_pl.report.outcomes import collect_outcomes
from rlvr_pl.report.study import CURVE_COLUMNS, EVALUATION_COLUMNS, Study, load_study
from rlvr_pl.report.tables import outcome_table
from rlvr_pl.run.records import write_records
from rlvr_pl.types import ConfigError
from tests.helpers.studies import CONFIG, nested, write_evaluation, write_plan, write_run, write_scalars, write_study

T, F = True, False
SMALL: dict[str, Any] = {"questions": 4, "val_questions": 5, "rollouts": 4, "val_every": 2}
EVENTS = "events.out.tfevents.*"


def curve(study: Study, tag: str, column: str = "value") -> list[float]:
    rows = study.curves[study.curves["tag"] == tag].sort_values("rollout")
    return [float(value) for value in rows[column]]


def event_file(run: Path) -> Path:
    (file,) = run.glob(EVENTS)
    return file


# What is whole


def test_tables_of_a_whole_comparison(tmp_path: Path) -> None:
    write_study(tmp_path, {"GSPO": {}, "DrGRPO": {}}, seeds=[3, 1], **SMALL)
    study = load_study(tmp_path)
    assert study.problems == []
    assert study.arms == ["GSPO", "DrGRPO"]  # the plan's order, not the alphabet's
    assert study.runs[["arm", "seed", "path", "state"]].values.tolist() == [
        ["GSPO", 1, "GSPO/seed_1", "finished"],
        ["GSPO", 3, "GSPO/seed_3", "finished"],
        ["DrGRPO", 1, "DrGRPO/seed_1", "finished"],
        ["DrGRPO", 3, "DrGRPO/seed_3", "finished"],
    ]
    assert study.runs["optimizer_steps"].tolist() == [16] * 4
    assert study.runs["environment.torch"].tolist() == ["2.13.0"] * 4
    assert list(study.evaluations) == EVALUATION_COLUMNS
    assert list(study.curves) == CURVE_COLUMNS
    sizes = study.evaluations.groupby(["arm", "seed", "split", "rollout"]).size()
    assert sizes.loc["GSPO", 1].to_dict() == {
        ("test", 0): 4,
        ("test", 4): 4,
        ("val", 0): 5,
        ("val", 2): 5,
        ("val", 4): 5,
    }
    assert len(sizes) == 4 * 5


def test_verdicts_and_lengths_are_the_records_own(tmp_path: Path) -> None:
    write_run(tmp_path, "A", 0, initial=[F, F, T, T], final=[T, F, T, F], flexible_final=[T, T, T, F], **SMALL)
    evaluations = load_study(tmp_path).evaluations
    last = evaluations[(evaluations["split"] == "test") & (evaluations["rollout"] == 4)]
    assert last["question"].tolist() == [0, 1, 2, 3]
    assert last["gold"].tolist() == ["0", "1", "2", "3"]
    assert last["correct"].tolist() == [T, F, T, F]
    assert last["correct_flexible"].tolist() == [T, T, T, F]
    assert last["formatted"].tolist() == [T, F, T, F]
    assert last["tokens"].tolist() == [40, 41, 42, 43]
    assert last["correct"].dtype == bool


def test_budgets_are_cumulative(tmp_path: Path) -> None:
    """16 prompts × 16 completions of 10 tokens, 2 s and 0.5 s a rollout."""
    scalars = {"train/tokens_mean": 10.0, "wall/rollout_s": 2.0, "wall/update_s": 0.5}
    write_run(tmp_path, "A", 0, scalars=scalars, **SMALL)
    study = load_study(tmp_path)
    assert curve(study, "train/reward", "rollout") == [1, 2, 3, 4]
    assert curve(study, "train/reward", "samples") == [256, 512, 768, 1024]
    assert curve(study, "train/reward", "completion_tokens") == [2560, 5120, 7680, 10240]
    assert curve(study, "train/reward", "train_seconds") == [2.5, 5.0, 7.5, 10.0]
    assert curve(study, "val/accuracy", "completion_tokens") == [0, 5120, 10240]
    assert curve(study, "val/accuracy", "train_seconds") == [0, 5, 10]


def test_of_a_resumed_run_the_later_file_wins(tmp_path: Path) -> None:
    run = write_run(tmp_path, "A", 0, scalars={"train/reward": 1.0}, **SMALL)
    event_file(run).rename(run / "events.out.tfevents.2000000000.host.1.0")
    write_scalars(run, {"train/reward": {3: 7.0, 4: 8.0}})
    (later,) = set(run.glob(EVENTS)) - {run / "events.out.tfevents.2000000000.host.1.0"}
    later.rename(run / "events.out.tfevents.2000000010.host.2.0")
    os.utime(run / "events.out.tfevents.2000000010.host.2.0", (1, 1))  # a copy need not keep times
    assert curve(load_study(tmp_path), "train/reward") == [1, 1, 7, 8]


def test_the_newest_configuration_counts(tmp_path: Path) -> None:
    run = write_run(tmp_path, "A", 0, **SMALL)
    for number in (2, 10):
        settings = CONFIG | {"seed_everything": 0, "data.max_rollouts": number}
        (run / f"config-{number}.yaml").write_text(yaml.safe_dump(nested(settings)))
    assert load_study(tmp_path).settings["A"]["data.max_rollouts"] == 10


def test_settings_leave_out_what_names_a_run(tmp_path: Path) -> None:
    write_run(tmp_path, "A", 7, **SMALL)
    settings = load_study(tmp_path).settings["A"]
    assert settings["model.loss.class_path"] == "rlvr_pl.losses.GSPO"
    assert not [key for key in settings if "seed" in key or "logger" in key]


# Folders that are not from compare


def test_a_folder_of_fits(tmp_path: Path) -> None:
    """ROOT/NAME/version_N without run.json: the seed is the configuration's, the rest what files tell."""
    for version, seed in ((0, 5), (1, 6)):
        run = write_run(tmp_path, "quickstart", seed, **SMALL)
        (run / "run.json").unlink()
        run.rename(run.with_name(f"version_{version}"))
    unfinished = write_run(tmp_path, "quickstart", 7, done=2, **SMALL)
    (unfinished / "run.json").unlink()
    study = load_study(tmp_path)
    assert study.problems == []
    assert study.runs[["seed", "path", "state"]].values.tolist() == [
        [5, "quickstart/version_0", "finished"],
        [6, "quickstart/version_1", "finished"],
        [7, "quickstart/seed_7", "unfinished"],
    ]
    assert study.runs["rollouts_done"].tolist() == [4, 4, 2]
    assert study.runs["samples"].tolist() == [1024, 1024, 512]
    assert study.runs["optimizer_steps"].tolist() == [16, 16, 8]
    assert study.runs["best_rollout"].fillna(-1).tolist() == [4, 4, -1]
    assert study.runs["objective"].tolist() == ["GSPO"] * 3


@pytest.mark.parametrize(("below", "arm"), [("GSPO", "GSPO"), ("GSPO/seed_0", "GSPO")])
def test_an_arms_folder_or_a_runs_own(below: str, arm: str, tmp_path: Path) -> None:
    write_run(tmp_path, "GSPO", 0, **SMALL)
    study = load_study(tmp_path / below)
    assert study.arms == [arm]
    assert len(study.runs) == 1
    assert len(study.evaluations) == 3 * 5 + 2 * 4


def test_trials_are_left_out_and_a_folder_of_that_name_without_trials_is_not(tmp_path: Path) -> None:
    write_run(tmp_path, "tuning", seed=0)
    assert load_study(tmp_path).arms == ["tuning"]
    write_run(tmp_path, "GSPO", seed=0)
    (tmp_path / "tuning" / "comparison.yaml").touch()
    assert load_study(tmp_path).arms == ["GSPO"]


def test_of_two_runs_with_one_seed_the_later_is_used(tmp_path: Path) -> None:
    for version in (9, 10):
        run = write_run(tmp_path, "A", 0, state={"wall_seconds": version}, **SMALL)
        run.rename(run.with_name(f"version_{version}"))
    study = load_study(tmp_path)
    assert study.runs["wall_seconds"].tolist() == [10]
    assert study.problems == ["A/version_9: has the same arm and seed as A/version_10; the later one is used"]


@pytest.mark.parametrize(
    ("states", "used", "reason"),
    [
        (("finished", "failed"), 0, "the finished one"),
        (("finished", "training"), 0, "the finished one"),
        (("failed", "finished"), 1, "the finished one"),
        (("interrupted", "failed"), 0, "the one not failed"),
        (("failed", "failed"), 1, "the later one"),
    ],
)
def test_of_two_runs_with_one_seed_a_finished_one_is_used(
    states: tuple[str, str], used: int, reason: str, tmp_path: Path
) -> None:
    for version, state in enumerate(states):
        run = write_run(tmp_path, "A", 0, state={"state": state, "wall_seconds": version}, **SMALL)
        run.rename(run.with_name(f"version_{version}"))
    study = load_study(tmp_path)
    assert study.runs["state"].tolist() == [states[used]]
    assert study.runs["wall_seconds"].tolist() == [used]
    assert study.problems == [f"A/version_{1 - used}: has the same arm and seed as A/version_{used}; {reason} is used"]


def test_evaluations_by_themselves_are_no_runs(tmp_path: Path) -> None:
    """What ``test``, ``validate`` and ``predict`` leave: records and events, neither configuration nor run.json."""
    write_run(tmp_path, "gspo", 7, **SMALL).rename(tmp_path / "gspo/version_0")
    for version, split in enumerate(("test", "val", "predict"), start=1):
        write_evaluation(tmp_path / f"gspo/version_{version}", split, 4, [T, F])
        write_scalars(tmp_path / f"gspo/version_{version}", {"test/accuracy": {4: 0.5}})
    study = load_study(tmp_path)
    assert study.problems == []
    assert study.runs[["seed", "path"]].values.tolist() == [[7, "gspo/version_0"]]
    with pytest.raises(
        ConfigError, match=r"contains no run of fit to report on \(a folder with config.yaml or run.json"
    ):
        load_study(tmp_path / "gspo/version_1")


def test_the_best_of_a_run_that_was_never_tested_is_the_first_best_on_val(tmp_path: Path) -> None:
    run = write_run(tmp_path, "A", 0, **SMALL)
    for file in (run / "run.json", *run.glob("evaluations/test-*")):
        file.unlink()
    for rollout, right in ((0, [T, F, F, F, F]), (2, [F, T, T, F, F]), (4, [F, F, F, T, T])):
        write_evaluation(run, "val", rollout, right)
    (run / "best_model").mkdir()
    study = load_study(tmp_path)
    assert study.runs[["state", "best_rollout"]].values.tolist() == [["finished", 2]]
    assert collect_outcomes(study).final["A", "strict"].tolist() == [[0, 1, 1, 0, 0]]


# While runs go on


def test_planned_runs_that_have_not_started(tmp_path: Path) -> None:
    write_run(tmp_path, "GSPO", 0, **SMALL)
    write_run(tmp_path, "GSPO", 1, done=2, **SMALL)
    write_plan(tmp_path, ["GSPO", "GRPO"], [0, 1])
    study = load_study(tmp_path)
    assert study.problems == []
    assert study.runs[["arm", "seed", "state"]].values.tolist() == [
        ["GSPO", 0, "finished"],
        ["GSPO", 1, "training"],
        ["GRPO", 0, "not started"],
        ["GRPO", 1, "not started"],
    ]
    assert list(study.finished["seed"]) == [0]
    assert "GRPO" in study.settings  # from the plan


def test_the_growing_end_of_a_running_event_file_is_no_problem(tmp_path: Path) -> None:
    run = write_run(tmp_path, "A", 0, done=2, **SMALL)
    os.truncate(event_file(run), event_file(run).stat().st_size - 7)
    assert load_study(tmp_path).problems == []


# Bad input


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"contains no run of fit.*Give the folder that"):
        load_study(tmp_path)
    with pytest.raises(ConfigError, match="there is no folder"):
        load_study(tmp_path / "absent")


def test_a_run_without_records(tmp_path: Path) -> None:
    write_run(tmp_path, "A", 0, **SMALL)
    shutil.rmtree(write_run(tmp_path, "A", 1, **SMALL) / "evaluations")
    study = load_study(tmp_path)
    assert study.problems == [
        "A/seed_1: has no records; it is in the curves at most, and not in the statistics",
    ]
    assert set(study.curves["seed"]) == {0, 1}
    outcomes = collect_outcomes(study)
    assert outcomes.seeds == {"A": [0]}
    assert outcomes.mismatches == [
        "A/seed_1: has no records in test-000000.jsonl and test-000004.jsonl; it is left out of the statistics"
    ]


def test_a_folder_with_nothing_but_a_configuration(tmp_path: Path) -> None:
    write_run(tmp_path, "A", 0, **SMALL)
    (tmp_path / "A/seed_1").mkdir()
    shutil.copy(tmp_path / "A/seed_0/config.yaml", tmp_path / "A/seed_1")
    study = load_study(tmp_path)
    assert study.problems == ["A/seed_1: has neither records nor events nor run.json; it is left out"]
    assert len(study.runs) == 1


def test_a_torn_last_line(tmp_path: Path) -> None:
    run = write_run(tmp_path, "A", 0, **SMALL)
    path = run / "evaluations/val-000002.jsonl"
    os.truncate(path, path.stat().st_size - 30)
    study = load_study(tmp_path)
    assert study.problems == [
        "A/seed_0/evaluations/val-000002.jsonl: its last line is torn; the other 4 records are used"
    ]
    whole = study.evaluations[(study.evaluations["split"] == "val") & (study.evaluations["rollout"] == 2)]
    assert whole["question"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "holds no records"),
        (b'{"question": 1, "sam', "its last line is torn; the other 0 records are used"),
        (b"\x00" * 50, "its last line is torn; the other 0 records are used"),
        (b"no json\n[1]\nnull", "unreadable lines: 3; the other 0 records are used"),
        (b'{"question": 0, "sample": 0}\n', "records that lack a field: 1; the other 0 records are used"),
        (
            b'{"question": 0}\nno json\n[1]\n',
            "unreadable lines: 2, records that lack a field: 1; the other 0 records are used",
        ),
    ],
)
def test_records_that_are_none(content: bytes, problem: str, tmp_path: Path) -> None:
    run = write_run(tmp_path, "A", 0, **SMALL)
    (run / "evaluations/val-000002.jsonl").write_bytes(content)
    study = load_study(tmp_path)
    assert study.problems == [f"A/seed_0/evaluations/val-000002.jsonl: {problem}"]
    assert len(study.evaluations) == 2 * 4 + 2 * 5


def test_a_torn_event_file(tmp_path: Path) -> None:
    """What is lost of the tokens is interpolated: they were spent."""
    run = write_run(tmp_path, "A", 0, scalars={"train/tokens_mean": 10.0}, **SMALL)
    file = event_file(run)
    data = file.read_bytes()
    at = data.index(b"train/truncated_rate")  # written after train/tokens_mean
    file.write_bytes(data[:at])
    study = load_study(tmp_path)
    assert len(study.problems) == 1
    assert study.problems[0].startswith(f"A/seed_0: {file.name}: torn (")
    assert study.problems[0].endswith("; what was logged after the tear is missing from the curves")
    assert curve(study, "train/tokens_mean") == [10] * 4
    assert curve(study, "train/tokens_mean", "completion_tokens") == [2560, 5120, 7680, 10240]
    assert "train/truncated_rate" not in set(study.curves["tag"])


def test_a_gap_in_the_events_is_interpolated(tmp_path: Path) -> None:
    run = write_run(tmp_path, "A", 0, **SMALL)
    event_file(run).unlink()
    seconds = dict.fromkeys((1, 2, 4), 2.0)
    write_scalars(
        run,
        {
            "train/tokens_mean": {1: 10.0, 2: 20.0, 4: 40.0},
            "wall/rollout_s": seconds,
            "wall/update_s": seconds,
        },
    )
    study = load_study(tmp_path)
    assert study.problems == [
        "A/seed_0: 1 of 4 rollouts are missing from its events; their tokens and seconds are interpolated"
    ]
    assert curve(study, "train/tokens_mean", "completion_tokens") == [2560, 7680, 256 * 100]
    assert curve(study, "train/tokens_mean", "train_seconds") == [4, 8, 16]


@pytest.mark.parametrize("content", ["{", '{"state": "fin', "[1, 2]", ""])
def test_an_unreadable_run_json(content: str, tmp_path: Path) -> None:
    run = write_run(tmp_path, "A", 0, **SMALL)
    (run / "run.json").write_text(content)
    study = load_study(tmp_path)
    assert len(study.problems) == 1
    assert study.problems[0].startswith("A/seed_0: run.json is ")
    assert study.problems[0].endswith("; its state is taken from its records")
    assert study.runs["state"].tolist() == ["finished"]


@pytest.mark.parametrize("content", ["a: [1", "just text", None])
def test_an_unreadable_configuration(content: str | None, tmp_path: Path) -> None:
    run = write_run(tmp_path, "A", 2, **SMALL)
    (run / "config.yaml").unlink()
    if content is not None:
        (run / "config.yaml").write_text(content)
    study = load_study(tmp_path)
    assert len(study.problems) == 1
    assert "config.yaml" in study.problems[0]
    assert study.runs[["seed", "state", "samples"]].values.tolist() == [[2, "finished", 1024]]  # run.json's
    assert collect_outcomes(study).seeds == {"A": [2]}


@pytest.mark.parametrize("content", ["arms: [", "arms: {}"])
def test_an_unreadable_plan(content: str, tmp_path: Path) -> None:
    write_run(tmp_path, "A", 0, **SMALL)
    (tmp_path / "comparison.yaml").write_text(content)
    study = load_study(tmp_path)
    assert len(study.problems) == 1
    assert study.problems[0].startswith("comparison.yaml: unreadable (")
    assert study.arms == ["A"]


def test_runs_of_one_arm_with_other_settings_are_named(tmp_path: Path) -> None:
    write_run(tmp_path, "A", 0, **SMALL)
    write_run(tmp_path, "A", 1, config={"model.group_size": 8}, **SMALL)
    assert load_study(tmp_path).problems == [
        "A/seed_1: has other settings than A/seed_0 (model.group_size), though both are runs of one arm; "
        "it is used all the same"
    ]


# Outcomes


def test_outcomes_are_seeds_by_questions(tmp_path: Path) -> None:
    write_run(tmp_path, "A", 1, initial=[F, F, F, T], final=[T, F, T, T], **SMALL)
    write_run(tmp_path, "A", 0, initial=[F, F, F, F], final=[T, T, F, F], flexible_final=[T, T, T, F], **SMALL)
    outcomes = collect_outcomes(load_study(tmp_path))
    assert outcomes.split == "test"
    assert outcomes.golds == [(0, "0"), (1, "1"), (2, "2"), (3, "3")]
    assert outcomes.seeds == {"A": [0, 1]}
    assert outcomes.final["A", "strict"].tolist() == [[1, 1, 0, 0], [1, 0, 1, 1]]
    assert outcomes.final["A", "flexible"].tolist() == [[1, 1, 1, 0], [1, 0, 1, 1]]
    assert outcomes.initial["A", "strict"].tolist() == [[0, 0, 0, 0], [0, 0, 0, 1]]


def test_several_samples_are_a_share(tmp_path: Path) -> None:
    run = write_run(tmp_path, "A", 0, **SMALL)
    write_evaluation(run, "test", 0, [F, F, F, T], samples=2)
    write_evaluation(run, "test", 4, [T, F, T, T], samples=2)
    outcomes = collect_outcomes(load_study(tmp_path))
    assert outcomes.initial["A", "strict"].tolist() == [[0, 0.5]]
    assert outcomes.final["A", "strict"].tolist() == [[0.5, 1]]


def test_the_final_evaluation_is_the_best_checkpoints(tmp_path: Path) -> None:
    run = write_run(tmp_path, "A", 0, final=[F, F, F, F], state={"best_rollout": 2}, **SMALL)
    write_evaluation(run, "test", 2, [T, T, F, F])
    best_is_the_start = write_run(
        tmp_path, "A", 1, initial=[T, F, F, F], final=[F, F, F, F], state={"best_rollout": 0}, **SMALL
    )
    (best_is_the_start / "evaluations/test-000004.jsonl").unlink()
    outcomes = collect_outcomes(load_study(tmp_path))
    assert outcomes.final["A", "strict"].tolist() == [[1, 1, 0, 0], [1, 0, 0, 0]]


def test_the_final_evaluation_is_the_last_checkpoints_where_that_was_declared(tmp_path: Path) -> None:
    for seed in (0, 1):
        run = write_run(tmp_path, "A", seed, final=[F, F, F, T], state={"best_rollout": 2}, **SMALL)
        write_evaluation(run, "test", 2, [T, T, F, F])
    write_plan(tmp_path, ["A"], [0, 1], checkpoint="last")
    outcomes = collect_outcomes(load_study(tmp_path))
    assert outcomes.final["A", "strict"].tolist() == [[0, 0, 0, 1]] * 2
    assert outcomes.after["best"]["A", "strict"].tolist() == [[1, 1, 0, 0]] * 2
    (run / "evaluations/test-000002.jsonl").unlink()
    assert list(collect_outcomes(load_study(tmp_path)).after) == ["last"], "not every run has the best one's"


def test_a_failed_run_counts_as_the_untrained_policy_where_all_that_was_begun_counts(tmp_path: Path) -> None:
    start = [F, F, F, T]
    write_run(tmp_path, "A", 0, initial=start, final=[T, T, T, T], **SMALL)
    write_run(tmp_path, "A", 1, initial=start, final=[T, T, T, T], state={"state": "failed"}, **SMALL)
    for seed in (0, 1):
        write_run(tmp_path, "B", seed, initial=start, final=[T, T, F, T], **SMALL)
    study = load_study(tmp_path)
    outcomes = collect_outcomes(study)
    assert outcomes.failed == {"A": [1], "B": []}
    of_a, of_b = outcomes.intended("A", "B", "strict")
    assert of_a.tolist() == [[1, 1, 1, 1], [0, 0, 0, 1]]
    assert of_b.tolist() == [[1, 1, 0, 1]] * 2
    analysis = analyse(study)
    (whole,), (intended,) = analysis.pairs_by("strict"), analysis.intended
    assert (whole.comparison.difference.value, intended.comparison.difference.value) == (0.25, -0.125)
    rows = outcome_table(analysis).rows
    assert [row[:3] for row in rows] == [["A", "1", "1"], ["B", "2", "0"]]
    assert rows[0][3].startswith("50.0 [9.5, 90.5]")


def test_questions_that_belong_together_are_found_in_the_records(tmp_path: Path) -> None:
    run = write_run(tmp_path, "A", 0, **SMALL)
    assert collect_outcomes(load_study(tmp_path)).clusters is None
    for file in run.glob("evaluations/test-*"):
        records = [json.loads(line) | {"cluster": f"passage {i // 2}"} for i, line in enumerate(file.open())]
        write_records(file, records)
    clusters = collect_outcomes(load_study(tmp_path)).clusters
    assert clusters == ["passage 0", "passage 0", "passage 1", "passage 1"]


def test_unfinished_runs_are_no_outcomes(tmp_path: Path) -> None:
    write_run(tmp_path, "A", 0, **SMALL)
    write_run(tmp_path, "A", 1, done=2, **SMALL)
    write_run(tmp_path, "B", 0, state={"state": "failed"}, **SMALL)
    outcomes = collect_outcomes(load_study(tmp_path))
    assert outcomes.seeds == {"A": [0], "B": []}
    assert outcomes.arms == ["A"]


def test_without_tests_val_stands_in(tmp_path: Path) -> None:
    run = write_run(tmp_path, "A", 0, **SMALL)
    for path in run.glob("evaluations/test-*"):
        path.unlink()
    outcomes = collect_outcomes(load_study(tmp_path))
    assert outcomes.split == "val"
    assert outcomes.final["A", "strict"].shape == (1, 5)


def test_missing_questions_leave_those_that_all_share(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path, "A", seed, final=[T, F, T, F], **SMALL)
    path = tmp_path / "A/seed_1/evaluations/test-000004.jsonl"
    os.truncate(path, path.stat().st_size - 20)
    outcomes = collect_outcomes(load_study(tmp_path))
    assert outcomes.golds == [(0, "0"), (1, "1"), (2, "2")]
    assert outcomes.final["A", "strict"].tolist() == [[1, 0, 1]] * 3
    assert outcomes.mismatches == [
        "A/seed_1: has 3 of the 4 questions that most runs have; the statistics use the questions that all runs share"
    ]


def test_a_run_on_other_questions_is_left_out(tmp_path: Path) -> None:
    """The same numbers with other gold answers are other questions."""
    for seed in range(3):
        run = write_run(tmp_path, "A", seed, final=[T, F, T, F], **SMALL)
    write_evaluation(run, "test", 0, [F] * 4, gold_offset=100)
    write_evaluation(run, "test", 4, [T] * 4, gold_offset=100)
    outcomes = collect_outcomes(load_study(tmp_path))
    assert outcomes.seeds == {"A": [0, 1]}
    assert np.array_equal(outcomes.final["A", "strict"], [[1, 0, 1, 0]] * 2)
    assert outcomes.mismatches == [
        "A/seed_2: was evaluated on different questions from most runs (0 of 4 in common); it is left out of the "
        "statistics"
    ]


def test_run_json_beats_a_guess(tmp_path: Path) -> None:
    run = write_run(tmp_path, "A", 0, state={"completion_tokens": 123, "state": "interrupted"}, **SMALL)
    assert json.loads((run / "run.json").read_text())["completion_tokens"] == 123
    runs = load_study(tmp_path).runs
    assert runs["completion_tokens"].tolist() == [123]
    assert runs["state"].tolist() == ["interrupted"]
    assert runs["best_rollout"].isna().all()


def test_an_arm_with_a_seed_offset_pairs_by_its_place_and_counts_as_the_same_configuration(tmp_path: Path) -> None:
    write_run(tmp_path, "GSPO-a", 0, config={"seed_everything": 0}, **SMALL)
    write_run(tmp_path, "GSPO-b", 0, config={"seed_everything": 1000}, state={"seed": 1000}, **SMALL)
    write_plan(tmp_path, ["GSPO-a", "GSPO-b"], [0])
    file = tmp_path / "comparison.yaml"
    plan = yaml.safe_load(file.read_text())
    plan["resolved"]["GSPO-b"]["seed_offset"] = 1000
    file.write_text(yaml.safe_dump(plan, sort_keys=False))
    study = load_study(tmp_path)
    assert study.problems == []
    assert study.runs[["arm", "seed", "state"]].values.tolist() == [
        ["GSPO-a", 0, "finished"],
        ["GSPO-b", 0, "finished"],
    ]
    assert study.settings["GSPO-a"] == study.settings["GSPO-b"]
