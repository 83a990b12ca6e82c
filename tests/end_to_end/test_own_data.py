"""Data of one's own, from the file to the verdict: letters, columns for rewards, a resume, rows without answers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlvr_pl.compare.comparison_file import load_comparison
from rlvr_pl.main import main
from rlvr_pl.run.records import read_records
from rlvr_pl.types import ConfigError
from tests.helpers.paths import CONFIGS, ROOT
from tests.helpers.runs import assert_same_run, read_scalars, tiny_run

LETTERS = {"data.verifier": "choice", "data.answer": "[key, other]", "data.question": "task"}
WEIGHTED = {"model.rewards": '[{"function": "tests.helpers.runs.digits_by_level"}]'}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def choices(tmp_path: Path) -> Path:
    rows = [{"task": f"{i}? A) 1 B) 2", "key": "AB"[i % 2], "other": None, "level": 1 + i % 3} for i in range(34)]
    return write(tmp_path / "choices.jsonl", rows)


def own(policy: str, save_dir: Path, source: Path, **overrides: Any) -> list[str]:
    arguments = tiny_run(policy, save_dir, **overrides)
    return [*(a for a in arguments if not a.startswith("--data.source")), f"--data.source={source}"]


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


@pytest.mark.filterwarnings("ignore:data.source has no test split")
def test_columns_reach_rewards_after_a_resume_too(
    choices: Path, policy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run in two halves is the run in one, another verifier is another run, and verdicts are the verifier's."""
    settings = {**LETTERS, **WEIGHTED}
    whole, halves = tmp_path / "whole" / "run" / "version_0", tmp_path / "halves" / "run" / "version_0"
    main(own(policy, tmp_path / "whole", choices, **settings))
    main(own(policy, tmp_path / "halves", choices, **settings, **{"data.max_rollouts": 3}))
    goes_on = [*own(policy, tmp_path / "halves", choices, **settings), "--ckpt_path=last"]
    assert refused([*goes_on, "--data.verifier=exact"], capsys).startswith(
        f"error: ckpt_path: {halves / 'checkpoints' / 'last.ckpt'} is of another run: data.verifier is "
        "rlvr_pl.verifiers.exact.Exact() and was rlvr_pl.verifiers.choice.Choice(first=None, letters='ABCDE'). Leave it"
    )
    main(goes_on)
    assert_same_run(halves, whole)
    assert max(read_scalars(whole)["train/reward/digits_by_level"].values()) > 0
    records = read_records(whole / "evaluations" / "val-000006.jsonl")
    assert {record["gold"] for record in records} == {"A", "B"}
    assert refused([*own(policy, tmp_path, choices, **LETTERS, **WEIGHTED), "--data.answer=level"], capsys) == (
        f"error: data.source: 34 of 34 rows of the train split ({choices}) cannot be used: "
        + "; ".join(
            f"row {i + 1}: its answer is the number {1 + i % 3}; say what number the first choice has, 0 or 1: "
            "data.verifier: {class_path: rlvr_pl.verifiers.Choice, init_args: {first: 0}}"
            for i in range(5)
        )
        + "; and 29 more. Fix them, or leave them out with --data.bad_rows drop"
    )


def test_a_column_that_a_reward_asks_for_has_to_be_there(
    policy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(tiny_run(policy, tmp_path, **WEIGHTED), capsys)
    assert message == (
        "error: model.rewards: the train split has no column 'level'; its columns are question, answer. "
        "digits_by_level asks for it"
    )
    assert not (tmp_path / "run").exists(), "before any work"


def test_predict_answers_questions_without_answers(
    policy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"question": "1 + 1?"}, {"question": "2 + 2?", "answer": 4}, {"question": "3 + 3?", "answer": None}]
    file = write(tmp_path / "questions.jsonl", rows)
    sampled = {"model.eval_samples": 2, "model.eval_temperature": 1.0}
    arguments = own(policy, tmp_path, file, **sampled)[1:]
    main(["predict", *arguments])
    (records_file,) = (tmp_path / "run" / "version_0" / "evaluations").glob("predict-*.jsonl")
    records = read_records(records_file)
    assert [(r["question"], r["sample"]) for r in records] == [(q, s) for q in range(3) for s in range(2)]
    assert [r["question_text"] for r in records[::2]] == ["1 + 1?", "2 + 2?", "3 + 3?"]
    assert [(r["gold"], r["correct"], r["correct_flexible"] is None) for r in records[::2]] == [
        (None, None, True),
        ("4", False, False),
        (None, None, True),
    ]
    assert all({"completion", "extracted", "formatted", "tokens", "truncated"} <= r.keys() for r in records)
    shown = capsys.readouterr().out
    assert "strict (in the tags), avg@2" in shown
    assert "predict: 2 of 3 questions have no gold answer to be graded by" in shown
    write(file, [{"question": "1 + 1?"}])
    assert refused(["test", *arguments], capsys) == (
        f"error: data.answer: the train split ({file}) has no column 'answer'; its columns are question. "
        "Name the one that holds the gold answers; without any there is predict"
    )


@pytest.mark.filterwarnings("ignore:data.source has no test split")
@pytest.mark.parametrize(
    ("overlay", "strict", "gold"),
    [
        ("choice", "in the tags", lambda row: row["key"]),
        ("math", r"in tags or \boxed{}", lambda row: re.findall(r"boxed{(\d+)}", row["solution"])[0]),
    ],
)
def test_the_overlays_run_on_their_examples(
    overlay: str, strict: str, gold: Callable[[Any], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {
        "trainer.enable_progress_bar": "false",
        "trainer.logger.save_dir": tmp_path,
        "model.max_completion_tokens": 8,
        "data.max_rollouts": 1,
        "data.val_size": 16,
    }
    flags = [f"--{key}={value}" for key, value in settings.items()]
    configs = [f"--config={CONFIGS / name}.yaml" for name in ("quickstart", overlay)]
    main(["fit", *configs, f"--data.source={ROOT / 'examples' / overlay}.jsonl", *flags])
    assert f"strict ({strict})" in capsys.readouterr().out
    run = tmp_path / "quickstart" / "version_0"
    assert set(read_scalars(run)["train/reward"]) == {1}
    rows = [json.loads(line) for line in (ROOT / "examples" / f"{overlay}.jsonl").open()]
    for split in ("val", "test"):
        records = read_records(run / "evaluations" / f"{split}-000000.jsonl")
        assert [r["gold"] for r in records] == [gold(rows[r["question"]]) for r in records]
        assert len(records) == 16


def test_arms_with_different_verifiers_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "compare.yaml"
    arms = {"a": {"model.loss": "GRPO"}, "b": {"data.verifier": "exact"}}
    file.write_text(yaml.safe_dump({"folder": str(tmp_path), "base": ["quickstart"], "arms": arms, "seeds": [0]}))
    message = "the arms are not judged alike: data.verifier is number for a, exact for b"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        _ = load_comparison(file).resolved
