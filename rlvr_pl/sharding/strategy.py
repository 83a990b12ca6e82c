"""The strategy of sharded runs, and the strategies that cannot work."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.collectives.torch_collective import default_pg_timeout
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import (
    DDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    Strategy,
    StrategyRegistry,
)
from torch.optim import Optimizer

from rlvr_pl.sharding.weights import cut_like, gather
from rlvr_pl.types import ConfigError

SHARDED = "sharded"


class ShardedStrategy(ModelParallelStrategy):
    """Every rank holds its part of each weight, gradient and moment, and generates and learns from its own prompts.

    It is Lightning's ModelParallelStrategy with all ranks in one data-parallel group, for a module that cuts its
    weights in ``configure_model``. A checkpoint is one file, gathered tensor by tensor on the host of rank 0, and of
    the form that one device writes: a run goes on with any number of ranks, sharded or not.

    Args:
        process_group_backend: as torch names it; null takes the one that suits the device.
        timeout: of a collective.
    """

    def __init__(
        self, process_group_backend: str | None = None, timeout: timedelta | None = default_pg_timeout
    ) -> None:
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            process_group_backend=process_group_backend,
            timeout=timeout,
        )

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Gather what a checkpoint holds of the module; only rank 0 gets its tensors."""
        assert self.lightning_module is not None
        return gather(dict(self.lightning_module.state_dict(keep_vars=True)), keep=self.is_global_zero)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Gather an optimizer's state; only rank 0 gets its tensors."""
        plain = optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        return gather(plain.state_dict(), keep=self.is_global_zero)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint: every rank opens the file, and reads of it what it looks at."""
        path = self.broadcast(checkpoint_path)
        return torch.load(path, map_location="cpu", mmap=True, weights_only=weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Have the module take its weights from a checkpoint."""
        assert self.lightning_module is not None
        self.lightning_module.load_state_dict(checkpoint["state_dict"], strict=strict)

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Have the optimizers take this rank's parts of their states."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            parts = {
                i: {
                    name: cut_like(value, parameters[i]) if isinstance(value, torch.Tensor) else value
                    for name, value in values.items()
                }
                for i, values in state["state"].items()
            }
            optimizer.load_state_dict(state | {"state": parts})


StrategyRegistry.register(SHARDED, ShardedStrategy, description="rlvr_pl: every rank holds a part of the policy")


def check_strategy(strategy: Strategy) -> None:
    """Refuse a strategy that cannot work with a module which runs several backward passes in a training step.

    Raises:
        ConfigError: naming what works.
    """
    if not isinstance(strategy, SingleDeviceStrategy | DDPStrategy | ShardedStrategy):
        raise ConfigError(why_not(type(strategy).__name__))


def why_not(name: str) -> str:
    """Say that a strategy cannot work here, and what does in its place."""
    plain = name.replace("_", "").lower()
    if plain.startswith("fsdp"):
        reason = "FSDP does not work with manual optimization (Lightning issue 19685)"
    elif plain.startswith("modelparallel"):
        reason = "checkpoints would be folders, one of a kind for each number of devices"
    else:
        reason = "it is not supported"
    return (
        f"trainer.strategy is {name}; {reason}. To cut the policy into parts, one a device, add --config sharded "
        "(trainer.strategy: sharded); ddp has all of it on each"
    )
