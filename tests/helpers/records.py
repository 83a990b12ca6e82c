"""Evaluation records for the tests, with no more fields than their readers need."""

from __future__ import annotations

from typing import Any


def record(
    question: int, sample: int = 0, strict: bool = False, flexible: bool = False, text: str = ""
) -> dict[str, Any]:
    return {
        "question": question,
        "sample": sample,
        "gold": "18",
        "extracted": None,
        "correct": strict,
        "correct_flexible": flexible,
        "completion": text,
    }
