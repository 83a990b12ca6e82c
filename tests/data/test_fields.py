"""Fields of one's own: questions, answers in every form, columns for rewards; and what is said where one is missing."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from rlvr_pl.data import GSM8KDataModule
from rlvr_pl.data.fields import Fields
from rlvr_pl.data.questions import build_questions
from rlvr_pl.rewards import Completion, RewardSum, RewardTerm
from rlvr_pl.types import ConfigError, Question
from rlvr_pl.verifiers import Choice, Exact, Number, Verifier


def build(tokenizer: PreTrainedTokenizerBase, rows: list[Any], file: str = "", **fields: Any) -> list[Question]:
    place = Path(file) if file else None
    return build_questions(rows, "train", tokenizer, str, 512, "refuse", Fields(**fields), place)


def refusal(tokenizer: PreTrainedTokenizerBase, rows: list[Any], file: str = "", **fields: Any) -> str:
    with pytest.raises(ConfigError) as error:
        build(tokenizer, rows, file, **fields)
    return str(error.value)


def test_fields_are_named_and_answers_have_any_form(tokenizer: PreTrainedTokenizerBase) -> None:
    for verifier, value, gold in (
        (Number(), 18, "18"),
        (Number(), 18.5, "18.5"),
        (Number(), "#### 18", "18"),
        (Choice(), "(c)", "C"),
        (Exact(), "New York", "New York"),
    ):
        (question,) = build(
            tokenizer, [{"task": "Why?", "key": value}], question="task", answers=("key",), verifier=verifier
        )
        assert (question.question, question.gold, question.alternatives) == ("Why?", gold, ())


def test_several_columns_and_lists_of_accepted_answers(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [
        {"question": "1?", "answer": "US", "alias": "United States"},
        {"question": "2?", "answer": ["US", "USA", "US"], "alias": None},
        {"question": "3?", "answer": " ", "alias": float("nan")},
    ]
    both = {"answers": ("answer", "alias"), "verifier": Exact()}
    questions = build(tokenizer, rows[:2], **both)
    assert [(q.gold, q.alternatives) for q in questions] == [("US", ("United States",)), ("US", ("USA",))]
    assert ": row 3: 'answer' or 'alias' is empty. Fix" in refusal(tokenizer, rows, **both)


def test_bad_golds_are_named_by_row_and_file(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [{"question": "1?", "answer": "B"}, {"question": "2?", "answer": "Paris"}]
    assert refusal(tokenizer, rows, "/data/train.jsonl", verifier=Choice()) == (
        "data.source: 1 of 2 rows of the train split (/data/train.jsonl) cannot be used: row 2: its answer is none of "
        "the letters ABCDE (data.verifier, letters): 'Paris'. Fix them, or leave them out with --data.bad_rows drop"
    )


class Picky(Verifier):
    def gold(self, value: object) -> str:
        return {"a": "A"}[str(value)]


def test_a_verifier_that_fails_at_a_gold_answer_is_named_by_row(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [{"question": "1?", "answer": "a"}, {"question": "2?", "answer": "b"}]
    assert "row 2: Picky raised (KeyError: 'b') on its answer 'b'. Fix" in refusal(tokenizer, rows, verifier=Picky())


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"question": "task"}, "data.question: {} has no column 'task'; its columns are question, answer, level. Name"),
        ({"answers": ("key",)}, "data.answer: {} has no column 'key'; its columns are question, answer, level. Name"),
        ({"answers": ("answer", "key")}, "data.answer: {} has no column 'key'; its columns are question, answer, leve"),
        ({"cluster": "topic"}, "data.cluster: {} has no column 'topic'; its columns are question, answer, level. Nam"),
        (
            {"columns": {"hardness": "weighted"}},
            "model.rewards: {} has no column 'hardness'; its columns are question, answer, level. weighted asks for it",
        ),
    ],
)
def test_a_missing_column_is_named_with_those_there_are(
    fields: dict[str, Any], problem: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = [{"question": "1?", "answer": 1}, {"question": "2?", "answer": 2, "level": 3}]
    message = refusal(tokenizer, rows, "some.jsonl", **fields)
    assert message.startswith(problem.format("the train split (some.jsonl)"))


def test_a_row_that_lacks_a_column_is_named(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [{"question": "1?", "answer": 1, "level": None}, {"question": "2?", "answer": 2}]
    columns = {"level": "weighted and other"}
    assert ": row 2: 'level' is missing, for which weighted and other asks. Fix" in refusal(
        tokenizer, rows, columns=columns
    )
    (question,) = build(tokenizer, rows[:1], columns=columns)
    assert question.columns == {"level": None}


def test_without_answers(tokenizer: PreTrainedTokenizerBase) -> None:
    assert build(tokenizer, [{"question": "1?"}], optional_answers=True)[0].gold is None
    rows = [{"question": "1?", "answer": None}, {"question": "2?", "answer": 2}]
    assert [q.gold for q in build(tokenizer, rows, optional_answers=True)] == [None, "2"]
    assert refusal(tokenizer, [{"question": "1?"}]).endswith(
        "its columns are question. Name the one that holds the gold answers; without any there is predict"
    )


# The data module.


def weighted(completion: Completion, *, level: int) -> float:
    return float(level)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split, size in (("train", 40), ("test", 10)):
        rows = [{"task": f"{split} {i}?", "key": i, "level": i % 3} for i in range(size)]
        (tmp_path / f"{split}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return tmp_path


def make(folder: Path, **settings: Any) -> GSM8KDataModule:
    names = {"question": "task", "answer": "key"}
    return GSM8KDataModule(str(folder), tokenizer="embedded", val_size=8, prompts_per_rollout=4, **names | settings)


@pytest.mark.parametrize("rank", [0, 1])
def test_columns_that_rewards_ask_for_are_in_the_prompts_of_each_rank(folder: Path, rank: int) -> None:
    data = make(folder)
    module = SimpleNamespace(reward_sum=RewardSum([RewardTerm(weighted)]), policy_name="embedded")
    data.trainer = SimpleNamespace(global_rank=rank, world_size=2, lightning_module=module)  # type: ignore[assignment]
    data.setup("test")
    assert data.questions["train"][0].columns == {}, "no reward is given there"
    data.setup("fit")
    loader = data.train_dataloader()
    loader.load_state_dict({"next_rollout": 5})  # as after a resume
    questions = next(iter(loader)).questions
    assert len(questions) == 2
    assert [q.columns for q in questions] == [{"level": int(str(q.gold)) % 3} for q in questions]


def test_predict_takes_the_test_split_or_the_whole_file(folder: Path) -> None:
    data = make(folder)
    data.setup("predict")
    assert [q.question for q in data.questions["predict"]] == [f"test {i}?" for i in range(10)]
    alone = make(folder / "train.jsonl", answer="none")
    assert sum(len(batch.questions) for batch in alone.predict_dataloader()) == 40
    assert {q.gold for q in alone.questions["predict"]} == {None}
    with pytest.raises(ConfigError, match=r"^data\.answer: the train split \(.*train\.jsonl\) has no column 'none'; "):
        alone.setup("test")


def test_settings_that_name_no_field(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"^data\.answer is an empty list"):
        make(folder, answer=[])
