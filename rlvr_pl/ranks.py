"""What ranks tell each other of a rollout, so that they can share its update evenly."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad

from rlvr_pl.types import Rollout

_TENSORS = ("completion_ids", "mask", "sampling_logprobs", "truncated")


def gather_over_ranks(rollout: Rollout, advantages: Tensor, minibatches: int) -> tuple[Rollout, Tensor]:
    """Join the rollouts of all ranks, the same on each of them.

    A rank generates as many completions as another, but they are unequally long, and there is nothing to learn from a
    group whose rewards are all equal. Once every rank knows all of them, each can take an equal share.

    Args:
        rollout: N sequences of this rank.
        advantages: (N,), on the host.
        minibatches: in how many a rollout is cut.

    Returns:
        The rollout, (ranks · N) sequences on this rank's device, and their advantages on the host. Its minibatches are
        made of those of the ranks: the first one of all the first ones, and so on.
    """
    own = {name: getattr(rollout, name).cpu() for name in _TENSORS} | {"advantages": advantages}
    parts: list[tuple[Sequence[Sequence[int]], dict[str, Tensor]]] = [([], {})] * dist.get_world_size()
    dist.all_gather_object(parts, (rollout.prompt_ids, own))
    width = max(tensors["mask"].shape[1] for _, tensors in parts)
    groups = len(rollout.prompt_ids) // minibatches  # of a rank, in a minibatch

    def joined(name: str) -> Tensor:
        ranks = [tensors[name] for _, tensors in parts]
        ranks = [pad(x, (0, width - x.shape[1])) if x.ndim == 2 else x for x in ranks]
        return torch.stack(ranks).unflatten(1, (minibatches, -1)).transpose(0, 1).flatten(0, 2)

    whole = Rollout(
        prompt_ids=[
            prompt
            for first in range(0, len(rollout.prompt_ids), groups)
            for prompts, _ in parts
            for prompt in prompts[first : first + groups]
        ],
        group_size=rollout.group_size,
        **{name: joined(name).to(rollout.mask.device) for name in _TENSORS},
    )
    return whole, joined("advantages")
