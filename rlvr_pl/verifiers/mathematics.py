"""Mathematics: expressions in LaTeX, compared by math-verify, in a process of its own."""

from __future__ import annotations

import importlib.util
import re
from functools import lru_cache
from typing import Any, ClassVar

from rlvr_pl.types import ConfigError
from rlvr_pl.verifiers.number import last_number
from rlvr_pl.verifiers.tags import tagged_answer, well_tagged
from rlvr_pl.verifiers.verifier import Verifier, gold_text
from rlvr_pl.verifiers.worker import Worker

MAX_LENGTH = 512  # characters of an answer
_REMEMBERED = 2**16  # verdicts: a completion is judged for its reward and for its grade
_TOKEN = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_INTEGER = re.compile(r"[+-]?[0-9]{1,64}")
_DELIMITERS = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"))
_DOLLARS = re.compile(r"(?<!\\)\$+")


class Math(Verifier):
    r"""Answers are expressions, such as ``\frac{1}{2}``, which the library math-verify compares.

    The answer is what stands in the tags, or else in the last ``\boxed{}``. A gold answer is the content of its last
    ``\boxed{}``, what follows its last ``####``, or the whole text, in this order.

    The library works in one process of its own, which a hanging expression ends: it is then not equal.

    Args:
        limit_s: seconds of processor time that one comparison may take. It is no time on a clock, so that a verdict
            does not depend on what else the machine does.
    """

    strict: ClassVar[str] = r"in tags or \boxed{}"
    flexible: ClassVar[str] = "last formula"

    def __init__(self, limit_s: float = 5.0) -> None:
        if limit_s <= 0:
            raise ConfigError(f"data.verifier: limit_s is {limit_s}; it must be above 0")
        if importlib.util.find_spec("math_verify") is None:
            raise ConfigError(
                "data.verifier: math needs the package math-verify: pip install 'math-verify[antlr4_13_2]'"
            )
        self.limit_s = limit_s
        self._prepare()

    def _prepare(self) -> None:
        self._worker = Worker(self.limit_s)
        self._ask = lru_cache(_REMEMBERED)(self._worker.ask)

    def __getstate__(self) -> dict[str, Any]:
        return {"limit_s": self.limit_s}  # a process goes nowhere; the copy starts its own

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._prepare()

    def gold(self, value: object) -> str:
        text = last_boxed(value) if isinstance(value, str) else None
        text = gold_text(value) if text is None else text
        plain = expression(text)
        if plain is None or not (_INTEGER.fullmatch(plain) or self._ask(plain, plain)):
            raise ValueError(f"its answer is no expression that math-verify reads: {text[:80]!r}")
        return text

    def extract(self, text: str) -> str | None:
        tagged = tagged_answer(text)
        return last_boxed(text) if tagged is None else tagged

    def extract_flexible(self, text: str) -> str | None:
        """Extract what :meth:`extract` does, or else the last formula between dollars, or else the last number."""
        answer = self.extract(text)
        if answer is not None:
            return answer
        parts = _DOLLARS.split(text)
        paired = len(parts) > 2 and len(parts) % 2 == 1
        return parts[-2].strip() if paired else last_number(text)

    def example(self, value: object, gold: str) -> str:
        r"""Write a solution with a ``\boxed{}`` as it is, and any other answer in the tags."""
        return value.strip() if isinstance(value, str) and last_boxed(value) else super().example(value, gold)

    def formatted(self, text: str) -> bool:
        r"""Tell whether it is well tagged, or has exactly one ``\boxed{}`` and no tags."""
        return well_tagged(text) or (
            tagged_answer(text) is None and text.count(r"\boxed") == 1 and bool(last_boxed(text))
        )

    def equal(self, answer: str, gold: str) -> bool:
        a, b = expression(answer), expression(gold)
        if a is None or b is None:
            return False
        if _INTEGER.fullmatch(a) and _INTEGER.fullmatch(b):
            return int(a) == int(b)
        return a == b or self._ask(a, b)


def last_boxed(text: str) -> str | None:
    r"""Extract the stripped content of the last whole ``\boxed{…}``, or None where there is none; in linear time."""
    found: str | None = None
    open_braces: list[int] = []  # for each where its content begins, or 0 if it is of no box
    for token in _TOKEN.finditer(text):
        if token[0] == "}":
            start = open_braces.pop() if open_braces else 0
            if start:
                found = text[start : token.start()].strip()
        elif token[0] == "{":
            open_braces.append(0)
        elif token[0].endswith("{") and len(token[0]) > 2:
            open_braces.append(token.end())
    return found


def expression(answer: str) -> str | None:
    """Take an answer out of what stands around it; None where it is too long, empty, or several formulas."""
    text = answer.strip()
    if len(text) > MAX_LENGTH:
        return None
    boxed = last_boxed(text)
    text = text if boxed is None else boxed
    for left, right in _DELIMITERS:
        if text.startswith(left) and text.endswith(right) and len(text) > len(left) + len(right):
            text = text[len(left) : -len(right)].strip()
            break
    text = text.removesuffix(".").strip()
    if _DOLLARS.search(text) or any(mark in text for mark in ("\\(", "\\[", "\\boxed")):
        return None
    return text or None
