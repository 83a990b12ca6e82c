"""Answer extraction and verification: exact values, properties on arbitrary text, large adversarial texts, GSM8K."""

from __future__ import annotations

import json
import re
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlvr_pl.verifiers.number import (
    MAX_DIGITS,
    MAX_EXPONENT,
    MAX_LENGTH,
    gold_answer,
    last_number,
    parse_number,
    same_number,
)
from rlvr_pl.verifiers.tags import tagged_answer
from tests.helpers.paths import SHARED

GSM8K = SHARED / "gsm8k"
MB = 1_000_000

TAG_FRAGMENTS = ["<answer>", "</answer>", "<reasoning>", "</reasoning>", "<answer", "</", ">", "####", " ", "\n"]
NUMBER_FRAGMENTS = ["0", "1", "23", "456", "1,234", ",", ".", "-", "−", "–", "+", "/", "e", "E-", "$", "%", "^"]
OTHER_FRAGMENTS = ["\\boxed{", "}", "**", "(", ")", "half", "k", "_", "١", "½", "²", "三", "\x00", "\u200b", "\ud800"]
any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
soup = st.lists(st.sampled_from(TAG_FRAGMENTS + NUMBER_FRAGMENTS + OTHER_FRAGMENTS), max_size=60).map("".join)
texts = any_text | soup


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer>18</answer>", "18"),
        ("<reasoning>9*2=18</reasoning>\n<answer>\n18\n</answer>\n", "18"),
        ("<answer>1</answer> no, <answer>2</answer>", "2"),
        ("<answer>1<answer>2</answer>", "2"),
        ("<answer>1</answer><answer>2", "1"),
        ("<answer>1</answer></answer>", "1"),
        ("</answer><answer>1</answer>", "1"),
        ("<answer>1<answer>2</answer>3</answer>", "2"),
        ("<answer></answer>", ""),
        ("<answer>1</answer", None),
        ("<answer>1", None),
        ("</answer>", None),
        ("</answer><answer>", None),
        ("<Answer>1</Answer>", None),
        ("< answer>1</answer>", None),
        ("18", None),
        ("", None),
    ],
)
def test_tagged_answer(text: str, answer: str | None) -> None:
    assert tagged_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is 18.", "18"),
        ("9 * 2 = $18", "18"),
        ("She makes $1,234.50 a day", "1,234.50"),
        ("It fell to -3°", "-3"),
        ("It fell to −3°", "-3"),
        ("It owes -$5", "-5"),
        ("It owes $-5", "-5"),
        ("It rose by +4", "4"),
        ("a gain of 50%", "50"),
        ("about 3e2 grams", "3e2"),
        ("exactly 1/2", "1/2"),
        ("5-3", "3"),
        ("10 - 4", "4"),
        ("f(2)-3", "3"),
        ("covid-19", "19"),
        ("wait...5", "5"),
        ("0.5", "0.5"),
        (".5", ".5"),
        ("1,23", "23"),
        ("1,2,3", "3"),
        ("1.2.3", "3"),
        ("3/4/2024", "2024"),
        ("18, ١٩", "18"),
        ("#### 72", "72"),
        ("no number", None),
        ("½ ١٨ ²", None),
        ("", None),
    ],
)
def test_last_number(text: str, number: str | None) -> None:
    assert last_number(text) == number


