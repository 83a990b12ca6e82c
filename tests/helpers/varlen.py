"""What ``torch.nn.attention.varlen.varlen_attn`` documents, on any device, and what its kernel demands."""

from __future__ import annotations

import torch
from torch import Tensor


def slow_varlen_attn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
    seqused_k: Tensor | None = None,
) -> Tensor:
    """Segment by segment; of windows there are none, and the causal one, whose last query sees the last key."""
    assert cu_seq_k is not None
    assert window_size in ((-1, -1), (-1, 0))
    causal = window_size == (-1, 0)
    for lengths, entries in ((cu_seq_q, len(cu_seq_q)), (cu_seq_k, len(cu_seq_q)), (seqused_k, len(cu_seq_q) - 1)):
        if lengths is not None:
            assert lengths.dtype == torch.int32
            assert lengths.is_contiguous()
            assert lengths.shape == (entries,)
            assert lengths.device == query.device
    assert query.dtype == key.dtype == value.dtype
    assert {t.stride(-1) for t in (query, key, value)} == {1}
    assert query.ndim == 3
    assert key.shape == value.shape == (int(cu_seq_k[-1]), key.shape[1], query.shape[2])
    assert len(query) == cu_seq_q[-1]
    assert enable_gqa or query.shape[1] == key.shape[1]
    assert seqused_k is None or not query.requires_grad, "documented as inference-only"
    outputs = []
    for i in range(len(cu_seq_q) - 1):
        q = query[cu_seq_q[i] : cu_seq_q[i + 1]]
        used = int(cu_seq_k[i + 1] - cu_seq_k[i]) if seqused_k is None else int(seqused_k[i])
        assert len(q) <= max_q
        assert 0 < used <= cu_seq_k[i + 1] - cu_seq_k[i] <= max_k
        here = slice(int(cu_seq_k[i]), int(cu_seq_k[i]) + used)
        k, v = (t[here].repeat_interleave(query.shape[1] // key.shape[1], dim=1) for t in (key, value))
        scores = torch.einsum("qhd,khd->hqk", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
        if causal:
            unseen = torch.ones(len(q), used, dtype=torch.bool, device=q.device).triu(1 + used - len(q))
            scores = scores.masked_fill(unseen, -torch.inf)
        outputs.append(torch.einsum("hqk,khd->qhd", scores.softmax(dim=-1), v))
    return torch.cat(outputs)
