"""A verifier says what a gold answer means, where an answer stands in a completion, and when it is right."""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from typing import Any, ClassVar

from rlvr_pl.types import RunError
from rlvr_pl.verifiers.tags import last_line, tagged, tagged_answer, well_tagged

GOLD_MARK = "####"
_PLAIN = (str, int, float, bool, type(None))


class VerifierError(RunError):
    """A verifier of the user's own failed."""


class Verifier:
    """Tells right answers from others, for rewards, metrics and records alike.

    One of your own overrides :meth:`equal`, and whatever else differs from what stands here. The texts that it is
    given are a model's output and may be anything; an exception ends the run, by the verifier's name.

    Attributes:
        strict, flexible: where the two ways of extraction look, for tables.
    """

    strict: ClassVar[str] = "in the tags"
    flexible: ClassVar[str] = "last line"

    def gold(self, value: object) -> str:
        """Read a gold answer as the data has it.

        Args:
            value: of the answer's column: any type, never None nor blank.

        Raises:
            ValueError: if it is none that this verifier can compare with; the row is then a bad row.
        """
        return gold_text(value)

    def extract(self, text: str) -> str | None:
        """Extract the answer that a completion gives as it was asked to; None where it gives none."""
        return tagged_answer(text)

    def extract_flexible(self, text: str) -> str | None:
        """Extract the answer of a completion however it gives it; None where it gives none."""
        tagged = tagged_answer(text)
        return last_line(text) if tagged is None else tagged

    def formatted(self, text: str) -> bool:
        """Tell whether a completion has the form that it was asked for, and nothing else."""
        return well_tagged(text)

    def example(self, value: object, gold: str) -> str:
        """Write a row's answer as a completion should give it, for an example in the prompt.

        Args:
            value: of the answer's column; where it is a text, what stands before its last ``####`` is the reasoning.
            gold: what :meth:`gold` has made of it.
        """
        return tagged(str(value).rpartition(GOLD_MARK)[0], gold)

    def equal(self, answer: str, gold: str) -> bool:
        """Tell whether an extracted answer is the gold answer.

        Two answers that are equal are one vote for maj@n; one that does not equal itself has no vote.
        """
        raise NotImplementedError

    @property
    def name(self) -> str:
        """Where the verifier is from, with its settings: what a run is told apart by."""
        settings = {key: value for key, value in vars(self).items() if not key.startswith("_")}
        plain = ", ".join(f"{key}={value!r}" for key, value in sorted(settings.items()) if isinstance(value, _PLAIN))
        return f"{type(self).__module__}.{type(self).__qualname__}({plain})"


def gold_text(value: object) -> str:
    """Write a gold answer as text: a number as people write it, and of a text what follows its last ``####``, if any.

    Raises:
        ValueError: if it is neither text nor a number.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"its answer is {type(value).__name__}, neither text nor a number")
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    text = str(value).rpartition(GOLD_MARK)[2].strip()
    if not text:
        raise ValueError(f"its answer has nothing after {GOLD_MARK!r}")
    return text


def is_right(verifier: Verifier, answer: str | None, golds: Iterable[str]) -> bool:
    """Tell whether an extracted answer is one of the accepted ones.

    Raises:
        VerifierError: if the verifier raises.
    """
    return answer is not None and any(agree(verifier, answer, gold) for gold in golds)


def agree(verifier: Verifier, answer: str, gold: str) -> bool:
    """Ask a verifier whether two answers are equal.

    Raises:
        VerifierError: naming it and the line of its file, if it raises.
    """
    try:
        return bool(verifier.equal(answer, gold))
    except Exception as error:  # any code may lie behind it
        raise failure(verifier, error, answer) from error


def extracted(verifier: Verifier, text: str, flexible: bool = False) -> str | None:
    """Ask a verifier for the answer in a completion.

    Raises:
        VerifierError: if it raises, or returns no text.
    """
    try:
        answer: Any = verifier.extract_flexible(text) if flexible else verifier.extract(text)
        if answer is not None and not isinstance(answer, str):
            raise TypeError(f"it extracted {answer!r}, which is no text")
    except Exception as error:  # any code may lie behind it
        raise failure(verifier, error, text) from error
    return answer


def failure(verifier: Verifier, error: Exception, text: str) -> RunError:
    """Make of what a verifier has raised an error that names it; one that says itself why a run cannot go on stays."""
    if isinstance(error, RunError):
        return error
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    where = f"; see {frames[0].filename}, line {frames[0].lineno}" if frames else ""
    told = " ".join(f"{type(error).__name__}: {error}".split())
    return VerifierError(f"data.verifier: {type(verifier).__name__} raised ({told}) on {text[:60]!r}{where}")
