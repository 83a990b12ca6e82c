"""From losses per token to one number: what is summed, and what the sum is divided by.

An aggregation gives its numerator and its denominator apart. Only the caller divides, once it has summed the
denominator over every micro-batch and every rank of the optimizer step: a mean of means is not the mean.

A loss per sequence, (N, 1), counts as the same loss on each of its tokens.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from rlvr_pl.types import masked


class Aggregation(Protocol):
    def numerator(self, loss: Tensor, mask: Tensor) -> Tensor:
        """Sum over these sequences, to a scalar; ``loss`` (N, T) or (N, 1), ``mask`` (N, T)."""

    def denominator(self, mask: Tensor, max_completion_tokens: int) -> Tensor:
        """Count what these sequences, ``mask`` (N, T), add to the denominator; scalar."""


def _token_sums(loss: Tensor, mask: Tensor) -> Tensor:
    """Σ_t m ℓ of each sequence, (N,)."""
    return masked(loss.expand(mask.shape), mask).sum(dim=1)


def _sequences(mask: Tensor) -> Tensor:
    """How many sequences have a token at all: rows that only fill a batch do not count."""
    return mask.any(dim=1).sum()


class SeqMeanTokenMean:
    """(1/N) Σ_i (1/L_i) Σ_t m ℓ: every sequence weighs the same."""

    def numerator(self, loss: Tensor, mask: Tensor) -> Tensor:
        return (_token_sums(loss, mask) / mask.sum(dim=1).clamp(min=1)).sum()

    def denominator(self, mask: Tensor, max_completion_tokens: int) -> Tensor:
        return _sequences(mask)


class SeqMeanTokenSum:
    """(1/N) Σ_i Σ_t m ℓ: every token weighs the same, long sequences more."""

    def numerator(self, loss: Tensor, mask: Tensor) -> Tensor:
        return _token_sums(loss, mask).sum()

    def denominator(self, mask: Tensor, max_completion_tokens: int) -> Tensor:
        return _sequences(mask)


class SeqMeanTokenSumNorm(SeqMeanTokenSum):
    """(1/(N · T_max)) Σ_i Σ_t m ℓ with T_max the generation budget, a constant (Dr.GRPO, arXiv 2503.20783, §3.2)."""

    def denominator(self, mask: Tensor, max_completion_tokens: int) -> Tensor:
        return _sequences(mask) * max_completion_tokens


class TokenMean(SeqMeanTokenSum):
    """Σ m ℓ / Σ m over the whole optimizer step (DAPO, arXiv 2503.14476, eq. 8)."""

    def denominator(self, mask: Tensor, max_completion_tokens: int) -> Tensor:
        return mask.sum()
