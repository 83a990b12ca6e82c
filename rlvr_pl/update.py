"""What an update learns from: a rollout cut into minibatches and micro-batches, scored and turned into losses.

::

    rollout, advantages ──▶ cut_into_minibatches ──▶ Minibatch ──▶ MicroBatch
                                     │
                                     ▼
    Update: scores π_ref, and π_old of all minibatches but the first, before the first optimizer step
      └─ losses(minibatch) ──▶ the numerator of each micro-batch's loss, for the module to run backward on

Nothing here knows of Lightning, runs backward or talks to other ranks: that is the module's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlvr_pl.losses import LossStrategy
from rlvr_pl.losses.kl import k3
from rlvr_pl.scoring import Layout, Scored, Sequences, score
from rlvr_pl.types import LossInputs, LossOutput, Rollout, masked


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """The n sequences that go through the policy together; T is their longest completion."""

    sequences: Sequences  # their prompts and completions
    mask: Tensor  # (n, T)
    advantages: Tensor  # (n,)
    sampling_logprobs: Tensor  # (n, T)


@dataclass(frozen=True)
class Minibatch:
    """What one optimizer step learns from, on this rank."""

    micro_batches: Sequence[MicroBatch]  # of this rank; as many on each, for ranks must run as many backward passes
    denominator: Tensor  # of the loss, over all ranks, scalar


def cut_into_minibatches(
    rollout: Rollout,
    advantages: Tensor,
    loss: LossStrategy,
    layout: Layout,
    minibatches: int,
    token_budget: int,
    max_completion_tokens: int,
    rank: int = 0,
    ranks: int = 1,
) -> list[Minibatch]:
    """Cut a rollout into minibatches of neighbouring groups, and each into micro-batches by tokens.

    Sequences whose advantage is 0 are left out where that is exact; their tokens stay in the denominator.

    Args:
        rollout: N sequences, of all ranks.
        advantages: (N,), on the host.
        loss: tells the denominator, and whether a zero advantage is inert.
        layout: of a micro-batch.
        minibatches: how many; N divides by it.
        token_budget: tokens of a micro-batch at most.
        max_completion_tokens: the generation budget.
        rank: whose micro-batches these are.
        ranks: that share each minibatch.
    """
    lengths, prompts = rollout.lengths.tolist(), rollout.prompt_ids
    on_device = advantages.to(rollout.mask.device)
    learns = (advantages != 0).tolist() if loss.zero_advantage_is_inert else [True] * len(lengths)

    def micro_batch(rows: list[int]) -> MicroBatch:
        if not rows:
            return empty_micro_batch(rollout, layout)
        longest = max(lengths[i] for i in rows)
        chosen = torch.tensor(rows, device=rollout.mask.device)
        owners = [rollout.place(i)[0] for i in rows]
        distinct = sorted(set(owners))
        return MicroBatch(
            sequences=layout.lay_out(
                [prompts[owner] for owner in distinct],
                [distinct.index(owner) for owner in owners],
                rollout.completion_ids[chosen, :longest],
                [lengths[i] for i in rows],
            ),
            mask=rollout.mask[chosen, :longest],
            advantages=on_device[chosen],
            sampling_logprobs=rollout.sampling_logprobs[chosen, :longest],
        )

    cut = []
    size = -(-len(lengths) // minibatches)
    for first in range(0, len(lengths), size):
        active = [i for i in range(first, first + size) if learns[i]]
        batches = layout.cut(
            [len(prompt) for prompt in prompts],
            [rollout.place(i)[0] for i in active],
            [lengths[i] for i in active],
            token_budget,
            ranks,
        )
        cut.append(
            Minibatch(
                micro_batches=[micro_batch([active[i] for i in chosen]) for chosen in batches[rank::ranks]],
                denominator=loss.denominator(rollout.mask[first : first + size], max_completion_tokens),
            )
        )
    return cut


def empty_micro_batch(rollout: Rollout, layout: Layout) -> MicroBatch:
    """Make a micro-batch without a single completion token: its gradient is 0, and it takes part in collectives."""
    device = rollout.mask.device
    return MicroBatch(
        sequences=layout.lay_out(
            [rollout.prompt_ids[0][:1]], [0], torch.zeros(1, 1, dtype=torch.long, device=device), [0]
        ),
        mask=torch.zeros(1, 1, dtype=torch.bool, device=device),
        advantages=torch.zeros(1, dtype=torch.float32, device=device),
        sampling_logprobs=torch.zeros(1, 1, dtype=torch.float32, device=device),
    )


@dataclass(frozen=True)
class OldPolicy:
    """Whose log-probabilities are π_old's, and what is made of the sampler's where they are not.

    The sampler is the same policy, but it rounds otherwise. Its own log-probabilities cost nothing; scoring a rollout
    again makes the ratio of an unchanged policy exactly 1.

    Args:
        sampled: take the sampler's.
        importance_cap: C. Where π_old is scored again, each token's policy loss is weighted by min(π_old / π_sampled,
            C), the truncated importance sampling of Yao et al., "Your Efficient RL Framework Secretly Brings You
            Off-Policy RL Training" (2025). None weighs all alike.
    """

    sampled: bool = False
    importance_cap: float | None = None

    def weights(self, old_logprobs: Tensor, sampling_logprobs: Tensor) -> Tensor | None:
        """Compute the weights of tokens, of the log-probabilities' shape."""
        if self.importance_cap is None:
            return None
        return (old_logprobs - sampling_logprobs).exp().clamp(max=self.importance_cap)


