"""A resumed optimizer has the checkpoint's moments and the configuration's settings."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, OneCycleLR

from rlvr_pl.run.optimizer import OptimizerSettings, check_optimizer, check_step
from rlvr_pl.types import ConfigError


def make(schedule: Any = None, **settings: Any) -> tuple[Optimizer, LRScheduler | None, OptimizerSettings]:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = AdamW([weight], **{"lr": 1e-3, **settings})
    scheduler = None if schedule is None else schedule(optimizer)
    return optimizer, scheduler, OptimizerSettings.of(optimizer, scheduler)


def train(optimizer: Optimizer, scheduler: LRScheduler | None, steps: int) -> list[float]:
    """Take steps on fixed gradients; the learning rate of each."""
    rates = []
    for step in range(steps):
        optimizer.param_groups[0]["params"][0].grad = torch.tensor([1.0, -2.0, 0.5]) * (step + 1)
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    return rates


def saved(run: tuple[Optimizer, LRScheduler | None, OptimizerSettings]) -> dict[str, Any]:
    """What a checkpoint holds, through a file as torch reads it safely."""
    optimizer, scheduler, settings = run
    file = io.BytesIO()
    state = {"optimizer": optimizer.state_dict(), "scheduler": scheduler and scheduler.state_dict()}
    torch.save({**state, "settings": settings.as_written()}, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def resume(
    run: tuple[Optimizer, LRScheduler | None, OptimizerSettings], checkpoint: dict[str, Any], steps: int
) -> Optimizer:
    """As Lightning restores it, then as the module does."""
    optimizer, scheduler, settings = run
    optimizer.load_state_dict(checkpoint["optimizer"])
    if scheduler is not None and checkpoint["scheduler"] is not None:
        scheduler.load_state_dict(checkpoint["scheduler"])
    settings.act_on(optimizer, scheduler, OptimizerSettings.read(checkpoint["settings"]), steps)
    return optimizer


SCHEDULES = {
    "none": None,
    "linear": lambda optimizer: LinearLR(optimizer, start_factor=0.1, total_iters=9),
    "cosine": lambda optimizer: CosineAnnealingLR(optimizer, T_max=9),
    "one cycle": lambda optimizer: OneCycleLR(optimizer, max_lr=1e-2, total_steps=12),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_unchanged_settings_leave_everything_as_it_was(name: str) -> None:
    whole, first = make(SCHEDULES[name]), make(SCHEDULES[name])
    rates = train(*whole[:2], 8)
    train(*first[:2], 5)
    second = make(SCHEDULES[name])
    optimizer = resume(second, saved(first), 5)
    for a, b in zip(optimizer.state_dict()["param_groups"], first[0].state_dict()["param_groups"], strict=True):
        assert a == b
    assert train(optimizer, second[1], 3) == rates[5:]


def test_a_stated_setting_acts_and_the_moments_stay() -> None:
    first = make()
    train(*first[:2], 5)
    optimizer = resume(make(lr=1e-4, weight_decay=0.3, betas=(0.8, 0.9)), saved(first), 5)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"], group["betas"]) == (1e-4, 0.3, (0.8, 0.9))
    before, after = (o.state[o.param_groups[0]["params"][0]] for o in (first[0], optimizer))
    assert after["step"] == before["step"] == 5
    torch.testing.assert_close(after["exp_avg_sq"], before["exp_avg_sq"], rtol=0, atol=0)


def test_what_something_else_has_changed_since_stays() -> None:
    """A callback that lowers the weight decay, say, and a flag for the learning rate alone."""
    first = make()
    first[0].param_groups[0]["weight_decay"] = 0.007
    group = resume(make(lr=1e-4), saved(first), 5).param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (1e-4, 0.007)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_another_rate_takes_its_place_in_the_schedule(name: str) -> None:
    lower = make(SCHEDULES[name], lr=1e-4)
    rates = train(*lower[:2], 8)
    first = make(SCHEDULES[name])
    train(*first[:2], 5)
    second = make(SCHEDULES[name], lr=1e-4)
    optimizer = resume(second, saved(first), 5)
    assert train(optimizer, second[1], 3) == rates[5:]
    third = make(SCHEDULES[name], lr=1e-4)  # and once more resumed, without a change
    assert train(resume(third, saved(second), 8), third[1], 1) == train(*lower[:2], 1)


def test_another_schedule_stands_where_it_would_have_come_to() -> None:
    first = make(SCHEDULES["linear"])
    train(*first[:2], 5)
    checkpoint = saved(first)
    second = make(SCHEDULES["cosine"])
    rates = train(*make(SCHEDULES["cosine"])[:2], 8)
    assert train(resume(second, checkpoint, 5), second[1], 3) == rates[5:]
    third = make()  # none any more
    assert train(resume(third, checkpoint, 5), third[1], 2) == [1e-3, 1e-3]
    late = make(SCHEDULES["cosine"])  # where there was none
    plain = make()
    train(*plain[:2], 5)
    assert train(resume(late, saved(plain), 5), late[1], 3) == rates[5:]


def test_a_schedule_that_is_over_is_refused() -> None:
    first = make()
    train(*first[:2], 20)
    with pytest.raises(ConfigError, match=r"model\.lr_scheduler: after 20 optimizer steps, Tried to step"):
        resume(make(SCHEDULES["one cycle"]), saved(first), 20)


def test_a_checkpoint_that_does_not_say_gives_way_to_the_configuration() -> None:
    first = make(lr=1e-2)
    checkpoint = saved(first) | {"settings": None}
    assert resume(make(lr=1e-4), copy.deepcopy(checkpoint), 5).param_groups[0]["lr"] == 1e-4


@pytest.mark.parametrize("settings", [{"lr": 1e38}, {"lr": float("inf")}, {"lr": 1.0, "weight_decay": float("inf")}])
def test_a_step_that_leaves_nothing_is_refused(settings: dict[str, float]) -> None:
    weight = torch.nn.Parameter(torch.ones(2, 2))
    with pytest.raises(ConfigError, match=rf"with lr {settings['lr']:g}".replace("+", r"\+")):
        check_step(AdamW([weight], **settings), weight)


def test_a_step_that_cannot_be_tried_here_is_not_refused() -> None:
    """It may need a GPU, or a closure."""
    for make in (lambda w: AdamW([w], lr=1e-3, capturable=True), lambda w: torch.optim.LBFGS([w])):
        weight = torch.nn.Parameter(torch.ones(2, 2))
        check_step(make(weight), weight)


def as_lightning_has_it(run: tuple[Optimizer, LRScheduler | None, OptimizerSettings]) -> dict[str, Any]:
    return {"optimizer_settings": run[2].as_written(), "optimizer_states": [run[0].state_dict()]}


def test_an_optimizer_that_cannot_go_on_is_refused() -> None:
    first = make()
    train(*first[:2], 1)
    checkpoint, path = as_lightning_has_it(first), Path("last.ckpt")
    check_optimizer(checkpoint, lambda parameters: AdamW(parameters, lr=1.0), path)
    with pytest.raises(ConfigError, match=r"moments of torch\.optim\.adamw\.AdamW, and model\.optimizer is .*SGD"):
        check_optimizer(checkpoint, lambda parameters: SGD(parameters, lr=1.0), path)
    with pytest.raises(ConfigError, match=r"has no max_exp_avg_sq, which model\.optimizer keeps"):
        check_optimizer(checkpoint, lambda parameters: AdamW(parameters, amsgrad=True), path)
