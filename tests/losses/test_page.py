"""What the page on objectives says of their constants and identities is what the code has."""

from __future__ import annotations

import inspect
import re

import pytest

from rlvr_pl.losses import GRPO, GSPO, DrGRPO, GSPOToken, LossStrategy, ratio
from tests.helpers.paths import ROOT
from tests.helpers.texts import PAGES

PAGE = PAGES["objectives"]
RATIOS = {"token": {ratio.token}, "sequence": {ratio.sequence_geometric, ratio.sequence_geometric_stopgrad}}


@pytest.mark.parametrize("objective", [GRPO, DrGRPO, GSPO, GSPOToken])
def test_the_table_has_the_pieces_and_constants(objective: type[LossStrategy]) -> None:
    (row,) = re.findall(rf"^\| {objective.__name__} \| (.+) \|$", PAGE, flags=re.MULTILINE)
    kind, scaled, aggregation, *constants = row.split(" | ")
    strategy = objective()  # type: ignore[call-arg]
    assert strategy.log_ratio in RATIOS[kind]
    assert (strategy.advantage.scale is not None) == {"yes": True, "no": False}[scaled]
    assert type(strategy.aggregation).__name__ == aggregation.strip("`")
    parameters = inspect.signature(objective).parameters
    defaults = [
        parameters[key].default for key in ("clip_low", "clip_high", "beta", "advantage_eps") if key in parameters
    ]
    assert [float(constant) for constant in constants if constant != "–"] == defaults


def test_each_identity_is_held_by_a_test() -> None:
    table = PAGE[PAGE.index("| | identity |") :]
    named = {int(number) for number in re.findall(r"^\| (\d+) \|", table, flags=re.MULTILINE)}
    tests = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "tests" / "losses").glob("test_*.py"))
    held = {
        int(n)
        for numbers in re.findall(r"^def test((?:_\d+)+)_", tests, flags=re.MULTILINE)
        for n in numbers[1:].split("_")
    }
    assert named == held
