"""What is said about an answer where the right one is known."""

from __future__ import annotations

from rlvr_pl.evaluation import grade
from rlvr_pl.rewards import Completion, parse_number
from rlvr_pl.run.terminal import visible
from rlvr_pl.types import ConfigError


def check_gold(gold: str) -> None:
    """Refuse a right answer with which no other could be compared.

    Raises:
        ConfigError: if it is no number.
    """
    if parse_number(gold) is None:
        raise ConfigError(f"the answer {gold!r} is not a number")


def verdict(completion: Completion) -> str:
    """Say in a line whether a completion has the right answer, as evaluations grade it."""
    graded = grade(completion)
    if graded.correct:
        return f"right: {visible(str(graded.extracted))}"
    said = "no answer in the tags" if graded.extracted is None else f"{visible(graded.extracted)!r} in the tags"
    last = ", which is its last number" if graded.correct_flexible else ""
    return f"wrong: {said}; it is {completion.gold}{last}"