class Update:
    """The losses of a rollout's optimizer steps, and their diagnostics.

    What an objective compares the policy with is scored here, before the first optimizer step: π_ref of every
    minibatch, and π_old, unless the sampler's log-probabilities are taken for it, of all but the first, whose old
    log-probabilities are its own current ones when it is first asked for.

    Args:
        minibatches: of the rollout, in the order in which they are asked for.
        loss: the objective.
        policy: what learns.
        references: the reference policy where the objective needs one, else nothing.
        temperature: of the sampler.
        device: of the diagnostics.
        old_policy: where π_old comes from.
    """

    def __init__(
        self,
        minibatches: Sequence[Minibatch],
        loss: LossStrategy,
        policy: Scored,
        references: Sequence[Scored],
        temperature: float,
        device: torch.device,
        old_policy: OldPolicy = OldPolicy(),  # frozen
    ) -> None:
        self.loss = loss
        self.old_policy = old_policy
        self.policy = policy
        self.temperature = temperature
        self.stats = UpdateStats(device)
        self._old_logprobs: dict[MicroBatch, Tensor] = {}
        self._ref_logprobs: dict[MicroBatch, Tensor] = {}
        with torch.no_grad():
            for step, minibatch in enumerate(minibatches):
                for micro_batch in minibatch.micro_batches:
                    if step > 0 and not old_policy.sampled:
                        self._note_first(micro_batch, self._logprobs(policy, micro_batch))
                    for reference in references:
                        self._ref_logprobs[micro_batch] = self._logprobs(reference, micro_batch)

    def losses(self, minibatch: Minibatch) -> Iterator[Tensor]:
        """Compute the loss of a minibatch, a micro-batch at a time.

        Yields:
            Numerators with gradient, scalar; they add up to the loss times its denominator over all ranks.
        """
        for micro_batch in minibatch.micro_batches:
            scores = score(self.policy, micro_batch.sequences, self.temperature)
            if micro_batch not in self._old_logprobs:
                self._note_first(micro_batch, scores.logprobs)
            old_logprobs = self._old_logprobs[micro_batch]
            inputs = LossInputs(
                scores.logprobs,
                old_logprobs,
                micro_batch.advantages,
                micro_batch.mask,
                self._ref_logprobs.get(micro_batch),
                self.old_policy.weights(old_logprobs, micro_batch.sampling_logprobs),
            )
            output = self.loss(inputs)
            assert scores.entropy is not None
            self.stats.add(inputs, output, scores.entropy)
            yield output.numerator

    def _note_first(self, micro_batch: MicroBatch, logprobs: Tensor) -> None:
        """Note log π_old of a micro-batch, given its log-probabilities, (n, T), when it is first scored."""
        sampled = self.old_policy.sampled
        self._old_logprobs[micro_batch] = micro_batch.sampling_logprobs if sampled else logprobs.detach()
        if not sampled or not self.stats.grad_norms:  # later the policy is another than the sampler's
            self.stats.add_mismatch(micro_batch, logprobs.detach())

    def _logprobs(self, policy: Scored, micro_batch: MicroBatch) -> Tensor:
        """Score a micro-batch under π_old or π_ref: by the code and in the shapes of π_θ, and without its entropy."""
        return score(policy, micro_batch.sequences, self.temperature, with_entropy=False).logprobs


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
        """Count one micro-batch; ``entropy`` is (n, T). Nothing here waits for the device."""
        per_token = output.ratio.shape == inputs.mask.shape
        elements = inputs.mask if per_token else inputs.mask.any(dim=1, keepdim=True)
        kl = k3(masked(inputs.old_logprobs - inputs.logprobs, inputs.mask))
        kl_ref = torch.zeros_like(kl) if output.kl_ref is None else masked(output.kl_ref, inputs.mask)
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
        # A ratio is never negative, so that the 0 of what is masked is never the largest.
        self.maxima[0] = torch.maximum(self.maxima[0], masked(output.ratio, elements).max())

    @torch.no_grad()
    def add_mismatch(self, micro_batch: MicroBatch, old_logprobs: Tensor) -> None:
        """Count how far the log-probabilities of a micro-batch, (n, T), are from those that the engine sampled with."""
        difference = masked((old_logprobs - micro_batch.sampling_logprobs).abs(), micro_batch.mask)
        self.sums[-2] += difference.sum(dtype=torch.float64)
        self.sums[-1] += micro_batch.mask.sum()
        self.maxima[1] = torch.maximum(self.maxima[1], difference.max())

    def add_step(self, grad_norm: float) -> None:
        """Count one optimizer step, by its gradient's norm before clipping."""
        self.grad_norms.append(grad_norm)

    def over_ranks(self, reduce: Callable[[Tensor, str], Tensor]) -> UpdateStats:
        """Make the diagnostics of all ranks, on the host; ``reduce`` takes a tensor and ``sum`` or ``max``."""
        total = UpdateStats(torch.device("cpu"))
        total.sums, total.maxima = reduce(self.sums, "sum").cpu(), reduce(self.maxima, "max").cpu()
        total.grad_norms = self.grad_norms  # the same on every rank
        return total

    def means(self) -> dict[str, float]:
        """Compute the logged values. A ratio counts once per token or once per sequence, as the objective has it."""
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
        """Compute the mean and the maximum of |log π_old − log π_sampled|: rounding, where all is well."""
        sums = self._named_sums()
        return sums["mismatch"] / max(sums["rescored"], 1), float(self.maxima[1])

    def _named_sums(self) -> dict[str, float]:
        return dict(zip(self._SUMS + self._MISMATCH_SUMS, self.sums.tolist(), strict=True))
