"""The forward pass of a Llama, Qwen2 or Qwen3 policy, for generation: prompts, then a token at a time.

It rounds where Hugging Face rounds (the norm before its weight, q · cos + rotated q · sin, each residual by itself), so
that its logits are those of Hugging Face's cached decoding in float32 and bfloat16, and those of its autocast where the
linear layers are a bfloat16 copy of float32 weights: on a CPU bit for bit where rows are equally long, up to rounding
where a mask hides what a row does not have.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import varlen
from transformers import PreTrainedModel

from rlvr_pl.rollout.cache import KVCache
from rlvr_pl.rollout.weights import DecoderWeights, Linear
from rlvr_pl.varlen import varlen_takes

Attention = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""From layer, queries (…, heads, head size), keys and values (…, kv heads, head size) to (…, heads · head size)."""


@dataclass(frozen=True)
class Prefilled:
    """B prompts as the policy has read them."""

    lengths: Tensor  # (B,)
    logits: Tensor  # of the next token, (B, V) float32
    layers: list[tuple[Tensor, Tensor]]  # keys and values, (B, P, kv heads, head size) each

    def __getitem__(self, prompt: int) -> Prefilled:
        """One of them, without its pads and without holding the memory of the others."""
        one, length = slice(prompt, prompt + 1), int(self.lengths[prompt])
        layers = [(keys[one, :length].clone(), values[one, :length].clone()) for keys, values in self.layers]
        return Prefilled(self.lengths[one], self.logits[one].clone(), layers)

    @property
    def width(self) -> int:
        """P, the longest one's tokens."""
        return self.layers[0][0].shape[1]


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

    def make_cache(self, slots: int) -> KVCache:
        """Make a cache of ``slots`` sequences."""
        shape = (len(self.weights.layers), slots, self.columns, self.kv_heads, self.head_size)
        return KVCache(shape, self.weights.dtype, self.weights.embedding.device)

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
            return attended.transpose(1, 2).flatten(-2)

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
        rows = torch.arange(len(tokens), device=tokens.device)
        if reads_by_length(cache):
            over_cache = _attention_by_length(positions, cache.columns)
        else:
            over_cache = _attention_over_columns(positions, columns, None if even else cache.keys.dtype)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = cache.layers[layer]
            keys.index_put_((rows, positions), k)
            values.index_put_((rows, positions), v)
            return over_cache(q, keys[: len(rows)], values[: len(rows)]).flatten(-2)

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
            (attended,) = _project(attend(i, q, k, v), layer.output)
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


def reads_by_length(cache: KVCache) -> bool:
    """Tell whether attention reads of each row just what it holds, whatever the bound on the columns.

    Its kernel takes the lengths from torch 2.12 on.
    """
    return varlen_takes(cache.keys, "seqused_k")


def _attention_over_columns(
    positions: Tensor, columns: int, mask_dtype: torch.dtype | None
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Attention over the first columns of all rows, with those behind a row's position masked.

    Under a mask the queries that share a key head stand as if they were so many tokens: a GPU's kernels take a mask
    or grouped heads, not both, and a CPU's is called less often. Without one, all is as in Hugging Face's decoding.
    """
    mask = None
    if mask_dtype is not None:
        behind = torch.arange(columns, device=positions.device) > positions.unsqueeze(1)
        mask = torch.zeros(behind.shape, dtype=mask_dtype, device=positions.device)
        mask = mask.masked_fill_(behind, -torch.inf)[:, None, None]

    def attend(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        keys, values = (x[:, :columns].transpose(1, 2) for x in (keys, values))
        grouped = q.unsqueeze(2) if mask is None else q.unflatten(1, (keys.shape[1], -1))
        attended = F.scaled_dot_product_attention(grouped, keys, values, mask, enable_gqa=mask is None)
        return attended.reshape(q.shape)

    return attend


def _attention_by_length(positions: Tensor, columns: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Attention that reads of each row just what it holds; needs neither a mask nor a bound on the columns."""
    boundaries = torch.arange(len(positions) + 1, dtype=torch.int32, device=positions.device)
    starts, used = boundaries * columns, (positions + 1).int()

    def attend(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        keys, values = keys.flatten(0, 1), values.flatten(0, 1)
        attended = varlen.varlen_attn(q, keys, values, boundaries, starts, 1, columns, enable_gqa=True, seqused_k=used)
        assert isinstance(attended, Tensor)
        return attended

    return attend
