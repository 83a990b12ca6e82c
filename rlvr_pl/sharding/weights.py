"""Weights in parts: cut by FSDP2's ``fully_shard``, and whole again for a forward pass, a rollout or a file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map
from transformers import PreTrainedModel

Result = TypeVar("Result")
_FORWARD = "forward_by"  # the policy's method through which everything runs that reads its weights


def shard(policy: PreTrainedModel, mesh: DeviceMesh) -> None:
    """Cut a policy's weights into as many parts as a mesh has ranks, in place; each rank keeps its own.

    Layer by layer: in a forward or backward pass the weights of one layer are whole at a time, and the one after it on
    its way. What stands outside the layers, the embeddings above all, is whole for as long as the pass takes.

    Gradients are summed over ranks in float32, and weights are gathered as they are, so that ranks compute what one
    device does.

    Args:
        policy: of the Llama, Qwen2 or Qwen3 family, the same on every rank.
        mesh: of one dimension.
    """
    how: dict[str, Any] = {"mesh": mesh, "mp_policy": MixedPrecisionPolicy(reduce_dtype=torch.float32)}
    body: Any = policy.model
    for layer in body.layers:
        fully_shard(layer, **how)
    head: Any = policy.get_output_embeddings()
    if head.weight is not body.embed_tokens.weight:
        fully_shard(body.embed_tokens, **how)
    fully_shard(policy, **how)
    setattr(policy, _FORWARD, lambda function: function())
    register_fsdp_forward_method(policy, _FORWARD)


def is_sharded(policy: object) -> bool:
    """Tell whether a policy's weights lie in parts on all ranks."""
    return isinstance(policy, FSDPModule)


def forward_by(policy: Any, function: Callable[[], Result]) -> Result:
    """Call a function that runs a policy's body and reads its head, as one forward pass of the policy.

    A collective if the policy is sharded: its weights are gathered for the pass, and for the backward pass of what the
    function returns.

    Args:
        policy: that the function reads.
        function: returns tensors; they may stand in tuples, lists and dicts.
    """
    if not is_sharded(policy):
        return function()
    result: Result = getattr(policy, _FORWARD)(function)
    if not torch.is_grad_enabled():
        policy.reshard()  # no backward pass will
    return result


# One module


def class_of(module: nn.Module) -> type:
    """Return the class that a module was made of; sharding gives it one derived from that."""
    return next(kind for kind in type(module).__mro__ if not issubclass(kind, FSDPModule))


def has_hooks(module: nn.Module) -> bool:
    """Tell whether a module has forward hooks, other than those that gather its weights."""
    hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
    return any(not type(getattr(hook, "__self__", None)).__module__.startswith("torch.distributed.") for hook in hooks)


# One tensor


def is_part(tensor: Tensor) -> bool:
    """Tell whether a tensor is a part of one that lies on all ranks."""
    return isinstance(tensor, DTensor)


def own_part(tensor: Tensor) -> Tensor:
    """Return what this rank holds of a tensor: all of it where it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor: a collective where it is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def cut_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Cut from a whole tensor what this rank holds of one that is sharded; no collective, for every rank has it all."""
    if not isinstance(like, DTensor) or isinstance(tensor, DTensor) or tensor.shape != like.shape:
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


# Many


def gather(tree: Any, keep: bool) -> Any:
    """Gather the sharded tensors of a state dict on the host: a collective, so that every rank must ask.

    One tensor at a time is whole on a device. One that stands in several places, a tied weight, stays one.

    Args:
        tree: dicts, lists and tuples of tensors and anything else; a module's with ``keep_vars``, in which tied weights
            are one object.
        keep: whether this rank wants them; another gets None in place of each.
    """
    gathered: dict[int, Tensor | None] = {}

    def of(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if id(leaf) not in gathered:
            tensor = whole(leaf.detach())
            gathered[id(leaf)] = tensor.cpu() if keep else None
        return gathered[id(leaf)]

    return tree_map(of, tree)
