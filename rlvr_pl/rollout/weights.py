"""The weights that the decoder reads: the policy's own tensors, or a copy of them, with an adapter merged into it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedModel, Qwen2ForCausalLM, Qwen3ForCausalLM
from transformers.activations import ACT2FN

from rlvr_pl.lora import is_adapted, merged_weight, why_not_merged
from rlvr_pl.sharding.weights import class_of, has_hooks, is_part, is_sharded, own_part, whole

_FAMILY = (LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM)
_LAYERS = (nn.Linear, nn.Embedding, nn.ModuleList, nn.SiLU, type(ACT2FN["silu"]))
_FIXED_ROTARY = ("default", "linear", "llama3", "yarn")  # others change their angles with the length


@dataclass(frozen=True)
class Linear:
    """One or several projections of the same input; ``sizes`` are their output features."""

    weights: tuple[Tensor, ...]  # (out, in) each: one a projection, or all of them fused in one
    biases: tuple[Tensor | None, ...]
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class LayerWeights:
    input_norm: Tensor
    qkv: Linear
    query_norm: Tensor | None
    key_norm: Tensor | None
    output: Linear
    mlp_norm: Tensor
    gate_up: Linear
    down: Linear


def why_not_covered(policy: PreTrainedModel) -> str | None:
    """Name what keeps the decoder from serving a policy; None where it is a supported policy.

    The decoder would compute something else for whatever is not here: a wrapped linear, a hook (or a forward
    method of one module's own, which is as much), another layout.
    """
    if class_of(policy) not in _FAMILY:
        return f"its class is {class_of(policy).__name__}"
    config: Any = policy.config
    if config.rope_parameters["rope_type"] not in _FIXED_ROTARY:
        return f"its rotary embedding is {config.rope_parameters['rope_type']!r}"
    if set(getattr(config, "layer_types", None) or ["full_attention"]) != {"full_attention"}:
        return "it has sliding-window layers"
    if config.hidden_act != "silu":
        return f"its activation is {config.hidden_act!r}"
    inside = ""  # of an adapted layer
    for name, module in policy.named_modules():
        if inside and name.startswith(inside):
            continue
        if has_hooks(module) or "forward" in vars(module):
            return f"{name or 'the model'} has a forward hook"
        if is_adapted(module):
            if reason := why_not_merged(module):
                return f"{name} is {reason}"
            inside = f"{name}."
            continue
        kind = class_of(module)
        if kind not in _LAYERS and kind.__module__ != class_of(policy).__module__:
            return f"{name} is a {kind.__name__}"
    for name, parameter in policy.named_parameters():
        if not (type(parameter) is nn.Parameter or is_part(parameter)) or parameter.dtype != policy.dtype:
            return f"{name} is a {type(parameter).__name__} of {parameter.dtype}"
    return None


class DecoderWeights:
    """The weights of a policy, by their place in the forward pass.

    Where the compute dtype is the policy's, these are its own tensors and no memory is spent. Elsewhere (bf16-mixed)
    the linear layers are copied, projections of one input fused, and :meth:`refresh` copies them again in place; the
    embedding and the norms stay the policy's own, as they do under autocast.

    A layer that an adapter stands beside always has a copy: the adapter is merged into it, each time anew from the
    policy's weight, to which nothing is ever written.

    Of a sharded policy all weights are copied, each gathered from all ranks by :meth:`refresh`, without which they are
    empty: a collective, so that every rank must ask.

    Args:
        policy: a supported policy: :func:`why_not_covered` gives no reason.
        dtype: of the linear layers.
    """

    def __init__(self, policy: PreTrainedModel, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._sharded = is_sharded(policy)
        self._whole: dict[Tensor, Tensor] = {}  # the copies of sharded weights that are read as they are
        self._copies: list[tuple[Tensor, Tensor]] = []  # (of the copy, of the policy)
        self._merged: list[tuple[Tensor, Any]] = []  # (of the copy, the adapted layer)
        body: Any = policy.model
        self.embedding = self._as_it_is(body.embed_tokens.weight)
        self.layers = [self._layer(layer) for layer in body.layers]
        self.norm = self._as_it_is(body.norm.weight)
        self.head = self._linear(policy.get_output_embeddings())
        if not self._sharded:
            self.refresh()

    def _layer(self, layer: Any) -> LayerWeights:
        attention, mlp = layer.self_attn, layer.mlp
        return LayerWeights(
            input_norm=self._as_it_is(layer.input_layernorm.weight),
            qkv=self._linear(attention.q_proj, attention.k_proj, attention.v_proj),
            query_norm=self._as_it_is(attention.q_norm.weight) if hasattr(attention, "q_norm") else None,
            key_norm=self._as_it_is(attention.k_norm.weight) if hasattr(attention, "k_norm") else None,
            output=self._linear(attention.o_proj),
            mlp_norm=self._as_it_is(layer.post_attention_layernorm.weight),
            gate_up=self._linear(mlp.gate_proj, mlp.up_proj),
            down=self._linear(mlp.down_proj),
        )

    def _linear(self, *modules: Any) -> Linear:
        sizes = tuple(m.out_features for m in modules)
        if modules[0].weight.dtype == self.dtype:
            biases = tuple(None if m.bias is None else self._as_it_is(m.bias) for m in modules)
            return Linear(tuple(self._own(m) for m in modules), biases, sizes)
        weight = self._empty(modules[0].weight, sum(sizes))
        for part, module in zip(weight.split(sizes), modules, strict=True):
            self._fill(part, module)
        if modules[0].bias is None:
            return Linear((weight,), (None,), sizes)
        bias = self._empty(modules[0].bias, sum(sizes))
        self._copies += zip(bias.split(sizes), [m.bias for m in modules], strict=True)
        return Linear((weight,), (bias,), sizes)

    def _own(self, module: Any) -> Tensor:
        """The module's own weight, where that is all that it multiplies by."""
        if not is_adapted(module):
            return self._as_it_is(module.weight)
        merged = self._empty(module.weight, module.out_features)
        self._fill(merged, module)
        return merged

    def _as_it_is(self, weight: Tensor) -> Tensor:
        """The policy's own tensor, or all of one that is sharded."""
        if not is_part(weight):
            return weight
        if weight not in self._whole:
            self._whole[weight] = torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)
            self._copies.append((self._whole[weight], weight))
        return self._whole[weight]

    def _empty(self, like: Tensor, features: int) -> Tensor:
        return torch.empty(features, *like.shape[1:], dtype=self.dtype, device=like.device)

    def _fill(self, target: Tensor, module: Any) -> None:
        """Have each refresh write a module's weight to ``target``."""
        if is_adapted(module):
            self._merged.append((target, module))
        else:
            self._copies.append((target, module.weight))

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the policy's present weights, where there is a copy; every tensor keeps its address."""
        if self._sharded:
            for target, source in self._copies:
                target.copy_(whole(source.to(target.dtype)))  # rounded first: half as much goes from rank to rank
        elif self._copies:
            targets, sources = zip(*self._copies, strict=True)
            torch._foreach_copy_(list(targets), list(sources))
        for target, layer in self._merged:
            target.copy_(merged_weight(layer))


def addresses(policy: PreTrainedModel) -> list[int]:
    """List where each parameter lies: if any of them has moved, whoever holds the old tensors reads stale weights."""
    return [own_part(parameter).data_ptr() for parameter in policy.parameters()]
