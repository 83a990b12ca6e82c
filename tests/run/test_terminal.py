"""What is printed as it is."""

from __future__ import annotations

import pytest
from rich.table import Table

from rlvr_pl.run.terminal import make_console, visible


def test_control_characters_are_spelled_out_and_nothing_else_is() -> None:
    assert visible("\x1b[31m\x07\x9b\u202e\u2066") == r"\x1b[31m\x07\x9b\u202e\u2066"
    assert visible("a\r\nb") == "a\\r\nb"
    plain = "tabs\tand\nlines, 18 € [/x] 万 👩\u200d🔬 é ١٨"
    assert visible(plain) == plain


def test_names_are_neither_markup_nor_emoji(capsys: pytest.CaptureFixture[str]) -> None:
    name = "x[/y]z [red] :smile:"
    table = Table(title=name)
    table.add_column(name)
    table.add_row(name)
    console = make_console()
    console.print(table)
    console.print(name)
    assert capsys.readouterr().out.count(name) == 4
