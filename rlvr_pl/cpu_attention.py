"""PyTorch's attention kernel for CPUs, with what its public function keeps to itself: the normalizers.

Attention over two sets of keys can be put together from attention over each, given the logarithms of their normalizers
Z: (Z₁ o₁ + Z₂ o₂) / (Z₁ + Z₂). ``scaled_dot_product_attention`` runs this kernel, and drops them.
"""

from __future__ import annotations

import torch

attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
"""``(query, key, value, dropout_p, is_causal, *, attn_mask, scale)``, (rows, heads, tokens, head size) each, to the
output and log Z, (rows, heads, queries) float32 (or float64). It takes no mask but an additive one, of the queries'
dtype."""

attention_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
"""``(upstream, query, key, value, output, log Z, dropout_p, is_causal, *, attn_mask, scale)`` to the gradients of
query, key and value."""
