"""Texts: the same but for capitals and white space."""

from __future__ import annotations

import unicodedata

from rlvr_pl.verifiers.verifier import Verifier


class Exact(Verifier):
    """Answers are texts, and equal if they are the same once normalised.

    Normalised means: composed as Unicode's NFC has it, in small letters (``casefold``), each run of white space one
    space, none at the ends. Nothing else: "Paris." is not "Paris". A gold answer is a text, of which what follows the
    last ``####`` counts if there is one, or a number.
    """

    def equal(self, answer: str, gold: str) -> bool:
        normal = normalised(answer)
        return bool(normal) and normal == normalised(gold)


def normalised(text: str) -> str:
    """Leave out differences of capitals and white space."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())
