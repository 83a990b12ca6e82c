"""What is printed as it is: names that a user chose and texts that a model wrote are no markup and no control codes."""

from __future__ import annotations

import re

from rich.console import Console

# All control characters but newline and tab, and those that turn the direction of the text around them.
_INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def make_console() -> Console:
    """Make a console for which ``[x]`` and ``:x:`` in a text are that text, and no style and no emoji."""
    return Console(markup=False, emoji=False, highlight=False)


def visible(text: str) -> str:
    r"""Spell out control characters: an escape becomes ``\x1b``, a right-to-left override ``\u202e``."""
    return _INVISIBLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
