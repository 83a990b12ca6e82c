"""GSM8K itself: every problem loads, fits and verifies, by the embedded tokenizer and by Qwen2.5's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import Qwen2Config

from rlvr_pl.data import GSM8KDataModule
from rlvr_pl.data.prompts import SYSTEM_PROMPT
from rlvr_pl.main import main
from rlvr_pl.pretrained import load_tokenizer
from rlvr_pl.rewards import gold_answer
from rlvr_pl.run.records import read_records
from rlvr_pl.types import Question
from rlvr_pl.verifiers.number import parse_number, same_number
from tests.helpers.paths import SHARED
from tests.helpers.policies import make_tiny_policy
from tests.helpers.runs import read_scalars, tiny_run

GSM8K = SHARED / "gsm8k"
QWEN = SHARED / "qwen2.5-tokenizer"

pytestmark = pytest.mark.skipif(not GSM8K.is_dir(), reason=f"GSM8K is not at hand: there is no folder {GSM8K}")


@pytest.fixture(scope="module")
def rows() -> dict[str, list[dict[str, str]]]:
    return {split: [json.loads(line) for line in (GSM8K / f"{split}.jsonl").open()] for split in ("train", "test")}


@pytest.fixture(scope="module")
def embedded() -> GSM8KDataModule:
    """Its small vocabulary makes long prompts: five train problems exceed 512 tokens."""
    data = GSM8KDataModule(source=str(GSM8K), tokenizer="embedded", max_prompt_tokens=1024)
    data.setup()
    return data


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> GSM8KDataModule:
    if not QWEN.is_dir():
        pytest.skip(f"Qwen2.5's tokenizer is not at hand: there is no folder {QWEN}")
    folder = tmp_path_factory.mktemp("qwen")
    for file in QWEN.iterdir():
        shutil.copyfile(file, folder / file.name)
    Qwen2Config(hidden_size=32, num_hidden_layers=1).save_pretrained(folder)
    data = GSM8KDataModule(source=str(GSM8K), tokenizer=str(folder))  # the default limit, 512 tokens
    data.setup()
    return data


@pytest.fixture(params=["embedded", "qwen"])
def data(request: pytest.FixtureRequest) -> GSM8KDataModule:
    module: GSM8KDataModule = request.getfixturevalue(request.param)
    return module


def all_questions(data: GSM8KDataModule) -> list[Question]:
    return [question for split in ("train", "val", "test") for question in data.questions[split]]


def test_every_problem_loads(data: GSM8KDataModule, rows: dict[str, list[dict[str, str]]]) -> None:
    assert {split: len(some) for split, some in data.questions.items()} == {"train": 7217, "val": 256, "test": 1319}
    assert [q.index for q in data.questions["test"]] == list(range(1319))
    loaded = {q.index: q for q in data.questions["train"] + data.questions["val"]}
    assert sorted(loaded) == list(range(7473))
    for split, questions in (("train", [loaded[i] for i in range(7473)]), ("test", data.questions["test"])):
        assert [q.question for q in questions] == [row["question"] for row in rows[split]]
        assert [q.gold for q in questions] == [gold_answer(row["answer"]) for row in rows[split]]


def test_prompts_hold_the_system_prompt_and_the_question(data: GSM8KDataModule) -> None:
    for question in all_questions(data):
        assert question.prompt == (
            f"<|im_start|>system\n{SYSTEM_PROMPT}<|im_end|>\n"
            f"<|im_start|>user\n{question.question}<|im_end|>\n<|im_start|>assistant\n"
        )


def test_prompt_tokens_spell_the_prompt(data: GSM8KDataModule) -> None:
    tokenizer = load_tokenizer(data.tokenizer_name)
    for question in data.questions["test"][::5]:
        assert tokenizer.decode(list(question.prompt_ids)) == question.prompt


def test_prompt_tokens_are_the_tokenizers_own(data: GSM8KDataModule) -> None:
    """Special tokens of questions are encoded otherwise; these have none."""
    tokenizer, questions = load_tokenizer(data.tokenizer_name), all_questions(data)
    encoded = tokenizer([question.prompt for question in questions], add_special_tokens=False)["input_ids"]
    assert [list(question.prompt_ids) for question in questions] == encoded


def test_no_prompt_nears_the_limit_of_512_tokens(qwen: GSM8KDataModule) -> None:
    lengths = [len(question.prompt_ids) for question in all_questions(qwen)]
    assert (min(lengths), max(lengths)) == (51, 251)


def test_every_gold_answer_verifies_against_itself(qwen: GSM8KDataModule) -> None:
    for question in all_questions(qwen):
        assert same_number(question.gold, question.gold)
        assert parse_number(question.gold) == int(question.gold.replace(",", ""))
        assert not same_number(question.gold, f"{question.gold}1")


def test_no_test_question_is_trained_on(qwen: GSM8KDataModule) -> None:
    split = {name: {question.question for question in questions} for name, questions in qwen.questions.items()}
    assert split["test"].isdisjoint(split["train"] | split["val"])
    assert split["val"].isdisjoint(split["train"])


def test_fit_trains_and_evaluates_on_it(tmp_path: Path) -> None:
    """Two rollouts and evaluations of a hold-out, with Qwen2.5's tokenizer and whole vocabulary."""
    if not QWEN.is_dir():
        pytest.skip(f"Qwen2.5's tokenizer is not at hand: there is no folder {QWEN}")
    policy = make_tiny_policy(tmp_path / "policy", QWEN, vocabulary=151_936)
    settings = {
        "data.source": str(GSM8K),
        "data.val_size": 128,
        "data.max_rollouts": 2,
        "model.max_completion_tokens": 4,
        "model.micro_batch_tokens": 4096,
        "model.rewards": '[{"function": "tests.helpers.runs.text_length"}]',
        "data.eval_batch_size": 128,
    }
    arguments = tiny_run(policy, tmp_path, **settings)
    main([a for a in arguments if not a.startswith("--data.source.")])
    run = tmp_path / "run" / "version_0"
    scalars = read_scalars(run)
    assert set(scalars["train/grad_norm"]) == {1, 2}
    assert all(norm > 0 for norm in scalars["train/grad_norm"].values())
    for rollout in (0, 2):
        records = read_records(run / "evaluations" / f"val-{rollout:06d}.jsonl")
        assert len({r["question"] for r in records}) == 128
