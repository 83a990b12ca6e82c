"""Examples in the prompt: drawn from the training questions, or given; never of a question that is evaluated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlvr_pl.data.prompts import Example
from rlvr_pl.randomness import few_shot_order
from rlvr_pl.types import ConfigError, Question
from rlvr_pl.verifiers import Verifier


def draw_examples(
    questions: Sequence[Question],
    rows: Sequence[Any],
    count: int,
    seed: int,
    verifier: Verifier,
    answer: str = "answer",
) -> tuple[tuple[Example, ...], list[Question]]:
    """Draw examples from the training questions; these are trained on no more.

    Args:
        questions: of the train split, without those that are held out.
        rows: the source's, to which the questions' ``index`` refers.
        count: how many.
        seed: of the draw; the first k of n examples are those of k.
        verifier: which says how an answer is written.
        answer: the field of the rows that holds it.

    Returns:
        The examples, and the other questions in their order.

    Raises:
        ConfigError: if no question would be left.
    """
    if count >= len(questions):
        raise ConfigError(f"data.few_shot is {count}, but there are only {len(questions)} train problems to draw from")
    drawn = few_shot_order(seed, len(questions))[:count].tolist()
    examples = tuple(_example(questions[i], rows[questions[i].index][answer], verifier) for i in drawn)
    return examples, [question for i, question in enumerate(questions) if i not in drawn]


def _example(question: Question, answer: object, verifier: Verifier) -> Example:
    assert question.gold is not None  # of a training question
    return Example(question.question, verifier.example(answer, question.gold))


def leave_out(questions: Mapping[str, Sequence[Question]], examples: Sequence[Example]) -> list[Question]:
    """Leave given examples out of the training questions.

    Args:
        questions: by split.
        examples: of the prompt.

    Returns:
        The training questions that are none of them.

    Raises:
        ConfigError: if one is evaluated, or if no question would be left.
    """
    numbers = {example.question.strip(): i + 1 for i, example in enumerate(examples)}
    for split in ("val", "test"):
        if shown := next((n for q in questions[split] if (n := numbers.get(q.question.strip()))), None):
            raise ConfigError(f"data.few_shot: example {shown} is a question of {split}; give another one")
    train = [question for question in questions["train"] if question.question.strip() not in numbers]
    if not train:
        raise ConfigError("data.few_shot: every train problem is one of its examples; none is left to train on")
    return train
