"""The data module: three splits that share no question, the same for every run, and settings that cannot be used."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rlvr_pl.data import EmbeddedProblems, GSM8KDataModule, HubDataset
from rlvr_pl.data.prompts import SYSTEM_PROMPT, PromptFormat
from rlvr_pl.pretrained import EMBEDDED_MODEL
from rlvr_pl.randomness import hold_out, prompt_order
from rlvr_pl.types import ConfigError, PromptBatch, Question


class Sums:
    """``train`` and ``test`` problems, all different; bad train rows where asked for. It counts its calls."""

    def __init__(self, train: int = 40, test: int | None = 10, bad: Iterable[int] = ()) -> None:
        self.sizes = {"train": train, "test": test}
        self.bad = set(bad)
        self.calls: list[str] = []

    def __call__(self, split: str) -> list[object] | None:
        self.calls.append(split)
        size = self.sizes[split]
        if size is None:
            return None
        rows: list[object] = [{"question": f"{split}: {i} + 1?", "answer": f"#### {i + 1}"} for i in range(size)]
        if split == "train":
            for i in self.bad:
                rows[i] = "bad"
        return rows


def make(source: Any = None, **settings: Any) -> GSM8KDataModule:
    data = GSM8KDataModule(
        source=source or Sums(), **{"tokenizer": "embedded", "val_size": 8, "prompts_per_rollout": 4, **settings}
    )
    data.setup()
    return data


def names(questions: Iterable[Question]) -> list[str]:
    return [question.question for question in questions]


def batches(loader: Iterable[PromptBatch]) -> list[list[str]]:
    return [names(batch.questions) for batch in loader]


# The splits.


def test_the_splits_of_a_source_with_a_test_split() -> None:
    questions = make().questions
    assert list(questions) == ["train", "val", "test"]
    assert names(questions["test"]) == [f"test: {i} + 1?" for i in range(10)]
    assert [q.index for q in questions["test"]] == list(range(10))
    assert len(questions["train"]) == 32
    assert len(questions["val"]) == 8
    assert sorted(q.index for q in questions["train"] + questions["val"]) == list(range(40))
    for split in ("train", "val"):
        assert [q.index for q in questions[split]] == sorted(q.index for q in questions[split])
        assert names(questions[split]) == [f"train: {q.index} + 1?" for q in questions[split]]
        assert [q.gold for q in questions[split]] == [str(q.index + 1) for q in questions[split]]


def test_the_hold_out_depends_on_the_split_seed_alone() -> None:
    val = names(make().questions["val"])
    assert [q.index for q in make().questions["val"]] == sorted(hold_out(0, 40, 8))
    assert names(make(seed=1).questions["val"]) == val
    assert names(make(seed=1, prompts_per_rollout=8, max_rollouts=3, eval_batch_size=2).questions["val"]) == val
    other = [q.index for q in make(split_seed=1).questions["val"]]
    assert other == sorted(hold_out(1, 40, 8))
    assert other != sorted(hold_out(0, 40, 8))


def test_a_source_without_a_test_split_gets_one() -> None:
    with pytest.warns(UserWarning, match=r"data\.source has no test split; 8 train problems are held out for it"):
        questions = make(Sums(train=40, test=None)).questions
    assert {split: len(some) for split, some in questions.items()} == {"train": 24, "val": 8, "test": 8}
    assert sorted(q.index for some in questions.values() for q in some) == list(range(40))  # so they are disjoint
    assert [q.index for q in questions["test"]] == sorted(hold_out(1, 40, 8))


@pytest.mark.filterwarnings("ignore:data.source has no test split")
def test_a_test_split_that_was_held_out_is_the_same_for_all_runs() -> None:
    first, second = (make(Sums(test=None), seed=seed).questions for seed in (0, 1))
    assert first == second
    other = make(Sums(test=None), split_seed=5).questions
    assert names(other["test"]) != names(first["test"])
    assert names(other["val"]) != names(first["val"])


def test_a_source_with_both_splits_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", category=UserWarning)
        make()


def test_setup_loads_once() -> None:
    source = Sums()
    data = make(source)
    before = data.questions
    data.setup("fit")
    data.setup("test")
    assert data.questions is before
    assert sorted(source.calls) == ["test", "train"]


def test_rows_that_were_dropped_leave_the_others_their_numbers() -> None:
    with pytest.warns(UserWarning, match=r"data\.source: 3 of 40 rows of the train split .* were dropped"):
        questions = make(Sums(bad=(0, 7, 39)), bad_rows="drop").questions
    assert sorted(q.index for q in questions["train"] + questions["val"]) == [
        i for i in range(40) if i not in (0, 7, 39)
    ]
    assert len(questions["val"]) == 8
    assert all(q.question == f"train: {q.index} + 1?" for q in questions["train"] + questions["val"])


def test_bad_rows_are_refused_by_default() -> None:
    with pytest.raises(ConfigError, match=r"data\.source: 1 of 40 rows of the train split .* row 8: not an object"):
        make(Sums(bad=(7,)))


# Settings that cannot be used.


@pytest.mark.parametrize("value", [0, -1])
@pytest.mark.parametrize("key", ["prompts_per_rollout", "max_rollouts", "val_size", "eval_batch_size"])
def test_sizes_are_at_least_1(key: str, value: int) -> None:
    with pytest.raises(ConfigError) as error:
        GSM8KDataModule(Sums(), **{key: value})  # type: ignore[arg-type]
    assert str(error.value) == f"data.{key} is {value}; it must be at least 1"


@pytest.mark.parametrize("val_size", [40, 41, 256])
def test_a_hold_out_leaves_something_to_train_on(val_size: int) -> None:
    with pytest.raises(ConfigError) as error:
        make(val_size=val_size)
    assert str(error.value) == (f"data.val_size is {val_size}, but there are only 40 train problems to hold out from")
    assert len(make(val_size=39).questions["train"]) == 1


@pytest.mark.filterwarnings("ignore:data.source has no test split")
def test_two_hold_outs_leave_something_to_train_on() -> None:
    with pytest.raises(ConfigError, match=r"^data\.val_size is 20, but there are only 20 train problems to hold out"):
        make(Sums(test=None), val_size=20)
    assert len(make(Sums(test=None), val_size=19).questions["train"]) == 2


@pytest.mark.parametrize("test", [10, None])
def test_a_source_without_a_train_split(test: int | None) -> None:
    source = Sums(test=test)
    source.sizes["train"] = None
    with pytest.raises(ConfigError, match=r"^data\.source: it has no train split"):
        make(source)


def test_a_source_that_is_not_there_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(ConfigError, match=r"^data\.source: there is no file or folder '/no/such/file\.jsonl'$"):
        GSM8KDataModule(source="/no/such/file.jsonl", tokenizer="/no/such/model")


def test_a_prompt_limit_that_no_row_keeps() -> None:
    with pytest.raises(
        ConfigError, match=r"40 of 40 rows .* tokens, over data\.max_prompt_tokens 3; .*; and 35 more\."
    ):
        make(max_prompt_tokens=3)


def test_a_seed_is_not_negative() -> None:
    with pytest.raises(ConfigError, match=r"data\.split_seed"):
        make(split_seed=-1)


# Sources and prompts.


def test_defaults() -> None:
    data = GSM8KDataModule()
    assert isinstance(data.source, HubDataset)
    assert (data.source.path, data.source.name) == ("openai/gsm8k", "main")
    assert (data.prompt_format, data.tokenizer_name) == (PromptFormat(SYSTEM_PROMPT), None)


def test_the_embedded_problems() -> None:
    data = make(EmbeddedProblems(train_size=60, test_size=20))
    assert {split: len(some) for split, some in data.questions.items()} == {"train": 52, "val": 8, "test": 20}
    assert len(set(names([q for some in data.questions.values() for q in some]))) == 80


def test_prompts_by_chat_template_or_plain() -> None:
    chat = make(system_prompt="Be brief.").questions["test"][3].prompt
    assert chat == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\ntest: 3 + 1?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert make(system_prompt="").questions["test"][3].prompt == (
        "<|im_start|>user\ntest: 3 + 1?<|im_end|>\n<|im_start|>assistant\n"
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*chat template")
        plain = make(system_prompt="Be brief.", chat_template=False).questions["test"][3].prompt
    assert plain == "Be brief.\n\nQuestion: test: 3 + 1?\n\nAnswer:"


def test_a_tokenizer_without_a_chat_template(tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(EMBEDDED_MODEL / name, tmp_path / name)
    with pytest.warns(UserWarning, match="has no chat template"):
        data = make(tokenizer=str(tmp_path))
    assert data.questions["val"][0].prompt.endswith("+ 1?\n\nAnswer:")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*chat template")
        make(tokenizer=str(tmp_path), chat_template=False)  # as asked for


# The loaders.


def test_the_train_loader() -> None:
    data = make(prompts_per_rollout=4, max_rollouts=9, seed=6)
    loader = data.train_dataloader()
    assert len(loader) == 9
    order = [data.questions["train"][int(place)].question for place in prompt_order(6, 0, 32)]
    assert batches(loader) == [order[i : i + 4] for i in range(0, 32, 4)] + [
        [data.questions["train"][int(place)].question for place in prompt_order(6, 1, 32)[:4]]
    ]


def test_the_evaluation_loaders() -> None:
    data = make(eval_batch_size=3)
    assert [len(batch) for batch in batches(data.val_dataloader())] == [3, 3, 2]
    assert sorted(chain(*batches(data.val_dataloader()))) == sorted(names(data.questions["val"]))
    assert [len(batch) for batch in batches(data.test_dataloader())] == [3, 3, 3, 1]
    assert sorted(chain(*batches(data.test_dataloader()))) == sorted(names(data.questions["test"]))
    assert batches(data.predict_dataloader()) == batches(data.test_dataloader())


def test_each_rank_gets_its_share() -> None:
    data = make()
    kinds: list[Callable[[], Iterable[PromptBatch]]] = [
        data.train_dataloader,
        data.val_dataloader,
        data.test_dataloader,
        data.predict_dataloader,
    ]
    alone = [[index for batch in kind() for index in batch.indices] for kind in kinds]
    shares: list[list[list[int]]] = []
    for rank in range(2):
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2)  # type: ignore[assignment]
        shares.append([[index for batch in kind() for index in batch.indices] for kind in kinds])
    for whole, first, second in zip(alone, *shares, strict=True):
        assert sorted(first + second) == sorted(whole)
        assert len(first) == len(second) == len(whole) // 2
        assert not set(first) & set(second)


def test_two_ranks_hold_out_the_same_questions() -> None:
    splits = []
    for rank in range(2):
        data = GSM8KDataModule(Sums(), tokenizer="embedded", val_size=8)
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2)  # type: ignore[assignment]
        data.setup()
        splits.append(data.questions)
    assert splits[0] == splits[1]
