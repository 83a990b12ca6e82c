"""What is said about an answer where the right one is known."""

from __future__ import annotations

from rlvr_pl.evaluation import grade
from rlvr_pl.rewards import Completion
from rlvr_pl.run.terminal import visible
from rlvr_pl.types import ConfigError
from rlvr_pl.verifiers import Verifier


def read_gold(gold: str, verifier: Verifier) -> str:
    """Read a right answer as the verifier reads those of data.

    Raises:
        ConfigError: if no other could be compared with it.
    """
    try:
        return verifier.gold(gold)
    except ValueError as error:
        kind = type(verifier).__name__
        raise ConfigError(f"no answer can be compared with {gold!r} by --verifier {kind.lower()}") from error


def verdict(completion: Completion) -> str:
    """Say in a line whether a completion has the right answer, as evaluations grade it."""
    graded, verifier = grade(completion), completion.verifier
    if graded.correct:
        return f"right: {visible(str(graded.extracted))}"
    said = "no answer" if graded.extracted is None else visible(repr(graded.extracted))
    found = f", and right by its {verifier.flexible}" if graded.correct_flexible else ""
    return f"wrong: {said} {verifier.strict}; it is {completion.gold}{found}"
