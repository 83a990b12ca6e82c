"""Estimators of KL(π_θ ‖ π_other) from the sampled token alone (Schulman, "Approximating KL divergence", 2020).

d = log π_other − log π_θ at the sampled token; all are per token and of d's shape.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

KLEstimator = Callable[[Tensor], Tensor]


def k1(d: Tensor) -> Tensor:
    """Estimate by −d: unbiased, of either sign."""
    return -d


def k2(d: Tensor) -> Tensor:
    """Estimate by d² / 2: biased, and its gradient is that of the KL on-policy."""
    return d.square() / 2


def k3(d: Tensor) -> Tensor:
    """Estimate by exp(d) − 1 − d: unbiased and never negative (GRPO, arXiv 2402.03300, eq. 4)."""
    return torch.expm1(d) - d
