"""``python -m rlvr_pl chat``: questions from the command line, a prompt or a pipe."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress

from rlvr_pl.chat.answering import Answerer
from rlvr_pl.chat.loading import find, load_checkpoint, load_model
from rlvr_pl.chat.verdict import read_gold, verdict
from rlvr_pl.cli import CommandParser
from rlvr_pl.run.signals import Interrupted
from rlvr_pl.run.terminal import visible
from rlvr_pl.types import ConfigError
from rlvr_pl.verifiers import find_verifier

SEPARATOR = "|||"
_PROMPT = "question: "


def make_parser() -> CommandParser:
    """Make the parser."""
    parser = CommandParser("chat")
    parser.usage = f"{parser.prog} [--model NAME | --ckpt NAME [--config FILE ...]] [--question TEXT [--answer TEXT]]"
    parser.epilog = (
        f"Without --question it asks for questions, or reads one a line from a pipe: QUESTION {SEPARATOR} ANSWER has "
        "it graded. Each question stands by itself, in the prompt of training."
    )
    parser.add_argument(
        "--model", metavar="NAME", help="a run's best_model, another model folder, a hub id, or embedded (the default)"
    )
    parser.add_argument(
        "--ckpt",
        "--ckpt_path",
        dest="ckpt",
        metavar="NAME",
        help="last or best, of the run that --config means; a run's folder; or a checkpoint's file",
    )
    parser.add_argument("--question", metavar="TEXT", help="answer this one and end")
    parser.add_argument("--answer", metavar="TEXT", help="the right answer to it; say whether the model's is")
    parser.add_argument(
        "--verifier", default="number", metavar="NAME", help="by which that is told, as data.verifier; default: number"
    )
    parser.add_argument("--temperature", type=_temperature, default=0.0, metavar="T", help="default: 0, greedy")
    parser.add_argument("--max_tokens", type=_count, metavar="N", help="of an answer; default: the run's, or 512")
    parser.add_argument("--seed", type=_seed, default=0, metavar="N", help="of the sampling noise; default: 0")
    return parser


def _temperature(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0")
    return value


def _count(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 1")
    return value


def _seed(text: str) -> int:
    if (value := int(text)) < 0:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0")
    return value


def chat_command(arguments: Sequence[str]) -> None:
    """Run ``chat`` with these arguments.

    Raises:
        ConfigError: if there is no such model or checkpoint, or a question cannot be answered.
    """
    parser = make_parser()
    asked, of_fit = parser.parse_known_args(arguments)
    if of_fit and asked.ckpt not in ("last", "best"):
        parser.error(f"unrecognized arguments: {' '.join(of_fit)}")
    if asked.answer is not None and asked.question is None:
        parser.error("--answer needs --question")
    verifier = find_verifier(asked.verifier)
    if asked.answer is not None:
        read_gold(asked.answer, verifier)
    if asked.ckpt is None:
        loaded = load_model(asked.model or "embedded", asked.seed)
    else:
        loaded = load_checkpoint(find(asked.ckpt, of_fit), asked.model, asked.seed)
    answerer = Answerer(*loaded, asked.max_tokens, asked.temperature, verifier)
    if asked.question is not None:
        show_answer(answerer, asked.question, asked.answer, 0)
    elif sys.stdin.isatty():
        talk(answerer)
    else:
        answer_lines(answerer, sys.stdin)


def show_answer(answerer: Answerer, question: str, gold: str | None, number: int) -> None:
    """Print an answer as it comes, and what is to be said of it.

    Args:
        answerer: who answers.
        question: the question.
        gold: the right answer, where it is known.
        number: of the question in this session.

    Raises:
        ConfigError: if it cannot be answered.
    """
    if gold is not None:
        gold = read_gold(gold, answerer.verifier)
    completion = answerer.answer(question, gold or "", number, lambda text: print(text, end="", flush=True))
    print()
    if completion.truncated:
        print(f"[ended after {completion.tokens} tokens; --max_tokens allows more]")
    if gold is not None:
        print(f"[{verdict(completion)}]")


def talk(answerer: Answerer) -> None:
    """Ask for questions until Ctrl-D or Ctrl-C; what is wrong with one is said, and the next asked for."""
    with suppress(ImportError):
        import readline  # noqa: F401  # input() edits lines, and remembers them, once it is loaded
    print(f"Ask {answerer.module.policy_name}; QUESTION {SEPARATOR} ANSWER has it graded. Ctrl-D ends.")
    number = 0
    try:
        while True:
            line = input(_PROMPT)
            if line.strip():
                try:
                    show_answer(answerer, *split_line(line), number)
                except ConfigError as error:
                    print(visible(f"error: {error}"), file=sys.stderr)
                number += 1
    except EOFError:
        print()
    except Interrupted as interrupt:
        if interrupt.signum != signal.SIGINT:
            raise
        print()


def answer_lines(answerer: Answerer, lines: Iterable[str]) -> None:
    """Answer a question a line, and repeat each before its answer.

    Raises:
        ConfigError: naming the line that cannot be answered.
    """
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        question, gold = split_line(line)
        print(visible(f"{_PROMPT}{question}"), flush=True)
        try:
            show_answer(answerer, question, gold, number)
        except ConfigError as error:
            raise ConfigError(f"line {number + 1}: {error}") from error


def split_line(line: str) -> tuple[str, str | None]:
    """Split ``question ||| answer`` at the last separator; without one there is no answer."""
    question, separator, gold = line.rpartition(SEPARATOR)
    return (question.strip(), gold.strip()) if separator else (line.strip(), None)
