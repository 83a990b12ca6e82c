"""The shipped reward functions. A reward function is any callable from a completion to a finite number.

A custom one is a function anywhere on the import path, named in the configuration: ``my_package.my_reward``.
"""

from __future__ import annotations

from collections.abc import Callable

from rlvr_pl.rewards.answers import ANSWER_CLOSE, ANSWER_OPEN, same_number, tagged_answer
from rlvr_pl.rewards.completion import Completion

REASONING_OPEN = "<reasoning>"
REASONING_CLOSE = "</reasoning>"
TAGS = (REASONING_OPEN, REASONING_CLOSE, ANSWER_OPEN, ANSWER_CLOSE)


RewardFunction = Callable[[Completion], float]
"""Scores one completion. The score must be a finite number; an exception ends the run, by the function's name."""


def correctness(completion: Completion) -> float:
    """Give 2.0 where the tagged answer is the gold answer's text, 1.5 where it is the same number, else 0.0.

    The scale is the published script's. An answer outside the tags earns nothing: the task is to answer in them.
    """
    answer = tagged_answer(completion.text)
    if answer is None:
        return 0.0
    if answer == completion.gold.strip():
        return 2.0
    return 1.5 if same_number(answer, completion.gold) else 0.0


def tag_format(completion: Completion) -> float:
    """Give 0.2 for each of the four tags that occurs exactly once, so 0.0 to 0.8.

    The scale is the published script's. A repeated tag earns nothing, so that completions have no reason to repeat it.
    """
    return sum(completion.text.count(tag) == 1 for tag in TAGS) / 5


def strict_format(completion: Completion) -> float:
    """Give 1.0 where the completion is ``<reasoning>…</reasoning><answer>…</answer>`` and nothing else, else 0.0.

    Each tag occurs once, in this order; the answer is not blank; only whitespace stands before, between and after.
    """
    text = completion.text.strip()
    if any(text.count(tag) != 1 for tag in TAGS):
        return 0.0
    if not (text.startswith(REASONING_OPEN) and text.endswith(ANSWER_CLOSE)):
        return 0.0
    between, _, answer = text.partition(REASONING_CLOSE)[2].partition(ANSWER_OPEN)
    return float(not between.strip() and bool(answer.removesuffix(ANSWER_CLOSE).strip()))
