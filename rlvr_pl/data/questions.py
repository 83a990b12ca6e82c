"""From rows to questions: checked, formatted, tokenized."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

from transformers import PreTrainedTokenizerBase

from rlvr_pl.rewards import gold_answer
from rlvr_pl.types import ConfigError, Question

BadRows = Literal["refuse", "drop"]

_SHOWN = 5  # bad rows named in a message


def build_questions(
    rows: Iterable[object],
    split: str,
    tokenizer: PreTrainedTokenizerBase,
    format_question: Callable[[str], str],
    max_prompt_tokens: int,
    bad_rows: BadRows,
) -> list[Question]:
    """Make questions of all usable rows, in order; ``index`` is the row's place in the source, counted from 0.

    Args:
        rows: in GSM8K's schema, unchecked.
        split: its name, for messages.
        tokenizer: of the policy.
        format_question: from a question to its prompt.
        max_prompt_tokens: a row with a longer prompt cannot be used.
        bad_rows: what to do about rows that cannot be used.

    Raises:
        ConfigError: if rows cannot be used and ``bad_rows`` is ``refuse``, naming them counted from 1; or if none can.
    """
    questions: list[Question] = []
    bad: list[str] = []
    for index, row in enumerate(rows):
        try:
            questions.append(_build_question(index, row, tokenizer, format_question, max_prompt_tokens))
        except ValueError as error:
            bad.append(f"row {index + 1}: {str(error).removesuffix('.')}")
    total = len(questions) + len(bad)
    if bad:
        shown = "; ".join(bad[:_SHOWN]) + (f"; and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else "")
        message = f"data.source: {len(bad)} of {total} rows of the {split} split cannot be used: {shown}"
        if bad_rows == "refuse":
            raise ConfigError(f"{message}. Fix them, or leave them out with --data.bad_rows drop")
        warnings.warn(f"{message}. They were dropped (data.bad_rows: drop)", stacklevel=2)
    if not questions:
        raise ConfigError(f"data.source: the {split} split has no usable rows")
    return questions


def _build_question(
    index: int,
    row: object,
    tokenizer: PreTrainedTokenizerBase,
    format_question: Callable[[str], str],
    max_prompt_tokens: int,
) -> Question:
    if not isinstance(row, Mapping):
        raise ValueError(f"not an object with 'question' and 'answer': {str(row)[:40]!r}")
    for key in ("question", "answer"):
        value = row.get(key)
        if not isinstance(value, str):
            raise ValueError(f"{key!r} is {'missing' if value is None else type(value).__name__}, not text")
        if not value.strip():
            raise ValueError(f"{key!r} is empty")
        value.encode()  # a lone surrogate, which JSON can spell, is a ValueError here and a TypeError to tokenizers
    gold = gold_answer(row["answer"])
    prompt = format_question(row["question"])
    prompt_ids = tuple(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    if len(prompt_ids) > max_prompt_tokens:
        raise ValueError(f"its prompt has {len(prompt_ids)} tokens, over data.max_prompt_tokens {max_prompt_tokens}")
    return Question(index=index, question=row["question"], gold=gold, prompt=prompt, prompt_ids=prompt_ids)