def test_last_number_is_never_a_piece_of_a_longer_one() -> None:
    assert last_number("1" * MAX_LENGTH) == "1" * MAX_LENGTH
    for junk in ("", "x", "x " * MAX_LENGTH):
        assert last_number(junk + "1" * (MAX_LENGTH + 1)) is None
        assert last_number(junk + "1" + ",234" * MAX_LENGTH) is None
        assert last_number(junk + "1." + "0" * (MAX_LENGTH - 1)) is None
        assert last_number(junk + "1/" + "0" * (MAX_LENGTH - 1)) is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("18", 18),
        ("18.", 18),
        ("18.0", 18),
        ("00018", 18),
        ("-3", -3),
        ("−3", -3),
        ("–3", -3),
        ("+4", 4),
        ("-0", 0),
        (".5", Fraction(1, 2)),
        ("-.5", Fraction(-1, 2)),
        ("1,234", 1234),
        ("1,234.50", Fraction(2469, 2)),
        ("109,200,000", 109_200_000),
        ("3e2", 300),
        ("1.5E+3", 1500),
        ("1e-3", Fraction(1, 1000)),
        ("1/2", Fraction(1, 2)),
        ("-1/2", Fraction(-1, 2)),
        ("1,000/.5", 2000),
        ("$18", 18),
        ("\\$18", 18),
        ("-$5", -5),
        ("$-5", -5),
        ("-\\$5", -5),
        ("€5", 5),
        ("50%", 50),
        ("18 dollars", 18),
        ("18dollars", 18),
        ("18 apples.", 18),
        ("5 km/h", 5),
        ("18-inch", 18),
        (" \n**18**\n", 18),
        ("*-18*", -18),
        ("\\boxed{18}", 18),
        ("\\(18\\)", 18),
        ("(-18)", -18),
        ("...5", 5),
        ("The answer is 18", 18),
        ("So, 18", 18),
        ("x = -3", -3),
        ("the well-known 18", 18),
    ],
)
def test_parse_number(text: str, value: int | Fraction) -> None:
    assert parse_number(text) == value


REFUSED = {
    "no number": ["", " ", "NaN", "nan", "inf", "-inf", "Infinity", "∞", "eighteen", ".", "-", "$", "e", "/", ",", "%"],
    "several": ["3 or 4", "18 18", "18 = 18", "9+9", "9 - 9", "1 1/2", "1/2/3", "3/4/2024", "2^5", "12:30", "1 000"],
    "run together": ["1_000", "1.2.3", "1..2", "3e2.5", "1e−3", "1/-2", "1.5/2/3", "0x1F2", "\\frac{1}{2}", "H2O: 18"],
    "grouping": [
        "1,23",
        "1,2345",
        "12,34,567",
        "1234,567",
        "0,123",
        "1.234,56",
        "1,234,56",
        ",234",
        "1,,234",
        "1{,}234",
    ],
    "stray minus": ["- 3", "− 3", "—3", "--5", "-**3**", "-\\boxed{3}", "-$-5", "word-\\$.5", "answer - 3", "covid-19"],
    "stray operator": ["x/2", "x^2"],
    "value words": ["minus 3", "Negative 3", "5k", "5 K", "5 thousand", "2.5 Million", "2 dozens", "18 and a half"],
    "other scripts": ["١٨", "１８", "18 ١٩", "½", "1½", "5²", "Ⅷ", "18 万"],
    "bounds": ["1/0", "0/0", "1/0.0", "1e999999999", "1e-999999999", "1/1e999999999", f"1e{'9' * 200}"],
}


@pytest.mark.parametrize("text", [text for texts in REFUSED.values() for text in texts])
def test_parse_number_refuses(text: str) -> None:
    assert parse_number(text) is None


