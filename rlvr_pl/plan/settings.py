"""What a plan has to know of a run: settings of ``fit``, and the shape of its policy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from rlvr_pl.lora import LoRA, add_adapter, is_adapted, is_of_adapter
from rlvr_pl.memory import ENGINE, STANDING, MemoryEstimate, estimate_memory
from rlvr_pl.pretrained import load_config
from rlvr_pl.rollout import why_not_covered
from rlvr_pl.run.configuration import Flat
from rlvr_pl.sharding.strategy import SHARDED, ShardedStrategy
from rlvr_pl.types import ConfigError

_PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed"}  # as Lightning abbreviates them


@dataclass(frozen=True)
class PlannedRun:
    """A run as ``fit`` would make it; lengths are those of the longest sequences."""

    config: PretrainedConfig
    precision: str
    devices: int
    sharded: bool
    prompts_per_rollout: int  # B, over all devices
    group_size: int  # G
    prompt_tokens: int  # P
    completion_tokens: int  # T
    max_rollouts: int
    minibatches: int
    epochs: int
    rescored: bool
    reference: bool
    rollout_slots: int
    micro_batch_tokens: int
    gradient_checkpointing: bool
    release_rollout_memory: bool
    lora: LoRA | None
    on_cpu: bool = False

    @classmethod
    def read(cls, settings: Flat) -> PlannedRun:
        """Read a whole flat configuration; of the policy only config.json is loaded.

        Raises:
            ConfigError: if the policy, its adapter or the precision is none that can be planned.
        """
        name = settings["model.policy"]
        precision = str(settings["trainer.precision"] or "32")
        run = cls(
            config=load_config(name),
            precision=_PRECISIONS.get(precision, precision),
            devices=_count(settings["trainer.devices"]) * int(settings["trainer.num_nodes"]),
            sharded=_is_sharded(settings),
            prompts_per_rollout=settings["data.prompts_per_rollout"],
            group_size=settings["model.group_size"],
            prompt_tokens=settings["data.max_prompt_tokens"],
            completion_tokens=settings["model.max_completion_tokens"],
            max_rollouts=settings["data.max_rollouts"],
            minibatches=settings["model.minibatches_per_rollout"],
            epochs=settings["model.epochs_per_rollout"],
            rescored=settings["model.old_logprobs"] == "rescored",
            reference=settings.get("model.loss.init_args.beta", 0) > 0,
            rollout_slots=settings["model.rollout_slots"],
            micro_batch_tokens=settings["model.micro_batch_tokens"],
            gradient_checkpointing=settings["model.gradient_checkpointing"],
            release_rollout_memory=settings["model.release_rollout_memory"],
            lora=LoRA.of(settings),
            on_cpu=settings["trainer.accelerator"] == "cpu",
        )
        if run.precision not in ("32-true", "bf16-mixed", "bf16-true"):
            raise ConfigError(f"trainer.precision is {precision}; a plan knows 32-true, bf16-mixed and bf16-true")
        if reason := why_not_covered(run.policy):
            raise ConfigError(f"model.policy: {name!r} cannot be planned: {reason}; Llama, Qwen2 and Qwen3 can")
        return run

    @cached_property
    def policy(self) -> PreTrainedModel:
        """The policy with its adapter, in the dtype of its weights, without any numbers."""
        dtype = torch.bfloat16 if self.precision == "bf16-true" else torch.float32
        with torch.device("meta"):
            policy = AutoModelForCausalLM.from_config(self.config, dtype=dtype)
            if self.lora is not None:
                add_adapter(policy, self.lora, seed=0)
        return policy

    @property
    def engine_bytes(self) -> int:
        """Of one number in the rollout engine's weights and cache."""
        return 4 if self.precision == "32-true" else 2

    @property
    def sequences(self) -> int:
        """N, over all devices."""
        return self.prompts_per_rollout * self.group_size

    @cached_property
    def weights(self) -> int:
        """Bytes of the policy's own weights."""
        return _bytes(p for name, p in self.policy.named_parameters() if not is_of_adapter(name))

    @cached_property
    def learning(self) -> int:
        """Bytes of what learns."""
        return _bytes(p for p in self.policy.parameters() if p.requires_grad)

    @property
    def body(self) -> int:
        """Numbers in the linear layers that every token goes through, without adapters."""
        linears = ((name, m) for name, m in self.policy.named_modules() if isinstance(m, nn.Linear))
        head = self.policy.get_output_embeddings()
        return sum(m.weight.numel() for name, m in linears if m is not head and not is_of_adapter(name))

    @property
    def not_again(self) -> int:
        """Numbers in the layers' last products; without an adapter there, checkpoints do not compute these again."""
        layers = self.policy.model.layers
        return sum(m.weight.numel() for layer in layers for m in [layer.mlp.down_proj] if not is_adapted(m))

    @property
    def adapter(self) -> int:
        """Numbers in the adapters."""
        return sum(p.numel() for name, p in self.policy.named_parameters() if is_of_adapter(name))

    @property
    def head(self) -> int:
        """Numbers in the output embedding."""
        return self.policy.get_output_embeddings().weight.numel()

    @property
    def attention_width(self) -> int:
        """Numbers in the queries of one token, over all layers."""
        config: Any = self.config
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return config.num_hidden_layers * config.num_attention_heads * size

    @property
    def cached_bytes(self) -> int:
        """Bytes of the keys and values of one token."""
        config: Any = self.config
        return 2 * self.attention_width // config.num_attention_heads * config.num_key_value_heads * self.engine_bytes

    def memory(self) -> MemoryEstimate:
        """Estimate the memory of a device."""
        estimate = estimate_memory(
            self.config,
            precision=self.precision,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            group_size=self.group_size,
            rollout_slots=self.rollout_slots,
            micro_batch_tokens=self.micro_batch_tokens,
            gradient_checkpointing=self.gradient_checkpointing,
            reference=self.reference,
            release_rollout_memory=self.release_rollout_memory,
            lora=self.lora,
            on_cpu=self.on_cpu,
        )
        if self.sharded:
            return self._in_parts(estimate)
        if self.devices == 1:
            return estimate
        buckets = {"gradients on their way to other devices": self.learning}  # DDP makes them once, and keeps them
        return MemoryEstimate(estimate.rollout | buckets, estimate.update | buckets)

    def _in_parts(self, estimate: MemoryEstimate) -> MemoryEstimate:
        """Divide what stands by the devices, and add what is whole: the engine's copy, and in a pass a few layers."""
        embeddings: Any = self.policy.get_input_embeddings()
        parameters = dict(self.policy.named_parameters())  # a tied head is the embeddings
        layers = _bytes(p for name, p in parameters.items() if ".layers." in name)
        outside = _bytes(parameters.values()) - layers
        whole = outside + 2 * layers // self.config.num_hidden_layers  # the layer at work, and the next on its way
        copy = _bytes(parameters.values())
        if self.precision == "bf16-mixed":  # the linear layers, a tied head too, in bfloat16
            copy = self.engine_bytes * (self.body + self.head) + _bytes([embeddings.weight])
        engine = {ENGINE: copy}
        gathered = {"weights and gradients of a pass": 2 * whole}

        def parts(phase: dict[str, int]) -> dict[str, int]:
            return {part: size // self.devices if part in STANDING else size for part, size in phase.items()}

        kept = {} if self.release_rollout_memory else engine
        return MemoryEstimate(parts(estimate.rollout) | engine, parts(estimate.update) | kept | gathered)


def _is_sharded(settings: Flat) -> bool:
    named = settings.get("trainer.strategy") or settings.get("trainer.strategy.class_path")
    return named == SHARDED or str(named).rpartition(".")[2] == ShardedStrategy.__name__


def _count(devices: Any) -> int:
    """Read ``trainer.devices``; where it leaves the number open, one."""
    if isinstance(devices, list):
        return len(devices)
    return int(devices) if str(devices).isdigit() else 1


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
