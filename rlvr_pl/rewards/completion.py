"""What a reward function sees of one completion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rlvr_pl.verifiers import Number, Verifier
from rlvr_pl.verifiers.verifier import extracted, is_right


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled completion and the problem that it answers.

    Attributes:
        text: the decoded completion, special tokens left out.
        question: the problem's question, without the prompt's template.
        gold: the gold answer as text, such as ``"1,234"``; where several are accepted, the first.
        tokens: the completion's length in tokens, the stop token included.
        truncated: whether the token budget ended the completion, rather than a stop token.
        alternatives: other answers that are accepted.
        verifier: which says where an answer stands and when it is right: ``data.verifier``.
        columns: of the problem's row, those that a reward function asks for.
    """

    text: str
    question: str
    gold: str
    tokens: int
    truncated: bool
    alternatives: tuple[str, ...] = ()
    verifier: Verifier = field(default_factory=Number, compare=False)
    columns: Mapping[str, object] = field(default_factory=dict, hash=False)

    @property
    def golds(self) -> tuple[str, ...]:
        """All answers that are accepted."""
        return (self.gold, *self.alternatives)

    @property
    def answer(self) -> str | None:
        """The answer as it was asked for, such as what stands in the tags; None where there is none."""
        return extracted(self.verifier, self.text)

    @property
    def answer_flexible(self) -> str | None:
        """The answer however it is given, such as the last number; None where there is none."""
        return extracted(self.verifier, self.text, flexible=True)

    def is_right(self, answer: str | None) -> bool:
        """Tell whether an extracted answer is an accepted one, by the verifier."""
        return is_right(self.verifier, answer, self.golds)
