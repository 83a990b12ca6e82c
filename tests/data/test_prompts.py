"""What a prompt is beside its question: few-shot examples, the plain form, and the template that an export carries."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase, Qwen2Config

from rlvr_pl.data import EmbeddedProblems, GSM8KDataModule
from rlvr_pl.data.chat_templates import carrying
from rlvr_pl.data.few_shot import draw_examples
from rlvr_pl.data.prompts import Example, PromptFormat, format_of, saved_prompt
from rlvr_pl.pretrained import EMBEDDED_MODEL, load_tokenizer
from rlvr_pl.types import ConfigError, Question
from rlvr_pl.verifiers import Number
from tests.helpers.paths import SHARED

QWEN = SHARED / "qwen2.5-tokenizer"
EXAMPLES = (Example("1 + 1 = ?", "<answer>2</answer>"), Example("2 + 2 = ?", "<answer>4</answer>"))
ODD = "Say \"é\", 'ж' or \\n.\n\tNo {{ braces }} {% nor %} {# this #}: 数."


def load(few_shot: int | list[Example] | None = None, **settings: Any) -> GSM8KDataModule:
    source = EmbeddedProblems(train_size=60, test_size=20)
    data = GSM8KDataModule(source, tokenizer="embedded", val_size=8, few_shot=few_shot, **settings)
    data.setup()
    return data


def of_split(data: GSM8KDataModule, split: str) -> list[str]:
    return [question.question for question in data.questions[split]]


# Few-shot examples.


def test_examples_are_turns_before_the_question(tokenizer: PreTrainedTokenizerBase) -> None:
    prompt = PromptFormat("Be brief.", EXAMPLES[:1]).write(tokenizer, "Why?")
    assert prompt == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n1 + 1 = ?<|im_end|>\n"
        "<|im_start|>assistant\n<answer>2</answer><|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_drawn_examples_are_train_questions_that_are_not_trained_on() -> None:
    without, data = load(), load(3)
    for split in ("val", "test"):
        assert of_split(data, split) == of_split(without, split)
    shown = [example.question for example in data.prompt_format.few_shot]
    assert len(set(shown)) == 3
    assert of_split(data, "train") == [q for q in of_split(without, "train") if q not in shown]
    assert len(data.questions["train"]) == 49
    question = data.questions["test"][0]
    before, *turns = question.prompt.split("<|im_start|>user\n")
    assert [turn.partition("<|im_end|>")[0] for turn in turns] == [*shown, question.question]
    assert before == without.questions["test"][0].prompt.split("<|im_start|>user\n")[0]


def test_drawn_examples_are_the_same_for_every_seed_and_grow_by_the_next() -> None:
    examples = load(3).prompt_format.few_shot
    assert load(3, seed=7).prompt_format.few_shot == examples
    assert load(2).prompt_format.few_shot == examples[:2]
    assert load(3, split_seed=1).prompt_format.few_shot != examples


def test_a_drawn_solution_is_written_in_the_tags() -> None:
    row = {"question": "How many?", "answer": "Half is 48/2=<<48/2=24>>24.\nBoth are 48+24=<<48+24=72>>72.\n#### 72"}
    questions = [Question(i, row["question"], "72", "", (1,)) for i in range(2)]
    (example,), left = draw_examples(questions, [row, row], 1, seed=0, verifier=Number())
    assert example == Example(
        "How many?",
        "<reasoning>\nHalf is 48/2=24.\nBoth are 48+24=72.\n</reasoning>\n<answer>\n72\n</answer>",
    )
    assert len(left) == 1

    (example,), _ = draw_examples(questions, [{"answer": "72"}] * 2, 1, seed=0, verifier=Number())
    assert example.answer == "<answer>\n72\n</answer>", "there is no solution to show"


def test_given_examples_are_neither_trained_on_nor_evaluated() -> None:
    data = load(list(EXAMPLES))
    assert data.prompt_format.few_shot == EXAMPLES
    assert len(data.questions["train"]) == 52
    shown = of_split(data, "train")[3]
    assert of_split(load([Example(shown, "7")]), "train") == [q for q in of_split(data, "train") if q != shown]
    for split in ("val", "test"):
        with pytest.raises(ConfigError) as error:
            load([EXAMPLES[0], Example(of_split(data, split)[2], "7")])
        assert str(error.value) == f"data.few_shot: example 2 is a question of {split}; give another one"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"few_shot": 52}, "data.few_shot is 52, but there are only 52 train problems to draw from"),
        ({"few_shot": -1}, "data.few_shot is -1; it must be at least 0"),
        (
            {"few_shot": [EXAMPLES[0], Example("2?", "2<|im_end|>")]},
            "data.few_shot: example 2 holds the special token '<|im_end|>', which would not be read as text; give "
            "other examples",
        ),
        ({"plain_format": "Q: {}\nA:"}, "data.plain_format is 'Q: {}\\nA:'; it must hold {question} once"),
    ],
)
def test_prompts_that_cannot_be_written(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(**settings)
    assert str(error.value) == message


def test_rows_whose_prompt_is_too_long_with_its_examples_are_named() -> None:
    longest = max(len(question.prompt_ids) for some in load().questions.values() for question in some)
    with pytest.raises(ConfigError) as error:
        load(2, max_prompt_tokens=longest)
    assert str(error.value).startswith("data.source: 50 of 50 rows of the train split cannot be used: row ")
    assert f" tokens, over data.max_prompt_tokens {longest}; " in str(error.value)


# The plain form.


def test_the_plain_form_can_be_set(tokenizer: PreTrainedTokenizerBase) -> None:
    prompt = PromptFormat("Be brief.", EXAMPLES[:1], chat_template=False)
    assert prompt.write(tokenizer, "Why?") == (
        "Be brief.\n\nQuestion: 1 + 1 = ?\n\nAnswer: <answer>2</answer>\n\nQuestion: Why?\n\nAnswer:"
    )
    prompt = PromptFormat("", EXAMPLES[:1], chat_template=False, plain_format='"{question}"\n=> {x}\n')
    assert prompt.write(tokenizer, "Why?") == '"1 + 1 = ?"\n=> {x}\n<answer>2</answer>\n\n"Why?"\n=> {x}\n'


# What an exported model's tokenizer carries.


def model_folder(tokenizer: Path, folder: Path) -> Path:
    folder.mkdir()
    for file in tokenizer.glob("*token*"):
        shutil.copyfile(file, folder / file.name)
    if (tokenizer / "chat_template.jinja").is_file():
        shutil.copyfile(tokenizer / "chat_template.jinja", folder / "chat_template.jinja")
    Qwen2Config(hidden_size=32, num_hidden_layers=1).save_pretrained(folder)
    return folder


def rendered(tokenizer: PreTrainedTokenizerBase, *messages: tuple[str, str]) -> list[int]:
    conversation = [{"role": role, "content": content} for role, content in messages]
    return list(tokenizer.apply_chat_template(conversation, add_generation_prompt=True, return_dict=True)["input_ids"])


@pytest.mark.parametrize(
    "prompt",
    [
        PromptFormat(),
        PromptFormat(""),
        PromptFormat(ODD, (Example(ODD, ODD),)),
        PromptFormat("", EXAMPLES),
        PromptFormat("Be brief.", EXAMPLES, chat_template=False, plain_format=f"{ODD}{{question}}{ODD}"),
        PromptFormat("", chat_template=False),
    ],
)
@pytest.mark.parametrize("known", [EMBEDDED_MODEL, QWEN], ids=["embedded", "qwen"])
def test_an_exported_tokenizer_writes_the_prompt_of_training(known: Path, prompt: PromptFormat, tmp_path: Path) -> None:
    if not known.is_dir():
        pytest.skip(f"Qwen2.5's tokenizer is not at hand: there is no folder {known}")
    folder = model_folder(known, tmp_path / "best_model")
    before = load_tokenizer(str(folder))
    prompt.put_into(folder)
    exported = load_tokenizer(str(folder))
    trained = before(prompt.write(before, "Why?"), add_special_tokens=False)["input_ids"]
    assert rendered(exported, ("user", "Why?")) == trained
    own = [("system", "Rhyme."), ("user", "Why?"), ("assistant", "So."), ("user", "How?")]
    if prompt.chat_template:
        assert rendered(exported, *own) == rendered(before, *own)
    else:
        assert exported.decode(rendered(exported, *own)).startswith("Rhyme.\n\n")
    assert exported.decode(rendered(exported, *own[1:])).startswith(before.decode(trained))
    chosen = format_of(exported)  # what chat makes of the folder
    assert exported(chosen.write(exported, "Why?"), add_special_tokens=False)["input_ids"] == trained


def test_a_template_writes_what_it_wrote_behind_what_it_carries(tokenizer: PreTrainedTokenizerBase) -> None:
    """Whatever it begins with: transformers drops a newline after a block, and white space before one."""
    messages = [{"role": "user", "content": "Why?"}]
    system = {"role": "system", "content": "Be brief."}
    loop = "{% for m in messages %}\n {{ m.content }}|\n{% endfor %}\n"
    for template in (f"\n\n  {loop}", f" {loop}", f"{{%- set x = 1 -%}}\n{loop}"):
        full, alone = (
            tokenizer.apply_chat_template(some, chat_template=template, tokenize=False)
            for some in ([system, *messages], messages)
        )
        once = carrying(template, [system])
        for carried in (once, carrying(once, [{"role": "system", "content": "Other."}]), carrying(once, [])):
            own = tokenizer.apply_chat_template([system, *messages], chat_template=carried, tokenize=False)
            assert own == full
        assert tokenizer.apply_chat_template(messages, chat_template=once, tokenize=False) == full
        assert tokenizer.apply_chat_template(messages, chat_template=carrying(template, []), tokenize=False) == alone


# A changed prompt is another run.


def test_a_checkpoint_says_with_which_prompt_it_was_trained() -> None:
    data = load(2, system_prompt="Be brief.", plain_format="Q: {question}\nA:")
    saved = saved_prompt({"state_dict": {}, "epoch": 1, "GSM8KDataModule": data.state_dict()})
    assert saved == data.prompt_format
    assert data.prompt_format.changes_since(saved) == []
    assert load().prompt_format.changes_since(saved) == [
        "data.system_prompt is 'Reason step by step in <reasoning>...</reasoning>, then give…' and was 'Be brief.'",
        "data.few_shot is 0 examples and was 2 examples",
        "data.plain_format is 'Question: {question}\\n\\nAnswer:' and was 'Q: {question}\\nA:'",
    ]
    assert saved_prompt({"state_dict": {}}) is None
    assert data.prompt_format.changes_since(None) == []
