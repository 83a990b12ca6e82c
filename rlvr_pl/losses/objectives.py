"""The named objectives, each with its paper's constants. A new one is a class like these."""

from __future__ import annotations

from rlvr_pl.losses import ratio
from rlvr_pl.losses.advantage import AdvantageEstimator, group_mean, group_std
from rlvr_pl.losses.aggregation import SeqMeanTokenMean, SeqMeanTokenSumNorm
from rlvr_pl.losses.policy_loss import PPOClip
from rlvr_pl.losses.strategy import LossStrategy


class GRPO(LossStrategy):
    """Group Relative Policy Optimization: standardised group rewards, a ratio and a clip per token.

    DeepSeekMath, arXiv 2402.03300, eq. 3. The loss is the mean over a sequence's tokens and then over sequences.

    Args:
        clip_low: ε below 1.
        clip_high: ε above 1.
        beta: weight of the KL term (k3) against the initial policy; the paper's is 0.04. 0 drops the reference policy.
        advantage_eps: added to the group's standard deviation.
    """

    def __init__(
        self, clip_low: float = 0.2, clip_high: float = 0.2, beta: float = 0.04, advantage_eps: float = 1e-4
    ) -> None:
        super().__init__(
            advantage=AdvantageEstimator(group_mean, group_std, advantage_eps),
            log_ratio=ratio.token,
            policy_loss=PPOClip(clip_low, clip_high),
            aggregation=SeqMeanTokenMean(),
            beta=beta,
        )


class DrGRPO(LossStrategy):
    """GRPO Done Right: GRPO without its divisions by the group's deviation and by the completion's own length.

    arXiv 2503.20783, §3.2. A sequence's token losses are summed and divided by the generation budget, the same constant
    for all.

    Args:
        clip_low: ε below 1.
        clip_high: ε above 1.
        beta: weight of the KL term (k3) against the initial policy; the paper uses none.
    """

    def __init__(self, clip_low: float = 0.2, clip_high: float = 0.2, beta: float = 0.0) -> None:
        super().__init__(
            advantage=AdvantageEstimator(group_mean, scale=None),
            log_ratio=ratio.token,
            policy_loss=PPOClip(clip_low, clip_high),
            aggregation=SeqMeanTokenSumNorm(),
            beta=beta,
        )


class GSPO(LossStrategy):
    """Group Sequence Policy Optimization: one ratio a sequence, the geometric mean of its tokens', clipped as one.

    arXiv 2507.18071, eq. 5–7. Its band is three orders narrower than a token ratio's, since a mean over a few hundred
    tokens hardly moves.

    Args:
        clip_low: ε below 1.
        clip_high: ε above 1.
        beta: weight of the KL term (k3) against the initial policy; the paper uses none.
        advantage_eps: added to the group's standard deviation.
    """

    def __init__(
        self, clip_low: float = 3e-4, clip_high: float = 4e-4, beta: float = 0.0, advantage_eps: float = 1e-4
    ) -> None:
        super().__init__(
            advantage=AdvantageEstimator(group_mean, group_std, advantage_eps),
            log_ratio=ratio.sequence_geometric,
            policy_loss=PPOClip(clip_low, clip_high),
            aggregation=SeqMeanTokenMean(),
            beta=beta,
        )


class GSPOToken(LossStrategy):
    """GSPO-token: GSPO's ratio in value, with gradients token by token.

    arXiv 2507.18071, eq. 13–14. With one advantage a sequence, as all objectives have it here, it always equals GSPO in
    value and gradient; it is the form that could take an advantage per token.

    Args:
        clip_low: ε below 1.
        clip_high: ε above 1.
        beta: weight of the KL term (k3) against the initial policy; the paper uses none.
        advantage_eps: added to the group's standard deviation.
    """

    def __init__(
        self, clip_low: float = 3e-4, clip_high: float = 4e-4, beta: float = 0.0, advantage_eps: float = 1e-4
    ) -> None:
        super().__init__(
            advantage=AdvantageEstimator(group_mean, group_std, advantage_eps),
            log_ratio=ratio.sequence_geometric_stopgrad,
            policy_loss=PPOClip(clip_low, clip_high),
            aggregation=SeqMeanTokenMean(),
            beta=beta,
        )
