"""What to change where a device has less memory than a run needs."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rlvr_pl.lora import LoRA
from rlvr_pl.memory import ACTIVATIONS, CACHE, STANDING, MemoryEstimate
from rlvr_pl.plan.settings import PlannedRun

RESERVED = 1_500_000_000  # bytes: the device's context and libraries, about 1 GB, and what an allocator loses
_FEWEST_SLOTS = 16
_LORA = LoRA(r=8, lora_alpha=128)  # configs/lora.yaml


@dataclass(frozen=True)
class Change:
    """A setting to change, on top of those before it, and what the run then needs."""

    setting: str
    memory: MemoryEstimate


def advise(run: PlannedRun, memory: MemoryEstimate, limit: float) -> list[Change]:
    """Find settings, the harmless ones first, until the run fits; where none is left, it may still not.

    Args:
        run: that may need too much.
        memory: what it needs.
        limit: bytes of the device.
    """
    changes: list[Change] = []
    while memory.peak + RESERVED > limit and (found := _next(run, memory, limit)) is not None:
        setting, run = found
        memory = run.memory()
        changes.append(Change(setting, memory))
    return changes


def _next(run: PlannedRun, memory: MemoryEstimate, limit: float) -> tuple[str, PlannedRun] | None:
    def too_much(parts: dict[str, int]) -> bool:
        return sum(parts.values()) + RESERVED > limit

    less = None if run.lora is not None or run.sharded else ("--config configs/lora.yaml", replace(run, lora=_LORA))
    if less is not None and run.devices > 1:
        less = "--config configs/sharded.yaml", replace(run, sharded=True)
    standing = {part: size for part, size in memory.update.items() if part in STANDING}
    if less is not None and too_much(standing):
        return less  # whatever else is saved, these are too much
    if too_much(memory.update):
        if not run.release_rollout_memory:
            return "--model.release_rollout_memory true", replace(run, release_rollout_memory=True)
        if not run.gradient_checkpointing:
            return "--model.gradient_checkpointing true", replace(run, gradient_checkpointing=True)
        excess = sum(memory.update.values()) + RESERVED - limit
        tokens = _halved(run.micro_batch_tokens, memory.update[ACTIVATIONS], excess, _fewest_tokens(run))
        if tokens < run.micro_batch_tokens:
            return f"--model.micro_batch_tokens {tokens}", replace(run, micro_batch_tokens=tokens)
    if too_much(memory.rollout):
        excess = sum(memory.rollout.values()) + RESERVED - limit
        slots = _halved(run.rollout_slots, memory.rollout[CACHE], excess, _FEWEST_SLOTS)
        if slots < run.rollout_slots:
            return f"--model.rollout_slots {slots}", replace(run, rollout_slots=slots)
    return less


def _fewest_tokens(run: PlannedRun) -> int:
    return run.prompt_tokens + run.completion_tokens


def _halved(setting: int, size: int, excess: float, fewest: int) -> int:
    """Halve a setting until so much less is held, if what it takes shrinks with it, and no further than ``fewest``."""
    smaller = setting
    while smaller // 2 >= fewest and size * (1 - smaller / setting) < excess:
        smaller //= 2
    return smaller
