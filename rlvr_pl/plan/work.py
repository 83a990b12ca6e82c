"""Tokens and floating-point operations of a rollout and its update, over all devices, and the time that they take."""

from __future__ import annotations

from dataclasses import dataclass

from rlvr_pl.plan.settings import PlannedRun

_ATTENTION_BACKWARD = 2.5  # of the forward pass: five products of matrices, for the two of queries, keys and values
_MOVED_BY_ADAMW = 7  # times what learns: read weight, gradient and two moments; write weight and moments


@dataclass(frozen=True)
class Lengths:
    """Mean lengths, in tokens."""

    prompt: int  # P
    completion: int  # T


@dataclass(frozen=True)
class Device:
    """What a device can do, as its user states it."""

    flops: float  # a second, of matrix products, as they are reached
    bandwidth: float  # bytes a second


@dataclass(frozen=True)
class Work:
    """Floating-point operations of one rollout; a multiplication and an addition are two."""

    prefill: float
    decode: float
    old_policy: float
    reference: float
    update: float

    @property
    def total(self) -> float:
        return self.prefill + self.decode + self.old_policy + self.reference + self.update


@dataclass(frozen=True)
class Seconds:
    """Of one rollout and its update."""

    prefill: float
    decode: float
    scoring: float
    update: float
    optimizer: float

    @property
    def total(self) -> float:
        return self.prefill + self.decode + self.scoring + self.update + self.optimizer


def tokens(run: PlannedRun, lengths: Lengths) -> tuple[int, int]:
    """Count the tokens of a rollout: of prompts, each once, and of completions."""
    return run.prompts_per_rollout * lengths.prompt, run.sequences * lengths.completion


def count_work(run: PlannedRun, lengths: Lengths) -> Work:
    """Count the operations of matrix products, which are nearly all.

    Every sequence is taken to learn; those that a rollout leaves out of its update save their part of it.
    """
    prompts, completions = tokens(run, lengths)
    adapted = run.body + run.adapter
    attention = 4 * run.attention_width  # for each pair of a token and one that it looks at
    of_prompts = attention * prompts * lengths.prompt / 2
    of_completions = attention * completions * (lengths.prompt + lengths.completion / 2)

    body = 2 * adapted * (prompts + completions)
    base = 2 * run.body * (prompts + completions)
    head = 2 * run.head * completions
    attended = of_prompts + of_completions
    forward = body + attended + head
    # Of the base's weights, which do not learn beside an adapter, no gradients are computed.
    through = body + base if run.lora is None else 2 * (body - base) + base
    again = body + attended - 2 * run.not_again * (prompts + completions) if run.gradient_checkpointing else 0.0
    head_backward = head * (3 if run.lora is None else 2)  # the logits again, and gradients of input and weights
    backward = through + _ATTENTION_BACKWARD * attended + head_backward + again
    return Work(
        prefill=2 * run.body * prompts + of_prompts + 2 * run.head * run.prompts_per_rollout,
        decode=2 * (run.body + run.head) * completions + of_completions,
        old_policy=forward * (run.minibatches - 1) / run.minibatches if run.rescored else 0.0,
        reference=forward if run.reference else 0.0,
        update=run.epochs * (forward + backward),
    )


def estimate_seconds(run: PlannedRun, lengths: Lengths, device: Device) -> Seconds:
    """Estimate the time of a rollout and its update, if all devices share the work evenly.

    A decode step takes as long as reading the weights and the cache, or as its products, whichever is longer. Rewards,
    evaluations, checkpoints, launching kernels and talking to other devices are not in it.
    """
    work = count_work(run, lengths)
    rate = device.flops * run.devices
    sequences = run.sequences / run.devices
    rows = min(run.rollout_slots, sequences)
    steps = lengths.completion * sequences / rows
    context = lengths.prompt + lengths.completion / 2
    read = (run.body + run.head) * run.engine_bytes + rows * context * run.cached_bytes
    return Seconds(
        prefill=work.prefill / rate,
        decode=max(steps * read / device.bandwidth, work.decode / rate),
        scoring=(work.old_policy + work.reference) / rate,
        update=work.update / rate,
        optimizer=run.minibatches * run.epochs * _MOVED_BY_ADAMW * run.learning / device.bandwidth,
    )
