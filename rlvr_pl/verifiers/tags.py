"""The tags that a completion is asked to answer in. The texts are a model's output: no function here raises on any."""

from __future__ import annotations

import re

REASONING_OPEN = "<reasoning>"
REASONING_CLOSE = "</reasoning>"
ANSWER_OPEN = "<answer>"
ANSWER_CLOSE = "</answer>"
TAGS = (REASONING_OPEN, REASONING_CLOSE, ANSWER_OPEN, ANSWER_CLOSE)
_CALCULATOR = re.compile(r"<<[^<>\n]*>>")  # GSM8K's notes for a calculator: 48/2=<<48/2=24>>24


def tagged(reasoning: str, answer: str) -> str:
    """Write a completion in the tags, as the default system prompt asks for it; reasoning may be blank."""
    reasoning = _CALCULATOR.sub("", reasoning).strip()
    steps = f"{REASONING_OPEN}\n{reasoning}\n{REASONING_CLOSE}\n" if reasoning else ""
    return f"{steps}{ANSWER_OPEN}\n{answer}\n{ANSWER_CLOSE}"


def tagged_answer(text: str) -> str | None:
    """Extract the stripped content of the last complete ``<answer>…</answer>`` block, or None where there is none.

    A block runs from an opening tag to the first closing tag after it, so the content never holds a tag: an unclosed
    ``<answer>`` after the last block is ignored, and of two nested openings the inner one counts.
    """
    start = text.rfind(ANSWER_OPEN, 0, max(text.rfind(ANSWER_CLOSE), 0))
    if start < 0:
        return None
    start += len(ANSWER_OPEN)
    return text[start : text.find(ANSWER_CLOSE, start)].strip()


def well_tagged(text: str) -> bool:
    """Tell whether a text is ``<reasoning>…</reasoning><answer>…</answer>`` and nothing else.

    Each tag occurs once, in this order; the answer is not blank; only whitespace stands before, between and after.
    """
    text = text.strip()
    if any(text.count(tag) != 1 for tag in TAGS):
        return False
    if not (text.startswith(REASONING_OPEN) and text.endswith(ANSWER_CLOSE)):
        return False
    between, _, answer = text.partition(REASONING_CLOSE)[2].partition(ANSWER_OPEN)
    return not between.strip() and bool(answer.removesuffix(ANSWER_CLOSE).strip())


def last_line(text: str) -> str | None:
    """Extract the last line that is not blank, stripped; None where there is none."""
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else None
