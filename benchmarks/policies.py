"""Random policies of given shapes: right for speed and memory, which do not depend on what the weights are."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PretrainedConfig, PreTrainedModel, Qwen2Config


def random_policy(
    config: PretrainedConfig, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> PreTrainedModel:
    torch.manual_seed(0)
    with torch.device(device):
        policy = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    policy.generation_config = GenerationConfig()  # or the shape's stop ids would end completions
    return policy


def qwen2_shape(
    vocabulary: int, hidden: int, intermediate: int, layers: int, heads: int, positions: int
) -> PretrainedConfig:
    """A Qwen2 with two key heads and a tied head, as Qwen2.5's smaller ones have them."""
    return Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=2,
        max_position_embeddings=positions,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
