"""Where the checkout and what lies beside it are."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
SHARED = ROOT.parent / "shared"  # GSM8K and Qwen2.5's tokenizer, where they are to be had
