"""Numbers: find one in a text and compare it with the gold answer, exactly.

The texts are a model's output, so nothing about them is trusted: no function here raises on any string (except
``gold_answer``, which reads the data set), and each takes linear time. Values are fractions, never floats: 0.1 + 0.2
is 0.3, and no rounding makes two answers equal.

Where it is in doubt which number a text means, ``parse_number`` refuses. A wrong refusal costs one reward; a wrong
acceptance is a reward that the policy learns to collect.
"""

from __future__ import annotations

import re
from fractions import Fraction

from rlvr_pl.verifiers.verifier import GOLD_MARK, Verifier, gold_text

MAX_LENGTH = 128  # characters of an answer, and of a number
MAX_DIGITS = 64  # digits of a numerator or a denominator, without its exponent
MAX_EXPONENT = 64  # magnitude of a power of ten

# Grouped by thousands (1,234), plain (1234) or bare (.5), with an optional exponent. A malformed group is no group:
# "1,23" and "0,123" are each two numbers.
_DECIMAL = r"(?:(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|(?<![\w.])\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
# A sign touches its number, but for a currency sign between them, and follows nothing that it could subtract from.
_SIGN = r"(?<![\w)\]}+−–-])[+−–-](?=\\?[$€£¥]?[.0-9])"
_NUMBER = re.compile(rf"(?:(?P<sign>{_SIGN})\\?[$€£¥]?)?(?P<magnitude>{_DECIMAL}(?:/{_DECIMAL})?)")
_DIGIT = re.compile(r"[0-9]")
_LEAD = 4  # most characters of a number before its first digit: -\$.5
_STRAY_DASH = re.compile(r"[-−–—](?:(?<!\w.)|(?!\w))")  # any but a hyphen inside a word
_LETTERS = re.compile(r"[^\W\d_]+")
# Words that change the value of the number beside them.
_SCALES = ("dozen", "hundred", "thousand", "million", "billion", "trillion")
_VALUE_WORDS = frozenset(["minus", "negative", "half", "k", *_SCALES, *(f"{scale}s" for scale in _SCALES)])


def last_number(text: str) -> str | None:
    """Extract the last number written in the text, as text, or None where there is none.

    The number keeps its grouping, its exponent and its denominator, so that ``parse_number`` reads it; a currency sign
    and a plus are left out, and every minus is written ``-``. Of a malformed group the last piece counts: "1,23" ends
    in "23". A number longer than ``MAX_LENGTH`` characters is none, since a piece of it would be another number.
    """
    end = 1 + max(text.rfind(digit) for digit in "0123456789")
    # A number holds no space. One that the window cuts, be it just after a comma, exceeds MAX_LENGTH in the window too.
    word = text[max(end - MAX_LENGTH - 2, 0) : end].rsplit(None, 1)[-1:]
    numbers = list(_NUMBER.finditer("".join(word)))
    if not numbers or len(numbers[-1][0]) > MAX_LENGTH:
        return None
    return _without_currency(numbers[-1])


def parse_number(text: str) -> Fraction | None:
    """Read the exact value of the one number in a short text, or None where there is no such number or doubt about it.

    Words, units, currency signs and markup around the number are ignored: "$18", "18.", "**18**", "\\boxed{18}",
    "18 apples." and "The answer is 18" are all 18. So is a percent sign, which is a unit here: "50%" is 50, since
    GSM8K's gold answers leave it out. "1,234.50", ".5", "3e2", "1/2" and "−3" (U+2212) mean what they say.

    Refused:
        - no number: "", "NaN", "inf", "eighteen";
        - more than one, even of equal value, since "9+9" is not 9: "3 or 4", "1 1/2", "3/4/2024", "2^5";
        - malformed grouping: "1,23", "1234,567", "0,123", "1.234,56", ",234";
        - a minus apart from the number ("- 3", "-**3**"), which may be a sign, a bullet or a range, and "x/2", "x^2";
        - a word that changes the value: "minus 3", "5 thousand", "5k", "18 and a half";
        - digits and numerals other than ASCII's, be they other scripts', fractions or powers: "١٨", "½", "5²", "18 万";
        - a zero denominator, more than ``MAX_DIGITS`` digits, an exponent beyond ±``MAX_EXPONENT``;
        - more than ``MAX_LENGTH`` characters: an answer is short.
    """
    text = text.strip()
    if len(text) > MAX_LENGTH or not (digit := _DIGIT.search(text)):
        return None
    number = _NUMBER.search(text, max(digit.start() - _LEAD, 0))
    if number is None:
        return None
    before, after = text[: number.start()], text[number.end() :]
    if any(map(str.isnumeric, before + after)):
        return None
    if before.endswith((",", "/", "^")) or _STRAY_DASH.search(before):
        return None
    if not _VALUE_WORDS.isdisjoint(_LETTERS.findall(text.lower())):
        return None
    numerator, slash, denominator = _without_currency(number).replace(",", "").partition("/")
    over = _decimal_value(numerator)
    if not slash:
        return over
    under = _decimal_value(denominator)
    return over / under if over is not None and under else None


def same_number(a: str | None, b: str | None) -> bool:
    """Tell whether both texts hold a number and the two are exactly equal."""
    if a is None or b is None:
        return False
    value = parse_number(a)
    return value is not None and value == parse_number(b)


def gold_answer(answer: str) -> str:
    """Extract the gold number, as text, of a GSM8K ``answer`` field: what follows its last ``####``.

    Raises:
        ValueError: the field has no ``####``, or what follows it is not a number.
    """
    _, mark, gold = answer.rpartition(GOLD_MARK)
    gold = gold.strip()
    if not mark:
        raise ValueError(f"The answer has no {GOLD_MARK!r} before its number; it ends in {answer[-80:]!r}.")
    if parse_number(gold) is None:
        raise ValueError(f"The text after {GOLD_MARK!r} is not a number: {gold[:80]!r}.")
    return gold


def _without_currency(number: re.Match[str]) -> str:
    return ("" if number["sign"] in (None, "+") else "-") + number["magnitude"]


def _decimal_value(text: str) -> Fraction | None:
    """The value of an ungrouped decimal; its bounds are checked first, so that no huge integer is ever built."""
    mantissa, _, exponent = text.lower().partition("e")
    if sum(map(str.isdigit, mantissa)) > MAX_DIGITS or abs(int(exponent or "0")) > MAX_EXPONENT:
        return None
    return Fraction(text)


class Number(Verifier):
    """Answers are numbers, compared exactly: "1,234.0" is 1234, and "3 or 4" is none.

    A gold answer is a number, or a text that is one or that has one after its last ``####``, as GSM8K's.
    """

    flexible = "last number"

    def gold(self, value: object) -> str:
        if isinstance(value, str) and GOLD_MARK in value:
            return gold_answer(value)
        text = gold_text(value)
        if parse_number(text) is None:
            raise ValueError(f"its answer is no number, and has none after a {GOLD_MARK!r}; it ends in {text[-80:]!r}")
        return text

    def extract_flexible(self, text: str) -> str | None:
        return last_number(text)

    def equal(self, answer: str, gold: str) -> bool:
        return same_number(answer, gold)
