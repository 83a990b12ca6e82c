"""The contract of every objective: a named composition of five pieces."""

from __future__ import annotations

from torch import Tensor

from rlvr_pl.losses.advantage import AdvantageEstimator
from rlvr_pl.losses.aggregation import Aggregation
from rlvr_pl.losses.kl import KLEstimator, k3
from rlvr_pl.losses.policy_loss import PPOClip
from rlvr_pl.losses.ratio import LogRatio
from rlvr_pl.types import ConfigError, LossInputs, LossOutput, check_finite, masked


class LossStrategy:
    """Advantage → importance ratio → policy loss → + β · KL → aggregation. The loss is minus the objective.

    A named objective is a subclass whose ``__init__`` composes the pieces and gives the paper's constants as defaults.

    Args:
        advantage: from rewards to advantages.
        log_ratio: from log-probabilities to log-ratios, per token or per sequence.
        policy_loss: from log-ratios and advantages to a loss per element.
        aggregation: from losses to one number; the KL term is aggregated as the policy term is.
        beta: weight of the KL term against the reference policy. 0 means that there is no reference policy.
        kl: the estimator of that KL.
    """

    def __init__(
        self,
        advantage: AdvantageEstimator,
        log_ratio: LogRatio,
        policy_loss: PPOClip,
        aggregation: Aggregation,
        beta: float = 0.0,
        kl: KLEstimator = k3,
    ) -> None:
        check_finite("model.loss", beta=beta)
        if beta < 0:
            raise ConfigError(f"model.loss.beta is {beta}; the weight of the KL term must be at least 0")
        self.advantage = advantage
        self.log_ratio = log_ratio
        self.policy_loss = policy_loss
        self.aggregation = aggregation
        self.beta = beta
        self.kl = kl

    @property
    def needs_reference(self) -> bool:
        """Whether :class:`LossInputs` must carry ``ref_logprobs``."""
        return self.beta > 0

    @property
    def zero_advantage_is_inert(self) -> bool:
        """Whether sequences whose advantage is 0 have no gradient at all, so that skipping them is exact."""
        return not self.needs_reference

    def advantages(self, rewards: Tensor) -> Tensor:
        """Compute the advantages (B, G) of the rewards (B, G)."""
        return self.advantage(rewards)

    def denominator(self, mask: Tensor, max_completion_tokens: int) -> Tensor:
        """Count what sequences with this mask (N, T) add to the denominator of the optimizer step; scalar."""
        return self.aggregation.denominator(mask, max_completion_tokens)

    def __call__(self, inputs: LossInputs) -> LossOutput:
        """Compute the numerator of the loss over these sequences, with diagnostics."""
        policy = self.policy_loss(self.log_ratio(inputs), inputs.advantages.unsqueeze(1))
        loss, kl_ref = policy.loss, None
        if inputs.weights is not None:
            loss = loss * masked(inputs.weights, inputs.mask)
        if self.needs_reference:
            assert inputs.ref_logprobs is not None, "a KL term needs ref_logprobs"
            kl = self.kl(masked(inputs.ref_logprobs - inputs.logprobs, inputs.mask))
            loss, kl_ref = loss + self.beta * kl, kl.detach()
        return LossOutput(
            numerator=self.aggregation.numerator(loss, inputs.mask),
            ratio=policy.ratio,
            clipped_low=policy.clipped_low,
            clipped_high=policy.clipped_high,
            kl_ref=kl_ref,
        )
