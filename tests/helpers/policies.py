"""Tiny random policies for the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from rlvr_pl.pretrained import EMBEDDED_MODEL

CONFIGS = {"qwen2": Qwen2Config, "qwen3": Qwen3Config, "llama": LlamaConfig}
FAMILIES = sorted(CONFIGS)
VOCABULARY = 64


def tiny_model(family: str = "qwen2", tied: bool = False, seed: int = 0, **settings: Any) -> PreTrainedModel:
    """A random policy of two layers. Norms and biases are moved away from 1 and 0, where leaving one out is unseen."""
    torch.manual_seed(seed)
    config = CONFIGS[family](
        **{
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "max_position_embeddings": 128,
            "initializer_range": 0.3,
            "tie_word_embeddings": tied,
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": None,
            **settings,
        }
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.1 * torch.randn_like(parameter)
    return model


def make_tiny_policy(
    folder: Path, tokenizer: Path = EMBEDDED_MODEL, vocabulary: int | None = None, **settings: Any
) -> str:
    """Save a random Qwen2 into ``folder`` with a tokenizer, for ``fit`` to load.

    Its vocabulary is the tokenizer's, or a larger one. Small weights: it samples nearly every token alike.
    """
    known = AutoTokenizer.from_pretrained(tokenizer)
    settings = {
        "vocab_size": vocabulary or len(known),
        "initializer_range": 0.02,
        "max_position_embeddings": 32768,
        "eos_token_id": known.eos_token_id,
        **settings,
    }
    tiny_model(tied=True, **settings).save_pretrained(folder)
    known.save_pretrained(folder)
    return str(folder)
