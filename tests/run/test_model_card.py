"""The model card: what the hub reads of it, and values that could break its tables and blocks."""

from __future__ import annotations

from pathlib import Path

import yaml

from rlvr_pl.run.model_card import write_model_card
from rlvr_pl.run.records import records_path, write_records
from rlvr_pl.run.state import RunState


def write(tmp_path: Path, prompt: str = "Why?", **config: object) -> str:
    record = {"question": 0, "sample": 0, "gold": "1", "extracted": "1", "correct": True, "correct_flexible": True}
    write_records(records_path(tmp_path, "test", 3), [record | {"question": i} for i in range(4)])
    state = RunState(objective="GRPO", rollouts_done=5, samples=1000, environment={"rlvr_pl": "9.9"})
    card = tmp_path / "README.md"
    settings = {key.replace("__", "."): value for key, value in config.items()}
    write_model_card(card, tmp_path, tmp_path / 'a "folder"', settings, state, {"correctness": 0.5}, prompt, 3)
    return card.read_text(encoding="utf-8")


def test_what_the_hub_knows_is_linked(tmp_path: Path) -> None:
    text = write(tmp_path, model__policy="Qwen/Qwen2.5-1.5B-Instruct", data__source="openai/gsm8k")
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["base_model"] == "Qwen/Qwen2.5-1.5B-Instruct"
    assert front["base_model_relation"] == "finetune"
    assert front["datasets"] == ["openai/gsm8k"]
    front = yaml.safe_load(write(tmp_path, model__policy="/models/qwen", data__source="embedded").split("---\n")[1])
    assert sorted(front) == ["library_name", "pipeline_tag", "tags"]


def test_what_was_not_measured_before_is_said(tmp_path: Path) -> None:
    rows = write(tmp_path).splitlines()
    assert "| test | 4 | strict (in the tags) | not measured | 100.0% [51.0, 100.0] |" in rows
    assert not [row for row in rows if row.startswith("| val |")]


def test_names_and_prompts_cannot_break_the_page(tmp_path: Path) -> None:
    text = write(tmp_path, prompt="```\n# A title?\n```", data__source="a|b\nc\x1b")
    assert "\n````text\n```\n# A title?\n```\n````\n" in text
    assert "| data | a\\|b c\\x1b |\n" in text
    assert 'model="' + str(tmp_path) + '/a \\"folder\\"")' in text