def test_parse_number_bounds() -> None:
    assert parse_number("9" * MAX_DIGITS) == 10**MAX_DIGITS - 1
    assert parse_number("9" * (MAX_DIGITS + 1)) is None
    assert parse_number("." + "0" * (MAX_DIGITS - 1) + "1") == Fraction(1, 10**MAX_DIGITS)
    assert parse_number("." + "0" * MAX_DIGITS + "1") is None
    assert parse_number(f"1e{MAX_EXPONENT}") == 10**MAX_EXPONENT
    assert parse_number(f"1e-{MAX_EXPONENT}") == Fraction(1, 10**MAX_EXPONENT)
    assert parse_number(f"1e{MAX_EXPONENT + 1}") is None
    assert parse_number(f"1e-{MAX_EXPONENT + 1}") is None
    assert parse_number("18" + "x" * (MAX_LENGTH - 2)) == 18
    assert parse_number("18" + "x" * (MAX_LENGTH - 1)) is None
    assert parse_number(" " * MB + "18" + "\n" * MB) == 18


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("18", "18.0", True),
        ("1,234", "$1234", True),
        ("1/2", "50e-2", True),
        ("0.3", "3/10", True),
        ("0.1", "0.1000000000000000055511151231257827", False),
        ("9007199254740993", "9007199254740992", False),
        ("18", "-18", False),
        ("18", "18 or 19", False),
        ("50%", "0.5", False),
        ("x", "x", False),
        ("", "", False),
        (None, "18", False),
        ("18", None, False),
        (None, None, False),
    ],
)
def test_same_number(a: str | None, b: str | None, same: bool) -> None:
    assert same_number(a, b) is same


