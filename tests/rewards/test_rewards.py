"""Reward functions and their weighted sum: exact values."""

from __future__ import annotations

import dataclasses
import functools
import json
import pickle
import re
import signal
import sys
import time
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonargparse import ArgumentParser

from rlvr_pl.rewards import Completion, RewardSum, RewardTerm, correctness, strict_format, tag_format
from rlvr_pl.rewards.call import RewardError
from rlvr_pl.types import ConfigError

PERFECT = "<reasoning>\n9 * 2 = 18\n</reasoning>\n<answer>\n18\n</answer>\n"
MB = 1_000_000

FRAGMENTS = [
    "<reasoning>",
    "</reasoning>",
    "<answer>",
    "</answer>",
    "<answer",
    "<",
    ">",
    "1",
    "8",
    "18",
    ".",
    " ",
    "\n",
    "x",
]
texts = st.text(st.characters(exclude_categories=["Cs"])) | st.lists(st.sampled_from(FRAGMENTS)).map("".join)


def completion(text: str, gold: str = "18") -> Completion:
    return Completion(text=text, question="What is 9 * 2?", gold=gold, tokens=len(text), truncated=False)


def length(completion: Completion) -> float:
    return float(completion.tokens)


class Penalty:
    """A callable object: its class name is the term's name."""

    def __call__(self, completion: Completion) -> float:
        return -1.0 if completion.truncated else 0.0


def test_completion_is_immutable() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        completion("x").text = "y"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "gold", "reward"),
    [
        (PERFECT, "18", 2.0),
        (PERFECT, " 18\n", 2.0),
        ("<answer>1,234</answer>", "1,234", 2.0),
        ("<answer>1234</answer>", "1,234", 1.5),
        ("<answer>18.0</answer>", "18", 1.5),
        ("<answer>$18</answer>", "18", 1.5),
        ("<answer>The answer is 18 dollars.</answer>", "18", 1.5),
        ("<answer>36/2</answer>", "18", 1.5),
        ("<answer>−5</answer>", "-5", 1.5),
        ("<answer>17</answer><answer>18</answer>", "18", 2.0),
        ("<answer>18</answer><answer>17</answer>", "18", 0.0),
        ("<answer>18</answer><answer>17", "18", 2.0),
        ("<answer>17 or 18</answer>", "18", 0.0),
        ("<answer>-18</answer>", "18", 0.0),
        ("<answer></answer>", "18", 0.0),
        ("<answer>18", "18", 0.0),
        ("The answer is 18.", "18", 0.0),
        ("", "18", 0.0),
    ],
)
def test_correctness(text: str, gold: str, reward: float) -> None:
    assert correctness(completion(text, gold)) == reward


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        (PERFECT, 0.8),
        ("</answer><answer></reasoning><reasoning>", 0.8),
        ("<reasoning></reasoning><answer>18", 0.6),
        ("<answer>18</answer>", 0.4),
        ("<answer>17</answer><answer>18</answer>", 0.0),
        ("<answer><answer>18</answer>", 0.2),
        (PERFECT * 2, 0.0),
        ("<ANSWER>18</ANSWER>", 0.0),
        ("", 0.0),
    ],
)
def test_tag_format(text: str, reward: float) -> None:
    assert tag_format(completion(text)) == reward


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        (PERFECT, 1.0),
        (f"\n\t {PERFECT} \n", 1.0),
        ("<reasoning>r</reasoning><answer>18</answer>", 1.0),
        ("<reasoning></reasoning> \n <answer>eighteen</answer>", 1.0),
        ("<reasoning>r</reasoning><answer> \n</answer>", 0.0),
        ("<reasoning>r</reasoning><answer></answer>", 0.0),
        ("<reasoning>r</reasoning> so <answer>18</answer>", 0.0),
        (f"Sure! {PERFECT}", 0.0),
        (f"{PERFECT}Done.", 0.0),
        (PERFECT * 2, 0.0),
        ("<answer>18</answer><reasoning>r</reasoning>", 0.0),
        ("<reasoning><answer>18</reasoning></answer>", 0.0),
        ("<reasoning>r<answer>18</answer></reasoning>", 0.0),
        ("<reasoning>r<reasoning></reasoning><answer>18</answer>", 0.0),
        ("<reasoning>r</reasoning><answer>18</answer></answer>", 0.0),
        ("<reasoning>r</reasoning><answer>18", 0.0),
        ("<answer>18</answer>", 0.0),
        ("", 0.0),
    ],
)
def test_strict_format(text: str, reward: float) -> None:
    assert strict_format(completion(text)) == reward


