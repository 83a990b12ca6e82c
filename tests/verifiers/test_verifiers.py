"""Choices, texts, and verifiers of one's own: what they read, what they refuse, and who is named when they fail."""

from __future__ import annotations

import re
from typing import Any

import pytest

from rlvr_pl.evaluation import EvaluationMetrics, grade, majority_ties
from rlvr_pl.rewards import Completion, RewardSum, RewardTerm, correctness
from rlvr_pl.types import ConfigError
from rlvr_pl.verifiers import Choice, Exact, Number, Verifier, VerifierError, find_verifier


def completion(text: str, gold: str, verifier: Verifier, *alternatives: str) -> Completion:
    return Completion(text, "Which?", gold, 7, False, alternatives=alternatives, verifier=verifier)


class Anagram(Verifier):
    """One small class: the same letters in any order."""

    def equal(self, answer: str, gold: str) -> bool:
        return sorted(answer) == sorted(gold)


class Broken(Verifier):
    def equal(self, answer: str, gold: str) -> bool:
        raise KeyError("oops")


def longer(answer: str, gold: str) -> bool:
    return len(answer) >= len(gold)


def of_one(answer: str) -> bool:
    return True


# Numbers.


@pytest.mark.parametrize(
    ("value", "gold"),
    [
        (18, "18"),
        (-3, "-3"),
        (18.0, "18"),
        (0.1, "0.1"),
        (1e-7, "1e-07"),
        ("18", "18"),
        (" $1,234 ", "$1,234"),
        ("2+3=5\n#### 5", "5"),
    ],
)
def test_gold_numbers_as_people_have_them(value: object, gold: str) -> None:
    assert Number().gold(value) == gold
    assert Number().equal(gold, gold)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (True, "its answer is bool, neither text nor a number"),
        ({"a": 1}, "its answer is dict, neither text nor a number"),
        (float("inf"), "its answer is no number, and has none after a '####'; it ends in 'inf'"),
        ("B", "its answer is no number, and has none after a '####'; it ends in 'B'"),
        ("2+3=5", "its answer is no number, and has none after a '####'; it ends in '2+3=5'"),
        ("#### five", "The text after '####' is not a number: 'five'."),
    ],
)
def test_what_is_no_gold_number(value: object, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(reason)}$"):
        Number().gold(value)


# Choices.


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        *[(text, "B") for text in ("B", "b", "(B)", "(b)", "B.", "B)", "**B**", r"\boxed{B}", r"$\text{B}$")],
        *[(text, "B") for text in ("B. Paris", "B: Paris", "B) Paris", "B - Paris", "(B) Paris", "B. A cat")],
        *[(text, "B") for text in ("Option B", "The answer is B", "the correct answer is (B).", "answer: B")],
        *[(text, None) for text in ("A or B", "A, B", "(A) or (B)", "A) or B)", "A. and B.", "A/B", "AB")],
        *[(text, None) for text in ("A cat", "I think B", "Bob", "F", "1", "", "B" * 300)],
    ],
)
def test_the_letter_that_a_text_means(text: str, letter: str | None) -> None:
    assert Choice().letter(text) == letter
    assert Choice().equal(text, "B") == (letter == "B")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("I think it is B.", "B"),
        ("A cat sat. So the answer is (C), a dog", "C"),
        ("First A, then D", "D"),
        ("A is right", "A"),
        ("<answer>B</answer>, not A", "B"),
        ("no letter", None),
        ("A" * 1_000_000 + " B " + "(" * 1_000_000, "B"),
    ],
)
def test_the_letter_of_a_completion_however_it_is_given(text: str, found: str | None) -> None:
    assert Choice().extract_flexible(text) == found


def test_gold_letters() -> None:
    assert [Choice().gold(value) for value in ("C", "c", "(C)", "so #### C")] == ["C"] * 4
    assert [Choice(first=0).gold(0), Choice(first=1).gold(3)] == ["A", "C"]
    for verifier, value, reason in (
        (Choice(), "Paris", "its answer is none of the letters ABCDE (data.verifier, letters): 'Paris'"),
        (Choice(), 2, "its answer is the number 2; say what number the first choice has, 0 or 1: data.verifier: {"),
        (Choice("ABCD", first=0), 4, "its answer is the number 4; the choices ABCD are counted from 0"),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(reason)}"):
            verifier.gold(value)
    with pytest.raises(ConfigError, match=r"^data\.verifier: letters is 'AAB'; it must be different capitals"):
        Choice("AAB")


# Texts.


