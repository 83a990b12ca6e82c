"""Settings of Lightning's are refused where something else does it here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, SingleDeviceStrategy

from rlvr_pl.lightning_settings import check_settings, check_writable, explain
from rlvr_pl.sharding.strategy import ShardedStrategy, check_strategy
from rlvr_pl.types import ConfigError

OWN = {"max_epochs": 1, "check_val_every_n_epoch": None, "num_sanity_val_steps": 0}
FINE: dict[str, Any] = {
    **OWN,
    **dict.fromkeys(["min_epochs", "min_steps", "max_time", "gradient_clip_val", "gradient_clip_algorithm"]),
    **{f"limit_{split}_batches": None for split in ("train", "val", "test", "predict")},
    "max_steps": -1,
    "overfit_batches": 0.0,
    "fast_dev_run": False,
    "accumulate_grad_batches": 1,
    "precision": "bf16-mixed",
    "strategy": "ddp",
}


def refusal(seed: int = 0, **settings: Any) -> str:
    with pytest.raises(ConfigError) as error:
        check_settings(seed, FINE | settings, OWN)
    return str(error.value)


def test_the_defaults_pass() -> None:
    check_settings(2**32 - 1, FINE, OWN)
    check_settings(0, FINE | {"strategy": {"class_path": "lightning.pytorch.strategies.DDPStrategy"}}, OWN)


@pytest.mark.parametrize("key", ["max_epochs", "min_epochs", "max_steps", "min_steps", "limit_train_batches"])
@pytest.mark.parametrize("value", [2, 100])
def test_the_budget_is_in_rollouts(key: str, value: int) -> None:
    assert refusal(**{key: value}) == (
        f"trainer.{key} is {value}; the budget is counted in rollouts; set data.max_rollouts"
    )


def test_an_epoch_is_not_made_endless() -> None:
    assert refusal(max_epochs=None).startswith("trainer.max_epochs is None; ")


@pytest.mark.parametrize(
    ("settings", "instead"),
    [
        ({"max_time": "00:01:00:00"}, "data.max_rollouts"),
        ({"overfit_batches": 1}, "data.source"),
        ({"fast_dev_run": True}, "data.max_rollouts to 1"),
        ({"limit_val_batches": 0.5}, "data.val_size"),
        ({"limit_test_batches": 1}, "data.source"),
        ({"limit_predict_batches": 1}, "data.source"),
        ({"num_sanity_val_steps": 2}, "leave it out"),
        ({"check_val_every_n_epoch": 1}, "trainer.val_check_interval"),
        ({"accumulate_grad_batches": 2}, "model.micro_batch_tokens"),
        ({"gradient_clip_val": 0.5}, "model.max_grad_norm"),
        ({"gradient_clip_algorithm": "value"}, "model.max_grad_norm"),
        ({"precision": 16}, "bf16-mixed"),
        ({"strategy": "deepspeed_stage_2"}, "add --config sharded"),
        ({"strategy": {"class_path": "lightning.pytorch.strategies.ModelParallelStrategy"}}, "add --config sharded"),
    ],
)
def test_what_does_it_instead_is_named(settings: dict[str, Any], instead: str) -> None:
    ((key, _),) = settings.items()
    message = refusal(**settings)
    assert message.startswith(f"trainer.{key} is ")
    assert instead in message
    assert "\n" not in message


def test_fsdp_points_to_the_overlay() -> None:
    assert refusal(strategy="fsdp_cpu_offload") == (
        "trainer.strategy is fsdp_cpu_offload; FSDP does not work with manual optimization (Lightning issue 19685). "
        "To cut the policy into parts, one a device, add --config sharded (trainer.strategy: sharded); ddp has all of "
        "it on each"
    )
    with pytest.raises(ConfigError, match=r"trainer.strategy is FSDPStrategy; FSDP does not work with manual"):
        check_strategy(FSDPStrategy())
    check_settings(0, FINE | {"strategy": "sharded"}, OWN)
    for strategy in (DDPStrategy(), ShardedStrategy(), SingleDeviceStrategy("cpu")):
        check_strategy(strategy)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_cannot_be(seed: int) -> None:
    assert refusal(seed) == f"seed_everything is {seed}; it must be from 0 to 4,294,967,295"


def test_other_errors_keep_their_words_on_one_line() -> None:
    assert str(explain(ValueError("two\n  lines"), "cpu")) == "trainer: two lines"
    assert str(explain(RuntimeError(), "cpu")) == "trainer: RuntimeError"


def test_a_log_folder_is_tried(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError) as error:
        check_writable(tmp_path / "file" / "logs")
    assert str(error.value) == (
        f"run_dir: nothing can be written to '{tmp_path}/file/logs' (Not a directory: '{tmp_path}/file'); "
        "set it, or the logger's save_dir, to a folder of yours"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_log_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(ConfigError, match="Permission denied"):
        check_writable(tmp_path / "logs")
