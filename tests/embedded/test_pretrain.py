"""The command that makes the embedded model, and what the shipped one is."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from rlvr_pl.data.solutions import Work
from rlvr_pl.embedded.pretrain import pretrain, solution_text
from rlvr_pl.pretrained import EMBEDDED_MODEL

WORK = Work(34, ["3*4=12", "12+5=17", "17*2=34"])


def test_solution_text() -> None:
    assert solution_text(WORK, tagged=False) == "3*4=12\n12+5=17\n17*2=34\nThe answer is 34."
    assert solution_text(WORK, tagged=True) == (
        "<reasoning>\n3*4=12\n12+5=17\n17*2=34\n</reasoning>\n<answer>\n34\n</answer>"
    )


def test_it_saves_a_model_with_its_tokenizer(tmp_path: Path) -> None:
    pretrain(tmp_path, max_steps=1, seed=0)
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
