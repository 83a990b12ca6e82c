"""Importance ratios, as log-ratios: (N, T) for token ratios, (N, 1) for sequence ratios. Finite on pads.

Δ = log π_θ − log π_old per token; L_i counts sequence i's completion tokens.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from rlvr_pl.types import LossInputs, masked

LogRatio = Callable[[LossInputs], Tensor]


def token(inputs: LossInputs) -> Tensor:
    """Take log w = Δ for each token, (N, T) (GRPO, arXiv 2402.03300, eq. 3)."""
    return masked(inputs.logprobs - inputs.old_logprobs, inputs.mask)


def sequence_geometric(inputs: LossInputs) -> Tensor:
    """Average to log s_i = Σ_t Δ / L_i, the ratios' geometric mean, (N, 1) (GSPO, arXiv 2507.18071, eq. 7)."""
    lengths = inputs.mask.sum(dim=1, keepdim=True).clamp(min=1)
    return token(inputs).sum(dim=1, keepdim=True) / lengths


def sequence_geometric_stopgrad(inputs: LossInputs) -> Tensor:
    """Take log(sg[s_i] · π_θ / sg[π_θ]), (N, T): GSPO's value with token-wise gradients (GSPO-token, eq. 14)."""
    current = masked(inputs.logprobs, inputs.mask)
    # The difference first: it is exactly 0, and the sum would round s_i at the size of a log-probability.
    return sequence_geometric(inputs).detach() + (current - current.detach())
