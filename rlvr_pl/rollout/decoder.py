"""The forward pass of a Llama, Qwen2 or Qwen3 policy, for generation: prompts, then a token at a time.

It rounds where Hugging Face rounds (the norm before its weight, q · cos + rotated q · sin, each residual by itself), so
that its logits are those of Hugging Face's cached decoding bit for bit in float32 and bfloat16, and those of its
autocast where the linear layers are a bfloat16 copy of float32 weights.
"""

from __future__ import annotations

import inspect
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

Attention = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""From layer, queries (…, heads, head size), keys and values (…, kv heads, head size) to (…, heads · head size)."""


@dataclass(frozen=True)
class Prefilled:
    """B prompts as the policy has read them."""

    logits: Tensor  # of the next token, (B, V) float32
    keys: Tensor  # (layers, B, P, kv heads, head size)
    values: Tensor

    def __getitem__(self, prompt: int) -> Prefilled:
        """One of them, without holding the memory of the others."""
        one = slice(prompt, prompt + 1)
        return Prefilled(self.logits[one].clone(), self.keys[:, one].clone(), self.values[:, one].clone())


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
        self.head_size: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.rotary: Any = policy.model.rotary_emb
        positions = torch.arange(columns, device=weights.embedding.device).unsqueeze(0)
        cos, sin = self.rotary(weights.embedding, positions)  # of the embedding, only dtype and device are read
        self.cos, self.sin = cos[0].unsqueeze(1), sin[0].unsqueeze(1)  # (columns, 1, head size)
        self.sin[..., : self.head_size // 2].neg_()  # the sign of rotation, once rather than at each token

    def make_cache(self, slots: int) -> KVCache:
        """A cache of ``slots`` sequences."""
        weights = self.weights
        return KVCache(
            len(weights.layers),
            slots,
            self.columns,
            self.kv_heads,
            self.head_size,
            weights.dtype,
            weights.embedding.device,
        )

    def prefill(self, tokens: Tensor, lengths: Tensor) -> Prefilled:
        """Read prompts.

        Args:
            tokens: (B, P), padded on the right, where causal attention does not look.
            lengths: (B,).
        """
        keys, values = [], []

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys.append(k)
            values.append(v)
            attended = F.scaled_dot_product_attention(
                q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True, enable_gqa=True
            )
            return attended.transpose(1, 2).flatten(-2)

        hidden = self._layers(tokens, self.cos[: tokens.shape[1]], self.sin[: tokens.shape[1]], attend)
        last = hidden[torch.arange(len(tokens), device=tokens.device), lengths - 1]
        return Prefilled(self._logits(last), torch.stack(keys), torch.stack(values))

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
        rows = len(tokens)
        cells = torch.arange(rows, device=tokens.device), positions
        if reads_by_length(cache):
            attend_cache = self._attend_varlen(positions, cache)
        else:
            attend_cache = self._attend_columns(positions, cache, columns, even)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            cache.write_token(layer, cells, k, v)
            return attend_cache(layer, q)

        return self._logits(self._layers(tokens, self.cos[positions], self.sin[positions], attend))

    def _attend_columns(
        self, positions: Tensor, cache: KVCache, columns: int, even: bool
    ) -> Callable[[int, Tensor], Tensor]:
        """Attention over the first columns of all rows, with those behind a row's position masked.

        Under a mask the queries that share a key head stand as if they were so many tokens: a GPU's kernels take a mask
        or grouped heads, not both, and a CPU's is called less often. Without one, all is as in Hugging Face's decoding.
        """
        rows = len(positions)
        mask, tokens = None, 1
        if not even:
            hidden = torch.arange(columns, device=positions.device) > positions.unsqueeze(1)
            mask = torch.zeros(hidden.shape, dtype=cache.keys.dtype, device=positions.device)
            mask = mask.masked_fill_(hidden, -torch.inf)[:, None, None]
            tokens = self.heads // self.kv_heads

        def attend(layer: int, q: Tensor) -> Tensor:
            keys, values = cache.layers[layer]
            attended = F.scaled_dot_product_attention(
                q.view(rows, -1, tokens, self.head_size),
                keys[:rows, :columns].transpose(1, 2),
                values[:rows, :columns].transpose(1, 2),
                attn_mask=mask,
                enable_gqa=mask is None,
            )
            return attended.reshape(rows, -1)

        return attend

    def _attend_varlen(self, positions: Tensor, cache: KVCache) -> Callable[[int, Tensor], Tensor]:
        """Attention that reads of each row just what it holds; needs neither a mask nor a bound on the columns."""
        rows = len(positions)
        boundaries = torch.arange(rows + 1, dtype=torch.int32, device=positions.device)
        starts = boundaries * cache.columns
        used = (positions + 1).int()

        def attend(layer: int, q: Tensor) -> Tensor:
            attended = varlen.varlen_attn(
                q,
                cache.keys[layer, :rows].flatten(0, 1),
                cache.values[layer, :rows].flatten(0, 1),
                boundaries,
                starts,
                1,
                cache.columns,
                enable_gqa=True,
                seqused_k=used,
            )
            assert isinstance(attended, Tensor)
            return attended.flatten(-2)

        return attend

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
    """Whether attention reads of each row just what it holds, whatever the bound on the columns.

    The kernel is for half precision on CUDA from the Ampere generation on, for heads of a multiple of 8 up to 256
    numbers (as FlashAttention 2), and takes the lengths from torch 2.12 on.
    """
    keys, head_size = cache.keys, cache.keys.shape[-1]
    if not keys.is_cuda or keys.dtype not in (torch.bfloat16, torch.float16) or head_size % 8 or head_size > 256:
        return False
    takes_lengths = "seqused_k" in inspect.signature(varlen.varlen_attn).parameters
    return takes_lengths and torch.cuda.get_device_capability(keys.device) >= (8, 0)
