"""The shipped reward functions. A reward function is any callable from a completion to a finite number.

A custom one is a function anywhere on the import path, named in the configuration: ``my_package.my_reward``.
"""

from __future__ import annotations

from collections.abc import Callable

from rlvr_pl.rewards.completion import Completion
from rlvr_pl.verifiers.tags import TAGS, well_tagged

RewardFunction = Callable[..., float]
"""Scores one completion. The score must be a finite number; an exception ends the run, by the function's name."""


def correctness(completion: Completion) -> float:
    """Give 2.0 where the answer is a gold answer's text, 1.5 where the verifier finds it equal to one, else 0.0.

    The scale is the published script's. An answer that does not stand where it was asked for (the tags, for most
    verifiers) earns nothing: to put it there is the task.
    """
    answer = completion.answer
    if answer is None:
        return 0.0
    if any(answer == gold.strip() for gold in completion.golds):
        return 2.0
    return 1.5 if completion.is_right(answer) else 0.0


def tag_format(completion: Completion) -> float:
    """Give 0.2 for each of the four tags that occurs exactly once, so 0.0 to 0.8.

    The scale is the published script's. A repeated tag earns nothing, so that completions have no reason to repeat it.
    """
    return sum(completion.text.count(tag) == 1 for tag in TAGS) / 5


def strict_format(completion: Completion) -> float:
    """Give 1.0 where the completion is ``<reasoning>…</reasoning><answer>…</answer>`` and nothing else, else 0.0.

    Each tag occurs once, in this order; the answer is not blank; only whitespace stands before, between and after.
    """
    return float(well_tagged(completion.text))
