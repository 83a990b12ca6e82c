"""The learning rate over a run, by shares of its budget."""

from __future__ import annotations

import math

import pytest
import torch

from rlvr_pl.schedule import LRSchedule
from rlvr_pl.types import ConfigError


def rates(schedule: LRSchedule, steps: int, lr: float = 0.5) -> list[float]:
    """What each optimizer step of a run uses."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = schedule.scheduler(optimizer, steps)
    used = []
    for _ in range(steps):
        used.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return used


def test_a_warm_up_and_a_cosine_to_the_end_of_the_budget() -> None:
    half = [(1 + math.cos(math.pi * done / 6)) / 4 for done in range(6)]
    assert rates(LRSchedule(warmup=0.25), 8) == pytest.approx([0.25, 0.5, *half])
    assert rates(LRSchedule(warmup=0.25), 8)[-1] > 0, "the last step learns"


def test_the_other_decays() -> None:
    assert rates(LRSchedule(decay="linear", final=0.2), 4) == pytest.approx([0.5, 0.4, 0.3, 0.2])
    assert rates(LRSchedule(warmup=0.5, decay="constant"), 4) == [0.25, 0.5, 0.5, 0.5]
    assert LRSchedule(final=0.1).factor(9, 4) == pytest.approx(0.1), "a run that goes on past its budget stays there"


@pytest.mark.parametrize(("key", "value"), [("warmup", 1.0), ("warmup", -0.1), ("final", 1.1), ("final", math.nan)])
def test_shares_that_are_none_are_refused(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"^model\.lr_schedule\.{key} is {value}; it is a share of the "):
        LRSchedule(**{key: value}).check()  # type: ignore[arg-type]
