"""Choosing the next token: inverse-CDF sampling on given uniforms, or greedy."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_BLOCK = 128  # tokens; large vocabularies are padded to a multiple of it


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
    """Choose the next token of each row, with its log-probability under the tempered distribution.

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
        tokens = _inverse_cdf(probabilities, uniforms.unsqueeze(1))
    return tokens.squeeze(1), probabilities.gather(-1, tokens).log().squeeze(1)


def _inverse_cdf(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """The first token of each row (N, V) whose cumulative probability exceeds a uniform (N, 1).

    In a large vocabulary its block is looked for first: a cumulative sum adds one number after the other, on a GPU with
    a single block of threads for each row.
    """
    vocabulary = probabilities.shape[-1]
    if vocabulary <= _BLOCK**2 or vocabulary % _BLOCK:
        return _search(_cumulative(probabilities), uniforms)[0]
    blocks = probabilities.unflatten(-1, (-1, _BLOCK))
    masses = blocks.sum(dim=-1)
    cumulative = _cumulative(masses)
    block, target = _search(cumulative, uniforms)
    mass = masses.gather(1, block)
    within = (target - (cumulative.gather(1, block) - mass)).div(mass).clamp(min=0)
    tokens = blocks[torch.arange(len(blocks), device=blocks.device), block.squeeze(1)]
    return block * _BLOCK + _search(_cumulative(tokens), within)[0]


def _cumulative(values: Tensor) -> Tensor:
    """Sum each row of (N, V) up to each entry.

    CUDA's cumulative sum is not deterministic, and is refused under ``trainer.deterministic: true``. Doubling is: each
    pass adds what stands twice as far to the left, so that log2 V additions of whole rows do the same.
    """
    if not (values.is_cuda and torch.are_deterministic_algorithms_enabled()):
        return values.cumsum(dim=-1)
    distance = 1
    while distance < values.shape[-1]:
        values = torch.cat((values[:, :distance], values[:, distance:] + values[:, :-distance]), dim=-1)
        distance *= 2
    return values


def _search(cumulative: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """The first entry of each row that exceeds its uniform's share of the last one, and that share; (N, 1) each."""
    # The sum misses 1 by rounding. Staying under the total itself keeps the last step inside the row, and never on an
    # entry that adds nothing.
    total = cumulative[:, -1:]
    target = torch.minimum(uniforms * total, torch.nextafter(total, torch.zeros_like(total)))
    found = torch.searchsorted(cumulative, target, right=True)
    return found.clamp_(max=cumulative.shape[-1] - 1), target  # of NaN it finds none
