"""The command that makes the embedded model, and what the shipped one is."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from rlvr_pl.embedded.pretrain import hasty, pretrain, solution_text
from rlvr_pl.pretrained import EMBEDDED_MODEL

ANSWER = "3*4=12\n12+5=17\n17*2=34\n#### 34"


def test_solution_text() -> None:
    assert solution_text(ANSWER, tagged=False) == "3*4=12\n12+5=17\n17*2=34\nThe answer is 34."
    assert solution_text(ANSWER, tagged=True) == (
        "<reasoning>\n3*4=12\n12+5=17\n17*2=34\n</reasoning>\n<answer>\n34\n</answer>"
    )


def test_a_hasty_solution_stops_a_line_early() -> None:
    assert hasty(ANSWER) == "3*4=12\n12+5=17\n#### 17"


def test_both_stages_run_and_save_a_model_with_its_tokenizer(tmp_path: Path) -> None:
    pretrain(tmp_path, stop_at=1.0, max_steps=1, seed=0)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert model.config.vocab_size == len(tokenizer)
    shipped = AutoTokenizer.from_pretrained(EMBEDDED_MODEL)
    assert tokenizer.get_vocab() == shipped.get_vocab()
    text = "Mia has 12 apples.\n<answer>\n−3½ 中\n</answer>"
    assert shipped.decode(shipped(text)["input_ids"]) == text
    assert [shipped.decode(i) for i in shipped("120")["input_ids"]] == ["1", "2", "0"]


def test_the_shipped_model_is_small() -> None:
    assert sum(file.stat().st_size for file in EMBEDDED_MODEL.iterdir()) <= 4_000_000
    assert AutoModelForCausalLM.from_pretrained(EMBEDDED_MODEL).num_parameters() == 852_352
