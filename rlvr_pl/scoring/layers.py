"""What stands between the matrix products of a policy's layers, on a CPU: norms, rotation and gating.

There these are bound by memory, and take as long together as half of the products. Here each is one function with a
backward pass of its own, which writes over what nobody reads again and keeps no more than it must. The mathematics is
transformers', the order of roundings not quite.

::

    norm     y = w x / r,  r² = mean x² + ε     ∂x = (w ∂y − x Σ(w ∂y x) / (H r²)) / r     ∂w = Σ ∂y x / r
    rotate   (a, b) ↦ (a cos − b sin, b cos + a sin)          and backward by the opposite angle
    gate     y = silu(g) u                      ∂g = silu'(g) u ∂y     ∂u = silu(g) ∂y
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.models.llama import modeling_llama
from transformers.models.qwen2 import modeling_qwen2
from transformers.models.qwen3 import modeling_qwen3

from rlvr_pl.scoring.in_parts import attend_in_parts
from rlvr_pl.scoring.packing import Packing


def use_lean_layers(policy: PreTrainedModel) -> None:
    """Have a policy of the Llama, Qwen2 or Qwen3 family compute by this module wherever it runs on a CPU.

    Its modules get classes derived from their own, of the same name; weights and names stay what they are.
    """
    for module in policy.modules():
        if type(module) in _LEAN:
            module.__class__ = _LEAN[type(module)]


class _Norm(nn.Module):
    weight: Tensor
    variance_epsilon: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        half = hidden_states.dtype not in (torch.float32, torch.float64)
        if hidden_states.device.type != "cpu" or half or hidden_states.dtype != self.weight.dtype:
            normed: Tensor = super().forward(hidden_states)
            return normed
        return norm(hidden_states, self.weight, self.variance_epsilon)


class _MLP(nn.Module):
    gate_proj: nn.Module
    up_proj: nn.Module
    down_proj: nn.Module
    act_fn: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or not isinstance(self.act_fn, (nn.SiLU, type(ACT2FN["silu"]))):
            output: Tensor = super().forward(x)
        else:
            output = self.down_proj(gate(self.gate_proj(x), self.up_proj(x)))
        return output


class _Attention(nn.Module):
    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module
    o_proj: nn.Module
    q_norm: nn.Module  # in Qwen3
    k_norm: nn.Module
    head_dim: int
    scaling: float

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        *args: Any,
        packing: Packing | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        covered = hidden_states.device.type == "cpu" and getattr(self, "sliding_window", None) is None
        if packing is None or not covered:
            if packing is not None:
                kwargs["packing"] = packing
            output: tuple[Tensor, None] = super().forward(hidden_states, position_embeddings, *args, **kwargs)
            return output
        heads = (packing.tokens, -1, self.head_dim)
        query, key, value = (project(hidden_states).view(heads) for project in (self.q_proj, self.k_proj, self.v_proj))
        if hasattr(self, "q_norm"):
            query, key = self.q_norm(query), self.k_norm(key)
        cos, sin = (x[0].unsqueeze(1) for x in position_embeddings)
        query, key = (rotate(x, cos, sin).to(value.dtype) for x in (query, key))
        attended = attend_in_parts(query, key, value, packing, self.scaling)
        return self.o_proj(attended.flatten(1).unsqueeze(0)), None


_FAMILIES = {"Llama": modeling_llama, "Qwen2": modeling_qwen2, "Qwen3": modeling_qwen3}
_PARTS: dict[str, type[nn.Module]] = {"RMSNorm": _Norm, "MLP": _MLP, "Attention": _Attention}


def _lean(part: type[nn.Module], kind: type[nn.Module]) -> type[nn.Module]:
    """Derive a class that passes for its base: whoever asks, the rollout engine for one, sees transformers' own."""
    return type(kind.__name__, (part, kind), {"__module__": kind.__module__})


_LEAN = {
    kind: _lean(part, kind)
    for family, code in _FAMILIES.items()
    for name, part in _PARTS.items()
    for kind in [getattr(code, family + name)]
}


# Functions


def norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Divide rows by their root mean square, and multiply by a weight.

    Args:
        x: (…, H) float32 or float64.
        weight: (H,), of the same dtype.
        epsilon: added to the mean square.

    Returns:
        (…, H).
    """
    normed: Tensor = _RootMeanSquareNorm.apply(x, weight, epsilon)
    return normed


class _RootMeanSquareNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        size = x.shape[-1]
        inverse = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(size).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return (x * inverse).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, inverse = (t.flatten(0, -2) if t.dim() > 1 else t for t in ctx.saved_tensors)
        above = upstream.flatten(0, -2)
        product = above * x
        d_weight = torch.mv(product.T, inverse.squeeze(1)) if ctx.needs_input_grad[1] else None
        shrink = torch.mv(product, weight).unsqueeze(1).mul_(inverse.square()).div_(-x.shape[1])
        d_x = torch.mul(above, weight, out=product).addcmul_(x, shrink).mul_(inverse)
        return d_x.view_as(upstream), d_weight, None


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs of numbers, each of the first half of a head with that in its place in the second.

    Args:
        x: (S, heads, head size).
        cos, sin: (S, 1, head size), of each place, in both halves the same.

    Returns:
        (S, heads, head size), of the wider dtype.
    """
    rotated: Tensor = _Rotation.apply(x.to(torch.promote_types(x.dtype, cos.dtype)), cos, sin)
    return rotated


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _rotated(upstream, cos, -sin), None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    signed = torch.cat((-sin[..., :half], sin[..., half:]), dim=-1)
    return x.roll(half, dims=-1).mul_(signed).addcmul_(x, cos)


def gate(gate: Tensor, up: Tensor) -> Tensor:
    """Compute silu(gate) · up, of (…, size) each."""
    gated: Tensor = _Gate.apply(gate, up)
    return gated


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        activated = F.silu(gate)
        ctx.save_for_backward(gate, up, activated)
        return activated * up

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor]:
        # Fresh memory costs more here than the arithmetic. What was kept is written over, and were anyone to read it
        # again, as a second backward pass would, PyTorch would say so.
        gate, up, activated = ctx.saved_tensors
        d_gate = up.mul_(upstream)
        return torch.ops.aten.silu_backward.grad_input(d_gate, gate, grad_input=d_gate), activated.mul_(upstream)
