"""Which layout a policy is served by."""

from __future__ import annotations

import torch
from lightning.pytorch.utilities import rank_zero_info
from transformers import PreTrainedModel

from rlvr_pl.scoring.attention import PACKED_GROUPS
from rlvr_pl.scoring.layout import Layout, PackedGroups, PaddedRows
from rlvr_pl.scoring.score import hidden_states

# Of the root mean square of the hidden states: far above rounding, far below what an unseen prompt or a neighbour does.
_TOLERANCE, _TOLERANCE_IN_HALF = 1e-3, 5e-2


def choose_layout(*policies: PreTrainedModel) -> Layout:
    """Choose packed groups where the policies compute the same in them as in padded rows, and say so where they do not.

    Args:
        policies: which are to be scored alike: the policy and its reference, on their device.
    """
    for policy in policies:
        reason = why_not_packed(policy)
        if reason is not None:
            rank_zero_info(
                f"Groups are not packed for this policy: {reason}. An update reads each prompt once a completion, and "
                "pads, which is slower."
            )
            return PaddedRows()
    return PackedGroups()


@torch.no_grad()
def why_not_packed(policy: PreTrainedModel) -> str | None:
    """Have a policy attend by packing, and tell why it cannot: None where it can.

    Beside what a model says of itself, a few tokens go through it in both layouts: layers that mix tokens by other
    means than attention, or that bring their own to it, show in what comes out.
    """
    if not getattr(policy, "_supports_attention_backend", False):
        return "its attention cannot be replaced"
    before = policy.config._attn_implementation
    policy.set_attn_implementation(PACKED_GROUPS)
    reason = _fault(policy)
    if reason is not None:
        policy.set_attn_implementation(before)
    return reason


def _fault(policy: PreTrainedModel) -> str | None:
    prompts, members, lengths = [[1, 2, 3], [2, 1]], [0, 0, 1, 1], [2, 3, 1, 2]
    completions = torch.tensor([[3, 1, 0], [2, 2, 1], [1, 0, 0], [3, 3, 0]], device=policy.device)
    try:
        packed, padded = (
            hidden_states(policy, layout.lay_out(prompts, members, completions, lengths))
            for layout in (PackedGroups(), PaddedRows())
        )
    except NotImplementedError as error:
        return str(error)
    half = torch.is_autocast_enabled(packed.device.type) or packed.dtype not in (torch.float32, torch.float64)
    difference = float((packed.float() - padded.float()).square().mean().sqrt() / padded.float().square().mean().sqrt())
    if difference <= (_TOLERANCE_IN_HALF if half else _TOLERANCE):
        return None
    return f"its hidden states differ from those of single sequences, by {difference:.1%} of their size"