@pytest.mark.parametrize(
    ("answer", "gold"),
    [("9*2=18\n#### 18", "18"), ("####1,234 ", "1,234"), ("#### 1\n#### -2\n", "-2"), ("##### 3", "3")],
)
def test_gold_answer(answer: str, gold: str) -> None:
    assert gold_answer(answer) == gold


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ("18", "no '####'.*'18'"),
        ("", "no '####'"),
        ("### 18", "no '####'"),
        ("####", "not a number: ''"),
        ("#### eighteen", "not a number: 'eighteen'"),
        ("#### 3 or 4", "not a number: '3 or 4'"),
    ],
)
def test_gold_answer_names_the_problem(answer: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        gold_answer(answer)


@settings(max_examples=200, deadline=None)
@given(texts)
def test_tagged_answer_is_the_last_block_without_tags_inside(text: str) -> None:
    blocks: list[str] = re.findall(r"<answer>((?:(?!</?answer>).)*)</answer>", text, re.DOTALL)
    assert tagged_answer(text) == (blocks[-1].strip() if blocks else None)


@settings(max_examples=200, deadline=None)
@given(texts, texts)
def test_tagged_answer_finds_a_block_anywhere(before: str, after: str) -> None:
    after = after.replace("</answer>", "")
    assert tagged_answer(f"{before}<answer> 18 </answer>{after}") == "18"


@settings(max_examples=200, deadline=None)
@given(texts)
def test_last_number_exists_where_a_digit_does_and_reads_as_a_number(text: str) -> None:
    number = last_number(text)
    if re.search("[0-9]", text) is None:
        assert number is None
    elif number is not None:
        assert last_number(number) == number
        assert number.strip() == number
        bounded = len(re.sub("[^0-9]", "", number)) <= MAX_DIGITS and "e" not in number.lower() and "/" not in number
        assert parse_number(number) is not None or not bounded
    else:
        assert re.search(rf"[-+0-9.,/eE$]{{{MAX_LENGTH}}}", text) is not None


@settings(max_examples=200, deadline=None)
@given(texts)
def test_parse_number_reads_only_what_last_number_finds(text: str) -> None:
    value = parse_number(text)
    number = last_number(text)
    assert same_number(text, text) is (value is not None)
    if value is not None:
        assert number is not None
        assert parse_number(number) == value


@settings(max_examples=200, deadline=None)
@given(texts)
def test_gold_answer_returns_a_number_or_raises_value_error(text: str) -> None:
    try:
        gold = gold_answer(text)
    except ValueError:
        return
    assert same_number(gold, gold)


decimals = st.decimals(-(10**12), 10**12, allow_nan=False, places=4)


@settings(max_examples=200, deadline=None)
@given(
    decimals, st.booleans(), st.sampled_from(["{}", " **{}** ", "{} dollars.", "\\boxed{{{}}}", "The answer is {}."])
)
def test_decimals_round_trip(value: Fraction, grouped: bool, form: str) -> None:
    text = f"{value:,f}" if grouped else f"{value:f}"
    assert parse_number(form.format(text)) == Fraction(value)
    assert parse_number(str(last_number(form.format(text)))) == Fraction(value)


@settings(max_examples=200, deadline=None)
@given(st.integers(-(10**9), 10**9), st.integers(1, 10**9), st.booleans())
def test_fractions_round_trip(numerator: int, denominator: int, grouped: bool) -> None:
    text = f"{numerator:,}/{denominator:,}" if grouped else f"{numerator}/{denominator}"
    assert parse_number(text) == Fraction(numerator, denominator)
    assert last_number(text) == text


@settings(max_examples=100, deadline=None)
@given(st.integers(-(10**9), 10**9), st.integers(-MAX_EXPONENT, MAX_EXPONENT))
def test_exponents_round_trip(mantissa: int, exponent: int) -> None:
    assert parse_number(f"{mantissa}e{exponent}") == mantissa * Fraction(10) ** exponent


@settings(max_examples=100, deadline=None)
@given(st.integers(), st.integers())
def test_two_numbers_are_refused(a: int, b: int) -> None:
    assert parse_number(f"{a} {b}") is None
    assert parse_number(f"{a} or {b}") is None


# 1 MB of each: where a function backtracked or built the number, these would not end.
@pytest.mark.parametrize(
    ("text", "tagged", "last"),
    [
        ("<answer>" * (MB // 8), None, None),
        ("</answer>" * (MB // 9), None, None),
        ("<answer>" * (MB // 8) + "7</answer>", "7", "7"),
        ("<answer>7</answer>" + "<answer>" * (MB // 8), "7", "7"),
        ("<answer>7" + "</answer>" * (MB // 9), "7", "7"),
        ("<answer>" * (MB // 17) + "7" + "</answer>" * (MB // 17), "7", "7"),
        ("<answer>7</answer>" * (MB // 18), "7", "7"),
        ("<answer" * (MB // 7), None, None),
        ("<" * MB, None, None),
        ("<answer>" + " " * MB + "7" + " " * MB + "</answer>", "7", "7"),
        ("1" * MB, None, None),
        ("1," * (MB // 2), None, "1"),
        ("1" + ",234" * (MB // 4), None, None),
        ("," * MB, None, None),
        ("," * MB + "7", None, "7"),
        ("7" + "," * MB, None, "7"),
        ("." * MB + "7", None, "7"),
        ("-" * MB + "7", None, "7"),
        ("1e" * (MB // 2) + " 7", None, "7"),
        ("1/" * (MB // 2) + " 7", None, "7"),
        ("1e" + "9" * MB, None, None),
        ("١" * MB, None, None),
        ("\x00" * MB, None, None),
        ("7" + "😀" * (MB // 4), None, "7"),
    ],
)
def test_one_megabyte(text: str, tagged: str | None, last: str | None) -> None:
    assert tagged_answer(text) == tagged
    assert last_number(text) == last
    assert parse_number(text) is None
    assert same_number(text, text) is False
    with pytest.raises(ValueError, match="no '####'"):
        gold_answer(text)
    with pytest.raises(ValueError, match="not a number"):
        gold_answer("####" + text)


def test_one_megabyte_of_one_e_ends_in_some_number() -> None:
    assert parse_number(str(last_number("1e" * (MB // 2)))) in (1, 10)


@pytest.mark.skipif(not GSM8K.is_dir(), reason="the GSM8K files are not in ../shared/gsm8k")
@pytest.mark.parametrize(("split", "size"), [("train", 7473), ("test", 1319)])
def test_gsm8k_golds(split: str, size: int) -> None:
    answers = [json.loads(line)["answer"] for line in (GSM8K / f"{split}.jsonl").read_text("utf-8").splitlines()]
    assert len(answers) == size
    for answer in answers:
        gold = gold_answer(answer)
        assert parse_number(gold) == int(gold.replace(",", ""))
        assert same_number(gold, gold)
        assert last_number(answer) == gold
