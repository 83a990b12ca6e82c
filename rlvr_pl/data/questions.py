"""From rows to questions: checked, formatted, tokenized."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeVar

from transformers import PreTrainedTokenizerBase

from rlvr_pl.data.fields import Fields
from rlvr_pl.data.prompts import PromptEncoder
from rlvr_pl.types import ConfigError, Question

BadRows = Literal["refuse", "drop"]
Row = TypeVar("Row")

_SHOWN = 5  # bad rows named in a message
_ENOUGH = 100  # questions, of which fewer are a trial
_ALIKE = 0.1  # a share of questions with a twin beyond which they are hardly independent; GSM8K's test split has none


def build_questions(
    rows: Iterable[object],
    split: str,
    tokenizer: PreTrainedTokenizerBase,
    format_question: Callable[[str], str],
    max_prompt_tokens: int,
    bad_rows: BadRows,
    fields: Fields | None = None,
    file: Path | None = None,
) -> list[Question]:
    """Make questions of all usable rows, in order; ``index`` is the row's place in the source, counted from 0.

    Args:
        rows: unchecked.
        split: its name, for messages.
        tokenizer: of the policy.
        format_question: from a question to its prompt.
        max_prompt_tokens: a row with a longer prompt cannot be used.
        bad_rows: what to do about rows that cannot be used.
        fields: what the fields of a row mean; GSM8K's where it is None.
        file: that the rows are from, for messages; None where they are from none.

    Raises:
        ConfigError: if no row has a field that is needed; if rows cannot be used and ``bad_rows`` is ``refuse``,
            naming them counted from 1; or if none can.
    """
    fields = Fields() if fields is None else fields
    place = f"the {split} split" + ("" if file is None else f" ({file})")
    rows = list(rows)
    fields.check(rows, place)
    encode = PromptEncoder(tokenizer, format_question)

    def build(index: int, row: object) -> Question:
        return _build_question(index, row, encode, max_prompt_tokens, fields)

    return _usable(enumerate(rows), build, place, bad_rows)


def rewrite_prompts(
    questions: Iterable[Question],
    split: str,
    tokenizer: PreTrainedTokenizerBase,
    format_question: Callable[[str], str],
    max_prompt_tokens: int,
    bad_rows: BadRows,
) -> list[Question]:
    """Give questions other prompts; the arguments, and what is refused or dropped, are ``build_questions``'s."""
    encode = PromptEncoder(tokenizer, format_question)

    def rewrite(_: int, question: Question) -> Question:
        prompt, prompt_ids = _write_prompt(question.question, encode, max_prompt_tokens)
        return replace(question, prompt=prompt, prompt_ids=prompt_ids)

    return _usable(((question.index, question) for question in questions), rewrite, f"the {split} split", bad_rows)


def _usable(
    numbered: Iterable[tuple[int, Row]], build: Callable[[int, Row], Question], place: str, bad_rows: BadRows
) -> list[Question]:
    """Build what can be built; refuse the rest, or drop it and say so."""
    questions: list[Question] = []
    bad: list[str] = []
    for index, row in numbered:
        try:
            questions.append(build(index, row))
        except ValueError as error:
            bad.append(f"row {index + 1}: {str(error).removesuffix('.')}")
    total = len(questions) + len(bad)
    if bad:
        shown = "; ".join(bad[:_SHOWN]) + (f"; and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else "")
        message = f"data.source: {len(bad)} of {total} rows of {place} cannot be used: {shown}"
        if bad_rows == "refuse":
            raise ConfigError(f"{message}. Fix them, or leave them out with --data.bad_rows drop")
        warnings.warn(f"{message}. They were dropped (data.bad_rows: drop)", stacklevel=3)
    if not questions:
        raise ConfigError(f"data.source: {place} has no usable rows")
    return questions


def warn_if_alike(questions: Sequence[Question]) -> None:
    """Ask for ``data.cluster`` where many questions are others with new numbers, and nothing says so."""
    texts = [re.sub(r"\d+", "0", question.question) for question in questions]
    times = Counter(texts)
    twins = sum(times[text] > 1 for text in texts)
    if len(texts) >= _ENOUGH and twins > _ALIKE * len(texts) and not any(question.cluster for question in questions):
        warnings.warn(
            f"{twins} of {len(texts)} test questions differ from another one in their numbers alone. Such questions "
            "are no independent evidence, and intervals that take them for it are too narrow: name the field that says "
            "which belong together, as data.cluster",
            stacklevel=2,
        )


def _build_question(index: int, row: object, encode: PromptEncoder, max_prompt_tokens: int, fields: Fields) -> Question:
    question = fields.read_question(row)
    assert isinstance(row, Mapping)
    golds = fields.read_golds(row)
    prompt, prompt_ids = _write_prompt(question, encode, max_prompt_tokens)
    return Question(
        index,
        question,
        golds[0] if golds else None,
        prompt,
        prompt_ids,
        cluster=fields.read_cluster(row),
        alternatives=golds[1:],
        columns=fields.read_columns(row),
    )


def _write_prompt(question: str, encode: PromptEncoder, max_prompt_tokens: int) -> tuple[str, tuple[int, ...]]:
    prompt, prompt_ids = encode(question)
    if not prompt_ids:
        raise ValueError("its prompt is empty: the chat template leaves the question out")
    if len(prompt_ids) > max_prompt_tokens:
        raise ValueError(f"its prompt has {len(prompt_ids)} tokens, over data.max_prompt_tokens {max_prompt_tokens}")
    return prompt, prompt_ids
