"""Choices: the letter of one of several given answers."""

from __future__ import annotations

import re
from typing import ClassVar

from rlvr_pl.types import ConfigError
from rlvr_pl.verifiers.tags import tagged_answer
from rlvr_pl.verifiers.verifier import Verifier, gold_text

MAX_LENGTH = 256  # characters of an answer
_MARKUP = re.compile(r"[*_`$]|\\(?:boxed|text|textbf|mathrm)(?![a-z])|[{}]")
_SMALL = re.compile(r"\(?[a-z]\)?")  # a letter alone: not the article of "a cat"
_LEAD_IN = re.compile(
    r"(?:the\s+)?(?:(?:correct|right|best|final)\s+)?(?:answer|option|choice)\b(?:\s+is\b)?\s*:?\s*", re.I
)


class Choice(Verifier):
    """Answers are letters: "B", "b", "(B)", "B. Paris" and "The answer is B" are all B.

    Where it is in doubt which letter is meant, none is: "A or B", "B, C" and "A cat" are no choice. A gold answer is
    such a text, what follows its last ``####``, or the number of a choice, where ``first`` says how they are counted.

    Args:
        letters: that there are to choose from.
        first: what the first choice's number is in a column of numbers, 0 or 1; null refuses numbers.
    """

    flexible: ClassVar[str] = "last letter"

    def __init__(self, letters: str = "ABCDE", first: int | None = None) -> None:
        if not (letters.isascii() and letters.isalpha() and letters.isupper() and len(set(letters)) == len(letters)):
            raise ConfigError(f"data.verifier: letters is {letters!r}; it must be different capitals, such as ABCDE")
        self.letters = letters
        self.first = first
        one = f"[{letters}]"
        # A letter alone, in parentheses, or before the text of its choice.
        self._choice = re.compile(rf"\(({one})\)|({one})(?=[).:]|\s+[-–—]\s|$)")
        self._another = re.compile(rf"(?<!\w)(?:\({one}\)|{one}(?=[).:]|$))")
        # "A" before a small letter is an article, and "I" a pronoun.
        self._mention = re.compile(rf"(?<![\w'’])({one})(?![\w'’])(?!(?<=[AI])\s+(?!is\b)[a-z])")

    def gold(self, value: object) -> str:
        if isinstance(value, int) and not isinstance(value, bool):
            return self._letter_of(value)
        text = gold_text(value)
        letter = self.letter(text)
        if letter is None:
            raise ValueError(
                f"its answer is none of the letters {self.letters} (data.verifier, letters): {text[:80]!r}"
            )
        return letter

    def _letter_of(self, number: int) -> str:
        if self.first is None:
            raise ValueError(
                f"its answer is the number {number}; say what number the first choice has, 0 or 1: "
                "data.verifier: {class_path: rlvr_pl.verifiers.Choice, init_args: {first: 0}}"
            )
        if not 0 <= number - self.first < len(self.letters):
            raise ValueError(
                f"its answer is the number {number}; the choices {self.letters} are counted from {self.first}"
            )
        return self.letters[number - self.first]

    def letter(self, text: str) -> str | None:
        """Read the letter that a short text means, or None where it means none or there is doubt."""
        if len(text) > MAX_LENGTH:
            return None
        text = _MARKUP.sub("", text).strip().removesuffix(".").strip()
        if _SMALL.fullmatch(text):
            text = text.upper()
        if lead_in := _LEAD_IN.match(text):
            text = text[lead_in.end() :]
        choice = self._choice.match(text)
        if choice is None or self._another.search(text, choice.end()):
            return None
        return choice[1] or choice[2]

    def extract_flexible(self, text: str) -> str | None:
        """Extract the tagged answer, or else the last letter that stands by itself and is no word."""
        tagged = tagged_answer(text)
        if tagged is not None:
            return tagged
        mentions = self._mention.findall(text)
        return mentions[-1] if mentions else None

    def equal(self, answer: str, gold: str) -> bool:
        letter = self.letter(answer)
        return letter is not None and letter == self.letter(gold)
