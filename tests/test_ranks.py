"""Rollouts of several ranks, joined."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from rlvr_pl.ranks import gather_over_ranks
from rlvr_pl.types import Rollout


def rollout_of(rank: int, width: int) -> tuple[Rollout, torch.Tensor]:
    """Four prompts of two completions; what belongs to group g of rank r says so: 10 r + g."""
    groups = torch.arange(4) + 10 * rank
    rows = groups.repeat_interleave(2)
    mask = torch.ones(8, width, dtype=torch.bool)
    rollout = Rollout(
        prompt_ids=[[group] * (group + 1) for group in groups.tolist()],
        group_size=2,
        completion_ids=rows.unsqueeze(1).expand(8, width).clone(),
        mask=mask,
        sampling_logprobs=-rows.unsqueeze(1).expand(8, width).float(),
        truncated=torch.arange(8) % 2 == rank,
    )
    return rollout, rows.float() / 2


def test_each_minibatch_is_made_of_those_of_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    own, other = rollout_of(0, width=3), rollout_of(1, width=5)

    def all_gather_object(parts: list[object], part: object) -> None:
        if not said:
            said.append(part)
            gather_over_ranks(*other, minibatches=2)  # the other rank's call, which says what it has
        else:
            said.append(part)
        parts[:] = said

    said: list[object] = []
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_gather_object", all_gather_object)
    whole, advantages = gather_over_ranks(*own, minibatches=2)
    groups = [0, 1, 10, 11, 2, 3, 12, 13]
    rows = [group for group in groups for _ in range(2)]
    assert [prompt[0] for prompt in whole.prompt_ids] == groups
    assert [len(prompt) for prompt in whole.prompt_ids] == [group + 1 for group in groups]
    assert whole.group_size == 2
    assert whole.completion_ids.shape == whole.mask.shape == whole.sampling_logprobs.shape == (16, 5)
    assert whole.completion_ids[:, 0].tolist() == rows
    assert whole.sampling_logprobs[:, 0].tolist() == [-row for row in rows]
    assert whole.lengths.tolist() == [3 if row < 10 else 5 for row in rows]
    assert whole.truncated.tolist() == [place % 2 == (row >= 10) for place, row in enumerate(rows)]
    assert advantages.tolist() == [row / 2 for row in rows]
