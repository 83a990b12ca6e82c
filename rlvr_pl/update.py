"""The plan of an update and its diagnostics: a rollout cut into minibatches, and those into micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlvr_pl.losses import LossStrategy
from rlvr_pl.losses.kl import k3
from rlvr_pl.policy import plan_micro_batches
from rlvr_pl.types import LossInputs, LossOutput, Rollout, masked


@dataclass
class MicroBatch:
    """n sequences that go through the policy together; T is their longest completion."""

    prompt_ids: Sequence[Sequence[int]]
    completion_ids: Tensor  # (n, T)
    mask: Tensor  # (n, T)
    advantages: Tensor  # (n,)
    sampling_logprobs: Tensor  # (n, T)
    old_logprobs: Tensor | None = None  # (n, T); None until scored
    ref_logprobs: Tensor | None = None  # (n, T)


@dataclass
class Minibatch:
    """What one optimizer step learns from."""

    micro_batches: list[MicroBatch]
    denominator: Tensor  # of the loss, scalar: this rank's share when planned, all ranks' when used


def plan_update(
    rollout: Rollout,
    advantages: Tensor,
    loss: LossStrategy,
    minibatches: int,
    token_budget: int,
    max_completion_tokens: int,
) -> list[Minibatch]:
    """Cut a rollout into minibatches of neighbouring groups, and each into micro-batches by tokens.

    Sequences whose advantage is 0 are left out where that is exact; their tokens stay in the denominator.

    Args:
        rollout: N sequences.
        advantages: (N,).
        loss: tells the denominator, and whether a zero advantage is inert.
        minibatches: how many; N divides by it.
        token_budget: tokens of a micro-batch at most, pads included.
        max_completion_tokens: the generation budget.
    """
    lengths = rollout.lengths.tolist()
    learns = (advantages != 0).tolist() if loss.zero_advantage_is_inert else [True] * len(lengths)
    plan = []
    for rows in torch.arange(len(lengths)).chunk(minibatches):
        active = [i for i in rows.tolist() if learns[i]]
        totals = [len(rollout.prompt_ids[i]) + lengths[i] for i in active]
        plan.append(
            Minibatch(
                micro_batches=[
                    _select(rollout, advantages, [active[i] for i in chosen])
                    for chosen in plan_micro_batches(totals, token_budget)
                ],
                denominator=loss.denominator(rollout.mask[rows], max_completion_tokens),
            )
        )
    return plan


def _select(rollout: Rollout, advantages: Tensor, rows: list[int]) -> MicroBatch:
    longest = int(rollout.lengths[rows].max())
    return MicroBatch(
        prompt_ids=[rollout.prompt_ids[i] for i in rows],
        completion_ids=rollout.completion_ids[rows, :longest],
        mask=rollout.mask[rows, :longest],
        advantages=advantages[rows],
        sampling_logprobs=rollout.sampling_logprobs[rows, :longest],
    )


def empty_micro_batch(rollout: Rollout) -> MicroBatch:
    """A micro-batch without a single completion token: its gradient is 0, and it takes part in collectives."""
    device = rollout.mask.device
    return MicroBatch(
        prompt_ids=[rollout.prompt_ids[0][:1]],
        completion_ids=torch.zeros(1, 1, dtype=torch.long, device=device),
        mask=torch.zeros(1, 1, dtype=torch.bool, device=device),
        advantages=torch.zeros(1, dtype=torch.float32, device=device),
        sampling_logprobs=torch.zeros(1, 1, dtype=torch.float32, device=device),
    )


class UpdateStats:
    """Diagnostics of an update, summed over its micro-batches: means over what was summed, never means of means."""

    _SUMS = ("ratio", "clipped_low", "clipped_high", "elements", "kl", "kl_ref", "entropy", "tokens")
    _MISMATCH_SUMS = ("mismatch", "rescored")

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(len(self._SUMS + self._MISMATCH_SUMS), dtype=torch.float64, device=device)
        self.maxima = torch.zeros(2, dtype=torch.float64, device=device)  # ratio, mismatch
        self.grad_norms: list[float] = []

    @torch.no_grad()
    def add(self, inputs: LossInputs, output: LossOutput, entropy: Tensor) -> None:
        """Count one micro-batch; ``entropy`` is (n, T)."""
        if not inputs.mask.any():
            return
        per_token = output.ratio.shape == inputs.mask.shape
        elements = inputs.mask if per_token else inputs.mask.any(dim=1, keepdim=True)
        kl = k3(masked(inputs.old_logprobs - inputs.logprobs, inputs.mask))
        kl_ref = torch.zeros(()) if output.kl_ref is None else masked(output.kl_ref, inputs.mask)
        values = (
            masked(output.ratio, elements),
            output.clipped_low & elements,
            output.clipped_high & elements,
            elements,
            masked(kl, inputs.mask),
            kl_ref,
            masked(entropy, inputs.mask),
            inputs.mask,
        )
        self.sums[: len(values)] += torch.stack([v.sum(dtype=torch.float64).to(self.sums.device) for v in values])
        self.maxima[0] = torch.maximum(self.maxima[0], output.ratio[elements].max())

    @torch.no_grad()
    def add_mismatch(self, micro_batch: MicroBatch) -> None:
        """Count how far the log-probabilities of a scored micro-batch are from those that the engine sampled with."""
        assert micro_batch.old_logprobs is not None
        difference = masked((micro_batch.old_logprobs - micro_batch.sampling_logprobs).abs(), micro_batch.mask)
        self.sums[-2] += difference.sum(dtype=torch.float64)
        self.sums[-1] += micro_batch.mask.sum()
        self.maxima[1] = torch.maximum(self.maxima[1], difference.max())

    def means(self) -> dict[str, float]:
        """The logged values. A ratio counts once per token or once per sequence, as the objective has it."""
        sums = self._named_sums()
        elements, tokens = max(sums["elements"], 1), max(sums["tokens"], 1)
        return {
            "ratio_mean": sums["ratio"] / elements,
            "ratio_max": float(self.maxima[0]),
            "clip_fraction_low": sums["clipped_low"] / elements,
            "clip_fraction_high": sums["clipped_high"] / elements,
            "kl": sums["kl"] / tokens,
            "kl_ref": sums["kl_ref"] / tokens,
            "entropy": sums["entropy"] / tokens,
            "grad_norm": sum(self.grad_norms) / len(self.grad_norms),
        }

    def logprob_mismatch(self) -> tuple[float, float]:
        """|log π_old − log π_sampled| of the tokens that learn, mean and maximum: rounding, where all is well."""
        sums = self._named_sums()
        return sums["mismatch"] / max(sums["rescored"], 1), float(self.maxima[1])

    def _named_sums(self) -> dict[str, float]:
        return dict(zip(self._SUMS + self._MISMATCH_SUMS, self.sums.tolist(), strict=True))
