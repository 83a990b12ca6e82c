"""Choosing the next token: inverse-CDF sampling on given uniforms, or greedy."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn. There is no top-p, top-k or repetition penalty: the scored policy is the sampled one.

    Args:
        max_completion_tokens: the token budget, T at most.
        temperature: divides the logits; 0 takes the likeliest token.
    """

    max_completion_tokens: int
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.max_completion_tokens < 1:
            raise ValueError(f"max_completion_tokens is {self.max_completion_tokens}; it must be at least 1")
        if self.temperature < 0:
            raise ValueError(f"temperature is {self.temperature}; it must be at least 0 (greedy)")


def choose_tokens(logits: Tensor, temperature: float, uniforms: Tensor | None) -> tuple[Tensor, Tensor]:
    """The next token of each row and its log-probability under the tempered distribution.

    A row's token is the first whose cumulative probability exceeds its uniform, so it depends on nothing but the row's
    logits and that number.

    Args:
        logits: (N, V) float32.
        temperature: 0 takes the likeliest token and reports its log-probability at temperature 1.
        uniforms: (N,) in [0, 1); not read at temperature 0.

    Returns:
        Tokens (N,) int64 and log-probabilities (N,) float32.
    """
    probabilities = torch.softmax(logits if temperature in (0, 1) else logits / temperature, dim=-1)
    if temperature == 0:
        tokens = logits.argmax(dim=-1, keepdim=True)  # not of the softmax, whose rounding makes ties
    else:
        assert uniforms is not None, "sampling needs uniforms"
        cumulative = probabilities.cumsum(dim=-1)
        # The sum misses 1 by rounding. Staying under the total itself keeps the last step inside the vocabulary, and
        # never on a token of probability 0.
        total = cumulative[:, -1:]
        target = torch.minimum(uniforms.unsqueeze(1) * total, torch.nextafter(total, torch.zeros_like(total)))
        tokens = torch.searchsorted(cumulative, target, right=True)
    return tokens.squeeze(1), probabilities.gather(-1, tokens).log().squeeze(1)