@settings(max_examples=200, deadline=None)
@given(texts)
def test_rewards_take_only_their_documented_values(text: str) -> None:
    assert correctness(completion(text)) in (0.0, 1.5, 2.0)
    assert tag_format(completion(text)) in (0.0, 0.2, 0.4, 0.6, 0.8)
    assert strict_format(completion(text)) in (0.0, 1.0)
    if strict_format(completion(text)):
        assert tag_format(completion(text)) == 0.8


@settings(max_examples=200, deadline=None)
@given(texts, texts, st.sampled_from(["", " ", "\n\n"]))
def test_a_well_formed_completion_earns_every_format_reward(reasoning: str, answer: str, space: str) -> None:
    for tag in ("<reasoning>", "</reasoning>", "<answer>", "</answer>"):
        reasoning, answer = reasoning.replace(tag, ""), answer.replace(tag, "")
    text = f"{space}<reasoning>{reasoning}</reasoning>{space}<answer>{answer}18</answer>{space}"
    if text.count("<") == 4:  # else what is left of a removed tag may make a new one
        assert tag_format(completion(text)) == 0.8
        assert strict_format(completion(text)) == 1.0


@pytest.mark.parametrize(
    ("text", "rewards"),
    [
        ("<reasoning>" + "x" * MB + "</reasoning><answer>18</answer>", (2.0, 0.8, 1.0)),
        ("<reasoning></reasoning>" + " " * MB + "<answer>18" + "\n" * MB + "</answer>", (2.0, 0.8, 1.0)),
        ("<reasoning>" * (MB // 11) + "</answer>", (0.0, 0.2, 0.0)),
        ("<reasoning></reasoning>" * (MB // 23) + "<answer>18</answer>", (2.0, 0.4, 0.0)),
        (PERFECT * (MB // len(PERFECT)), (2.0, 0.0, 0.0)),
        ("<answer>" + "1" * MB + "</answer>", (0.0, 0.4, 0.0)),
        ("<answer>1e999999999</answer>" + "," * MB, (0.0, 0.4, 0.0)),
    ],
)
def test_one_megabyte(text: str, rewards: tuple[float, float, float]) -> None:
    given = completion(text)
    assert (correctness(given), tag_format(given), strict_format(given)) == rewards


def test_term_names() -> None:
    assert RewardTerm(correctness).name == "correctness"
    assert RewardTerm(Penalty()).name == "Penalty"
    assert RewardTerm(correctness).weight == 1.0


def test_sum_is_weighted_and_parts_are_not() -> None:
    rewards = RewardSum([RewardTerm(correctness), RewardTerm(tag_format, 0.5), RewardTerm(length, -0.25)])(
        [completion(PERFECT), completion("<answer>18.0</answer>"), completion("")]
    )
    assert list(rewards.parts) == ["correctness", "tag_format", "length"]
    torch.testing.assert_close(rewards.parts["correctness"], torch.tensor([2.0, 1.5, 0.0]), rtol=0, atol=0)
    torch.testing.assert_close(rewards.parts["tag_format"], torch.tensor([0.8, 0.4, 0.0]), rtol=0, atol=0)
    torch.testing.assert_close(rewards.parts["length"], torch.tensor([float(len(PERFECT)), 21.0, 0.0]), rtol=0, atol=0)
    expected = torch.tensor([2.0 + 0.4 - 0.25 * len(PERFECT), 1.5 + 0.2 - 5.25, 0.0])
    torch.testing.assert_close(rewards.total, expected, rtol=0, atol=0)
    assert {tensor.dtype for tensor in (rewards.total, *rewards.parts.values())} == {torch.float32}


def test_sum_of_no_completions_is_empty() -> None:
    rewards = RewardSum([RewardTerm(correctness), RewardTerm(tag_format)])([])
    assert rewards.total.shape == (0,)
    assert rewards.parts["tag_format"].shape == (0,)


def test_sum_survives_pickling() -> None:
    reward = pickle.loads(pickle.dumps(RewardSum([RewardTerm(correctness), RewardTerm(Penalty())])))
    assert reward([completion(PERFECT)]).total.tolist() == [2.0]


@pytest.mark.parametrize(
    ("terms", "problem"),
    [
        ([], "model.rewards is empty"),
        ([RewardTerm(length), RewardTerm(length, 2.0)], "model.rewards .* more than once: length"),
        ([RewardTerm(Penalty()), RewardTerm(Penalty())], "more than once: Penalty"),
        ([RewardTerm(length, float("nan"))], "model.rewards gives length the weight nan"),
        ([RewardTerm(length, float("inf"))], "model.rewards gives length the weight inf"),
    ],
)
def test_sum_refuses_bad_terms(terms: list[RewardTerm], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        RewardSum(terms)


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), -float("inf"), 1e39, 10**400, None, "1", 1j, torch.ones(1)]
)
def test_sum_refuses_what_is_not_a_finite_number(value: Any) -> None:
    def broken(completion: Completion) -> Any:
        return value

    with pytest.raises(
        RewardError, match=r"^model\.rewards: broken returned .* on the completion 'x'; it must return a finite number$"
    ) as error:
        RewardSum([RewardTerm(length), RewardTerm(broken)])([completion("x")])
    assert repr(value) in str(error.value)


@pytest.mark.parametrize("value", [True, 1, 1.0, Fraction(1), np.float32(1), np.int64(1)])
def test_sum_takes_any_real_number(value: Any) -> None:
    def one(completion: Completion) -> Any:
        return value

    assert RewardSum([RewardTerm(one, 3.0)])([completion("x")]).total.tolist() == [3.0]


def failure(reward: Any, timeout: float | None = None) -> str:
    with pytest.raises(RewardError) as error:
        RewardSum([RewardTerm(reward)], timeout)([completion("some\ntext")])
    assert error.value.__cause__ is not None
    return str(error.value)


def deep() -> None:
    json.loads("no")


def test_a_reward_function_that_raises_is_named_with_the_line_of_its_file() -> None:
    def broken(completion: Completion) -> float:
        deep()
        return 0.0

    line = deep.__code__.co_firstlineno + 1
    assert failure(broken) == (
        "model.rewards: broken raised (JSONDecodeError: Expecting value: line 1 column 1 (char 0)) "
        f"on the completion 'some\\ntext'; see {__file__}, line {line}"
    )


def test_a_reward_function_that_ends_the_process_is_named() -> None:
    def quitter(completion: Completion) -> float:
        sys.exit(3)

    assert failure(quitter).startswith(
        "model.rewards: quitter ended the process (SystemExit: 3) on the completion 'some"
    )


def test_a_reward_function_that_never_returns_is_named() -> None:
    def endless(completion: Completion) -> float:
        while True:
            try:
                time.sleep(60)
            except Exception:
                continue

    before = signal.getsignal(signal.SIGALRM)
    message = failure(endless, timeout=0.05)
    assert re.fullmatch(
        r"model\.rewards: endless took longer than model\.reward_timeout_s \(0\.05 s\) "
        rf"on the completion 'some\\ntext'; see {__file__}, line \d+",
        message,
    )
    assert signal.getsignal(signal.SIGALRM) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_each_call_has_the_whole_limit() -> None:
    def slow(completion: Completion) -> float:
        time.sleep(0.3)
        return 1.0

    rewards = RewardSum([RewardTerm(slow)], timeout=1.0)([completion("x")] * 5)
    assert rewards.total.tolist() == [1.0] * 5


def trl(prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
    return [0.0 for _ in completions]


def bare_trl(completions: list[str], **kwargs: Any) -> list[float]:
    return [0.0 for _ in completions]


def two(text: str, gold: str) -> float:
    return 0.0


def weighted(completion: Completion, *, level: int, topic: str, scale: float = 0.5) -> float:
    return level * scale if topic == "sums" else 0.0


def test_a_function_is_given_the_columns_that_it_asks_for() -> None:
    rewards = RewardSum([RewardTerm(weighted), RewardTerm(length)])
    assert rewards.columns == {"level": "weighted", "topic": "weighted"}, "what has a default is no column"
    rows = [{"level": 3, "topic": "sums"}, {"level": 4, "topic": "proofs"}]
    given = [dataclasses.replace(completion("x"), columns=columns) for columns in rows]
    assert rewards(given).total.tolist() == [2.5, 1.0]


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        (
            trl,
            r"trl\(prompts: .*, completions: .*\) -> .* takes a whole batch; here a reward is a function of one",
        ),
        (
            bare_trl,
            r"bare_trl\(completions: .* takes a whole batch; here a .*: def bare_trl\(completion: Completion\)",
        ),
        (
            two,
            r"two\(text: 'str', gold: 'str'\) -> 'float' cannot be called with one argument; a reward is",
        ),
    ],
)
def test_a_function_of_another_form_is_refused(function: Any, problem: str) -> None:
    with pytest.raises(ConfigError, match=rf"^model\.rewards: {problem}"):
        RewardSum([RewardTerm(function)])


@pytest.mark.parametrize(
    "function", [Penalty(), lambda c: 0.0, functools.partial(max, 1), lambda c, scale=2: 0.0, hash]
)
def test_whatever_takes_one_argument_is_accepted(function: Any) -> None:
    RewardSum([RewardTerm(function)])


def test_terms_are_configured_by_the_functions_path() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--rewards", type=list[RewardTerm])
    config = parser.parse_object(
        {
            "rewards": [
                {"function": "rlvr_pl.rewards.correctness"},
                {"function": "rlvr_pl.rewards.tag_format", "weight": 0.5},
            ]
        }
    )
    terms = parser.instantiate(config).rewards
    assert terms == [RewardTerm(correctness, 1.0), RewardTerm(tag_format, 0.5)]
