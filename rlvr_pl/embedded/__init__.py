"""The embedded default: a tiny pretrained Qwen2 with its tokenizer, so that everything runs without a GPU or a hub."""

from pathlib import Path

EMBEDDED_MODEL = Path(__file__).parent / "model"
