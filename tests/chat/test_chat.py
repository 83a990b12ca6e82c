"""``chat``: answers as evaluations give them, token by token, with a verdict; at once, from a pipe, at a prompt."""

from __future__ import annotations

import io
import signal
import sys

import pytest

from rlvr_pl.chat.answering import Answerer, _Stream
from rlvr_pl.chat.command import split_line
from rlvr_pl.chat.loading import load_model
from rlvr_pl.chat.verdict import read_gold, verdict
from rlvr_pl.data.prompts import PromptFormat
from rlvr_pl.main import main
from rlvr_pl.rewards import Completion
from rlvr_pl.run.signals import Interrupted
from rlvr_pl.verifiers import Choice

QUESTION = "Tom has 3 boxes of 4 pens. How many pens does he have?"
ANSWER = "3+4=7\nThe answer is 7.\n"  # the embedded model adds where it should multiply, and seldom uses the tags
WRONG = "[wrong: no answer in the tags; it is 12]\n"
RIGHT = "[wrong: no answer in the tags; it is 7, and right by its last number]\n"


@pytest.fixture(scope="module")
def answerer() -> Answerer:
    return Answerer(*load_model("embedded", seed=0), max_tokens=40)


@pytest.fixture
def loaded(answerer: Answerer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedded model is loaded once for all commands."""
    monkeypatch.setattr("rlvr_pl.chat.command.load_model", lambda name, seed: (answerer.module, PromptFormat()))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def type_in(monkeypatch: pytest.MonkeyPatch, *lines: str | BaseException) -> None:
    """Type lines at the prompt, and then a key."""
    typed = iter(lines)

    def answer(prompt: str) -> str:
        line = next(typed)
        if isinstance(line, BaseException):
            raise line
        print(f"{prompt}{line}")
        return line

    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr("builtins.input", answer)


# An answer.


def test_an_answer_comes_token_by_token(answerer: Answerer) -> None:
    pieces: list[str] = []
    completion = answerer.answer(QUESTION, "12", 0, pieces.append)
    assert "".join(pieces) == completion.text == ANSWER.strip()
    assert len([piece for piece in pieces if piece]) > 10
    assert (completion.question, completion.gold, completion.truncated) == (QUESTION, "12", False)


def test_noise_is_a_function_of_the_questions_number(answerer: Answerer) -> None:
    warm = Answerer(answerer.module, PromptFormat(), max_tokens=40, temperature=1.0)
    texts = [warm.answer(QUESTION, "", number, lambda _: None).text for number in (0, 1, 2, 0)]
    assert texts[0] == texts[3]
    assert len(set(texts)) > 1


def test_a_character_is_written_when_all_of_its_bytes_are_there(answerer: Answerer) -> None:
    tokenizer, pieces = answerer.module.tokenizer, list[str]()
    stream, ids = _Stream(tokenizer, pieces.append), tokenizer("a 数\x1b[0m.")["input_ids"]
    for count in range(1, len(ids) + 1):
        stream.tokens(ids[:count])
    assert "".join(pieces) == "a 数\\x1b[0m.", "no control code reaches the terminal"
    assert "数" in pieces


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<answer>12.0</answer>", "right: 12.0"),
        ("12 <answer>7</answer>", "wrong: '7' in the tags; it is 12"),
        ("<answer>7</answer> 12", "wrong: '7' in the tags; it is 12, and right by its last number"),
        ("It is 12.", "wrong: no answer in the tags; it is 12, and right by its last number"),
        ("", "wrong: no answer in the tags; it is 12"),
    ],
)
def test_the_verdict(text: str, said: str) -> None:
    assert verdict(Completion(text, QUESTION, "12", tokens=9, truncated=False)) == said


def test_the_verdict_is_the_verifier_s() -> None:
    said = verdict(Completion("<answer>(b)</answer>", QUESTION, "B", tokens=9, truncated=False, verifier=Choice()))
    assert said == "right: (b)"
    assert read_gold("B. Paris", Choice()) == "B"


def test_a_line_is_split_at_its_last_separator() -> None:
    assert split_line(" Why? \n") == ("Why?", None)
    assert split_line("a ||| b ||| 7\n") == ("a ||| b", "7")


# The command.


@pytest.mark.usefixtures("loaded")
def test_one_question(capsys: pytest.CaptureFixture[str]) -> None:
    main(["chat", "--question", QUESTION, "--answer", "12"])
    assert capsys.readouterr().out == ANSWER + WRONG
    main(["chat", "--question", QUESTION, "--max_tokens", "3"])
    assert capsys.readouterr().out == "3+4\n[ended after 3 tokens; --max_tokens allows more]\n"


@pytest.mark.usefixtures("loaded")
def test_a_pipe(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{QUESTION} ||| 7\n\n{QUESTION}\n{QUESTION} ||| x\n"))
    with pytest.raises(SystemExit) as stopped:
        main(["chat"])
    assert stopped.value.code == 2
    shown = capsys.readouterr()
    asked = f"question: {QUESTION}\n"
    assert shown.out == asked + ANSWER + RIGHT + asked + ANSWER + asked
    assert shown.err == "error: line 4: no answer can be compared with 'x' by --verifier number\n"


@pytest.mark.usefixtures("loaded")
def test_a_prompt_goes_on_after_a_mistake_and_ends_at_control_d(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    type_in(monkeypatch, f"{QUESTION} ||| x", " ", "long " * 600, f"{QUESTION} ||| 12", EOFError())
    main(["chat"])
    shown = capsys.readouterr()
    assert shown.out.startswith("Ask embedded; QUESTION ||| ANSWER has it graded. Ctrl-D ends.\nquestion: ")
    assert shown.out.endswith(f"{ANSWER}{WRONG}\n")
    mistakes = shown.err.splitlines()
    assert mistakes[0] == "error: no answer can be compared with 'x' by --verifier number"
    assert mistakes[1].startswith("error: the prompt has ")
    assert mistakes[1].endswith(
        " tokens, which leaves 0 of the 512 positions of 'embedded'; ask something shorter, or for fewer with "
        "--max_tokens"
    )


@pytest.mark.usefixtures("loaded")
def test_a_prompt_ends_at_control_c_and_no_other_signal_is_lost(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    type_in(monkeypatch, Interrupted(signal.SIGINT))
    main(["chat"])
    assert capsys.readouterr().err == ""
    type_in(monkeypatch, Interrupted(signal.SIGTERM))
    with pytest.raises(SystemExit) as stopped:
        main(["chat"])
    assert stopped.value.code == 143


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--qestion", "x"], "unrecognized arguments: --qestion x. See "),
        (["--answer", "3"], "--answer needs --question. See "),
        (["--question", "x", "--answer", "y"], "no answer can be compared with 'y' by --verifier number"),
        (["--temperature", "-1"], "argument --temperature: -1 is not a number from 0. See "),
        (["--max_tokens", "0"], "argument --max_tokens: 0 is not a number from 1. See "),
        (["--model", "./nowhere"], "model.policy: there is no folder './nowhere'"),
        (
            ["--ckpt", "nowhere"],
            "ckpt_path: there is no file 'nowhere'; give --config of the run, the run's folder, or a file",
        ),
        (
            ["--ckpt", "best", "--run_dir", "nowhere/run"],
            "ckpt_path: no run under 'nowhere' has a best.ckpt yet; give --config of the run, the run's folder, or a ",
        ),
    ],
)
def test_mistakes_end_in_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["chat", *arguments])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")
