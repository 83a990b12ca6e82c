"""The forward pass of a Llama, Qwen2 or Qwen3 policy, for generation: prompts, then a token at a time.

It rounds where Hugging Face rounds (the norm before its weight, q · cos + rotated q · sin, each residual by itself), so
that its logits are those of Hugging Face's cached decoding in float32 and bfloat16, and those of its autocast where the
linear layers are a bfloat16 copy of float32 weights: on a CPU bit for bit where rows are equally long and each has its
own cache, up to rounding where a mask hides what a row does not have, or where a group shares its prompt.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from rlvr_pl.rollout.cache import Attention, KVCache, Prefilled
from rlvr_pl.rollout.weights import DecoderWeights, Linear


class Decoder:
    """Prompts and single tokens through the policy.

    Args:
        policy: gives the shapes and the rotary angles.
        weights: what is read.
        columns: the longest sequence.
    """

    def __init__(self, policy: PreTrainedModel, weights: DecoderWeights, columns: int) -> None:
        config: Any = policy.config
        self.weights = weights
        self.columns = columns
        self.epsilon: float = config.rms_norm_eps
        self.heads: int = config.num_attention_heads
        self.kv_heads: int = config.num_key_value_heads
        rotary: Any = policy.model.rotary_emb
        positions = torch.arange(columns, device=weights.embedding.device).unsqueeze(0)
        cos, sin = rotary(weights.embedding, positions)  # of the embedding, only dtype and device are read
        self.cos, self.sin = cos[0].unsqueeze(1), sin[0].unsqueeze(1)  # (columns, 1, head size)
        self.head_size = cos.shape[-1]
        self.sin[..., : self.head_size // 2].neg_()  # the sign of rotation, once rather than at each token

    def make_cache(self, slots: int, kind: type[KVCache] = KVCache) -> KVCache:
        """Make a cache of ``slots`` sequences."""
        shape = (len(self.weights.layers), slots, self.columns, self.kv_heads, self.head_size)
        return kind(shape, self.weights.dtype, self.weights.embedding.device)

    def prefill(self, tokens: Tensor, lengths: Tensor) -> Prefilled:
        """Read prompts.

        Args:
            tokens: (B, P), padded on the right, where causal attention does not look.
            lengths: (B,).
        """
        layers = []

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            layers.append((k.contiguous(), v.contiguous()))  # no views: they would hold the queries' memory too
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
            attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            return attended.transpose(1, 2)

        hidden = self._layers(tokens, self.cos[: tokens.shape[1]], self.sin[: tokens.shape[1]], attend)
        last = hidden[torch.arange(len(tokens), device=tokens.device), lengths - 1]
        return Prefilled(lengths, self._logits(last), layers)

    def step(self, tokens: Tensor, positions: Tensor, cache: KVCache, columns: int, even: bool = False) -> Tensor:
        """Read one more token of the first n rows of the cache.

        Args:
            tokens: (n,).
            positions: (n,) int64, the column of each row's token, all of them under ``columns``.
            cache: is written at ``positions`` and read up to there.
            columns: how many columns attention must look at.
            even: whether all rows hold just that many, so that none of them needs a mask.

        Returns:
            Logits of the next token, (n, V) float32.
        """
        attend = cache.attention(positions, columns, even)
        return self._logits(self._layers(tokens, self.cos[positions], self.sin[positions], attend))

    def _layers(self, tokens: Tensor, cos: Tensor, sin: Tensor, attend: Attention) -> Tensor:
        """Hidden states of tokens (…), (…, hidden size)."""
        weights = self.weights
        hidden = weights.embedding[tokens]
        for i, layer in enumerate(weights.layers):
            normed = self._norm(hidden, layer.input_norm)
            q, k, v = (x.unflatten(-1, (-1, self.head_size)) for x in _project(normed, layer.qkv))
            if layer.query_norm is not None and layer.key_norm is not None:
                q, k = self._norm(q, layer.query_norm), self._norm(k, layer.key_norm)
            rotated = _rotate(torch.cat((q, k), dim=-2), cos, sin).to(weights.dtype)
            q, k = rotated.split((self.heads, self.kv_heads), dim=-2)
            (attended,) = _project(attend(i, q, k, v).flatten(-2), layer.output)
            hidden = hidden + attended
            gate, up = _project(self._norm(hidden, layer.mlp_norm), layer.gate_up)
            (mlp,) = _project(F.silu(gate) * up, layer.down)
            hidden = hidden + mlp
        return self._norm(hidden, weights.norm)

    def _logits(self, hidden: Tensor) -> Tensor:
        (logits,) = _project(hidden, self.weights.head)
        return logits.float()

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        if x.dtype == torch.float32:
            return F.rms_norm(x, weight.shape, weight, self.epsilon)
        return F.rms_norm(x, weight.shape, eps=self.epsilon) * weight  # which rounds before the weight as well


def _project(x: Tensor, linear: Linear) -> tuple[Tensor, ...]:
    x = x.to(linear.weights[0].dtype)
    parts = tuple(F.linear(x, w, b) for w, b in zip(linear.weights, linear.biases, strict=True))
    return parts if len(parts) == len(linear.sizes) else parts[0].split(linear.sizes, dim=-1)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of (…, heads, head size), arXiv 2104.09864; ``sin`` is −sin in its first half."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((second, first), dim=-1) * sin