def test_texts_are_equal_but_for_capitals_and_white_space() -> None:
    equal = Exact().equal
    assert equal("  New\n York ", "new york")
    assert equal("STRASSE", "straße")
    assert equal("e\u0301t\u00e9", "\u00c9T\u00c9")
    assert not equal("Paris.", "Paris")
    assert not equal("x2", "x²")
    assert not equal(" ", "")
    assert Exact().extract_flexible("so it is\n Paris \n") == "Paris"
    assert Exact().extract_flexible("<answer>Paris</answer> is it") == "Paris"
    assert Exact().extract_flexible(" \n") is None


# One verifier for rewards, metrics and votes.


def test_one_verifier_serves_reward_and_grade() -> None:
    for text, reward, correct, flexible in (
        ("<answer>B</answer>", 2.0, True, True),
        ("<answer>(b)</answer>", 1.5, True, True),
        ("It is B", 0.0, False, True),
        ("<answer>C</answer>", 0.0, False, False),
    ):
        given = completion(text, "B", Choice())
        graded = grade(given)
        assert (correctness(given), graded.correct, graded.correct_flexible) == (reward, correct, flexible)


def test_any_accepted_answer_is_right() -> None:
    for text, reward in (("US", 2.0), ("united  states", 1.5), ("France", 0.0)):
        given = completion(f"<answer>{text}</answer>", "United States", Exact(), "US")
        assert (correctness(given), grade(given).correct) == (reward, reward > 0)


@pytest.mark.parametrize(
    ("extracted", "correct", "ties"),
    [
        (["(B)", "b", "C"], [True, True, False], 1),
        (["B", "C", "c)"], [True, False, False], 0),
        (["B", "C", "A or B", "D"], [True, False, False, False], 3),
        ([None, "A or B", "no letter"], [False, False, False], 0),
    ],
)
def test_votes_that_the_verifier_finds_equal_are_one(
    extracted: list[str | None], correct: list[bool], ties: int
) -> None:
    assert majority_ties(extracted, correct, Choice()) == ties


def test_accepted_answers_are_one_vote() -> None:
    assert majority_ties(["US", "United States", "France"], [True, True, False], Exact()) == 1
    assert majority_ties(["US", "France", "france"], [True, False, False], Exact()) == 0


def test_maj_at_n_is_counted_by_the_verifier() -> None:
    metrics = EvaluationMetrics(samples=3)
    texts = ["<answer>B</answer>", "<answer>(c)</answer>", "<answer>C</answer>"]
    metrics.update([grade(completion(text, "C", Choice())) for text in texts], Choice())
    assert float(metrics.compute()["maj_at_3"]) == 1.0


# Verifiers of one's own.


@pytest.mark.parametrize("own", [Anagram, Anagram(), f"{__name__}.Anagram"])
def test_a_class_of_ones_own(own: Any) -> None:
    verifier = find_verifier(own)
    assert grade(completion("<answer>listen</answer>", "silent", verifier)).correct
    assert grade(completion("so:\nlisten", "silent", verifier)).correct_flexible
    assert not grade(completion("<answer>loud</answer>", "silent", verifier)).correct
    assert verifier.name == f"{__name__}.Anagram()"


@pytest.mark.parametrize("own", [longer, f"{__name__}.longer"])
def test_a_function_of_ones_own(own: Any) -> None:
    verifier = find_verifier(own)
    assert [verifier.equal("abc", gold) for gold in ("ab", "abcd")] == [True, False]
    assert verifier.name == f"{__name__}.longer"


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("maths", "there is no 'maths'; choose from number, choice, math, exact, or give the path of a class or "),
        ("no_such.thing", "cannot import 'no_such.thing': No module named 'no_such'"),
        (f"{__name__}.nothing", f"cannot import '{__name__}.nothing': module "),
        (f"{__name__}.ConfigError", f"{__name__}.ConfigError is no subclass of rlvr_pl.verifiers.Verifier"),
        (f"{__name__}.of_one", f"{__name__}.of_one is neither a verifier nor a function of two texts: def same("),
    ],
)
def test_what_is_no_verifier_is_refused(name: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(f'data.verifier: {problem}')}"):
        find_verifier(name)


def test_a_verifier_that_fails_is_named_with_its_line() -> None:
    line = Broken.equal.__code__.co_firstlineno + 1
    message = f"data.verifier: Broken raised (KeyError: 'oops') on 'x'; see {__file__}, line {line}"
    given = completion("<answer>x</answer>", "y", Broken())
    for judge in (grade, RewardSum([RewardTerm(correctness)]).__call__):
        with pytest.raises(VerifierError, match=f"^{re.escape(message)}$"):
            judge(given if judge is grade else [given])  # type: ignore[arg-type]


def test_names_tell_settings_apart() -> None:
    names = {verifier.name for verifier in (Number(), Choice(), Choice("ABCD"), Choice(first=0), Exact())}
    assert len(names) == 5
    assert Choice("ABCD").name == Choice("ABCD").name == "rlvr_pl.verifiers.choice.Choice(first=None, letters='ABCD')"
