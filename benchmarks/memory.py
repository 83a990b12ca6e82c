"""Memory of the shipped recipe, by part: ``python benchmarks/memory.py``; nothing is allocated, no GPU is needed.

The recipe (configs/qwen_gsm8k.yaml) with Qwen2.5-1.5B's shape and with Qwen2.5-0.5B's, each with what the rollout holds
kept or released during the update, and without what else the recipe saves.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it runs from a checkout

from policies import qwen2_shape

from rlvr_pl.memory import estimate_memory

SHAPES = {
    "1.5B": qwen2_shape(151936, hidden=1536, intermediate=8960, layers=28, heads=12, positions=32768),
    "0.5B": qwen2_shape(151936, hidden=896, intermediate=4864, layers=24, heads=14, positions=32768),
}
RECIPE = {
    "precision": "bf16-mixed",
    "prompt_tokens": 512,  # data.max_prompt_tokens
    "completion_tokens": 1024,
    "group_size": 8,
    "rollout_slots": 256,
    "micro_batch_tokens": 16384,
    "gradient_checkpointing": True,
    "reference": False,
    "release_rollout_memory": True,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "the recipe": {},
    "release_rollout_memory: false": {"release_rollout_memory": False},
    "beta above 0": {"reference": True},
    "micro_batch_tokens: 8192": {"micro_batch_tokens": 8192},
    "rollout_slots: 128": {"rollout_slots": 128},
    "gradient_checkpointing: false": {"gradient_checkpointing": False},
    "precision: bf16-true": {"precision": "bf16-true"},
}


def main() -> None:
    print("| policy | setting | rollout, GB | update, GB | of it activations | peak, GB |\n|---|---|--:|--:|--:|--:|")
    for name, shape in SHAPES.items():
        for variant, changes in VARIANTS.items():
            memory = estimate_memory(shape, **{**RECIPE, **changes})
            activations = memory.update["activations and logits"]
            totals = [sum(memory.rollout.values()), sum(memory.update.values()), activations, memory.peak]
            print(f"| {name} | {variant} | " + " | ".join(f"{total / 1e9:.1f}" for total in totals) + " |", flush=True)


if __name__ == "__main__":
    main()
