"""Which tensors PyTorch's attention over sequences of unequal length is for."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor
from torch.nn.attention import varlen


def varlen_takes(keys: Tensor, parameter: str) -> bool:
    """Tell whether ``varlen_attn`` has a parameter, and a kernel for such keys, (…, head size).

    The kernel is for half precision on CUDA from the Ampere generation on, for heads of a multiple of 8 up to 256
    numbers (as FlashAttention 2).
    """
    head_size = keys.shape[-1]
    if not keys.is_cuda or keys.dtype not in (torch.bfloat16, torch.float16) or head_size % 8 or head_size > 256:
        return False
    if parameter not in inspect.signature(varlen.varlen_attn).parameters:
        return False
    return torch.cuda.get_device_capability(keys.device) >= (8, 0)
