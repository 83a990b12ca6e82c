"""Randomness as a function, not a state.

Sampling noise is a function of (seed, rollout, prompt, member), the prompt order of (seed, epoch).

Nothing is carried from step to step, so a resumed run samples what an uninterrupted one does, evaluation cannot
disturb training, and every objective of a comparison sees the same noise.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

# The first word of every key keeps the streams apart.
_ROLLOUT, _EVALUATION, _PROMPT_ORDER, _HOLD_OUT, _ADAPTER, _FEW_SHOT = 1, 2, 3, 4, 5, 6


def _generator(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def _uniforms(keys: Iterable[tuple[int, ...]], tokens: int) -> Tensor:
    return torch.from_numpy(np.stack([_generator(*key).random(tokens, dtype=np.float32) for key in keys]))


def seed_or_global(seed: int | None) -> int:
    """Return a seed as it is given; for None that of Lightning's ``seed_everything``, or 0 where it was not called."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed


def rollout_noise(seed: int, rollout: int, prompts: Sequence[int], group_size: int, tokens: int) -> Tensor:
    """Draw uniforms in [0, 1) for one rollout, (B · G, tokens) float32.

    Args:
        seed: of the run.
        rollout: how many came before it.
        prompts: B of them, by their number in the whole rollout over all ranks.
        group_size: G.
        tokens: how many a completion may need.
    """
    return _uniforms(((_ROLLOUT, seed, rollout, prompt, g) for prompt in prompts for g in range(group_size)), tokens)


def evaluation_noise(seed: int, questions: Sequence[int], samples: int, tokens: int) -> Tensor:
    """Draw uniforms in [0, 1) for an evaluation, (questions · samples, tokens) float32: at each one the same."""
    return _uniforms(((_EVALUATION, seed, index, s) for index in questions for s in range(samples)), tokens)


def prompt_order(seed: int, epoch: int, size: int) -> np.ndarray:
    """Permute ``range(size)``: the order in which an epoch serves the training questions."""
    return _generator(_PROMPT_ORDER, seed, epoch).permutation(size)


def hold_out(seed: int, size: int, count: int) -> set[int]:
    """Draw ``count`` of ``range(size)``: the rows of the train split that are kept for validation."""
    return set(_generator(_HOLD_OUT, seed).permutation(size)[:count].tolist())


def few_shot_order(seed: int, size: int) -> np.ndarray:
    """Permute ``range(size)``: the order in which training questions are taken for examples in the prompt."""
    return _generator(_FEW_SHOT, seed).permutation(size)


def adapter_start(seed: int, layer: int, rank: int, features: int) -> Tensor:
    """Draw what an adapter's A starts from, (rank, features) float32, uniform within ±1 / √features, as peft's does.

    Args:
        seed: of the run.
        layer: the number of the adapted layer.
        rank: of the adapter.
        features: that the layer takes.
    """
    uniforms = _generator(_ADAPTER, seed, layer).random((rank, features), dtype=np.float32)
    return torch.from_numpy((2 * uniforms - 1) / np.float32(features) ** 0.5)
