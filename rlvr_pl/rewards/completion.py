"""What a reward function sees of one completion."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled completion and the problem that it answers.

    Attributes:
        text: the decoded completion, special tokens left out.
        question: the problem's question, without the prompt's template.
        gold: the gold answer's number as text, such as ``"1,234"``.
        tokens: the completion's length in tokens, the stop token included.
        truncated: whether the token budget ended the completion, rather than a stop token.
    """

    text: str
    question: str
    gold: str
    tokens: int
    truncated: bool
