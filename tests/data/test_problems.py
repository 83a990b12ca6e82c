"""The generator of word problems: solved again from their text, reproduced in other processes, disjoint splits."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from itertools import islice

import pytest

from rlvr_pl.data import problems
from rlvr_pl.data.problems import (
    MAX_QUANTITY,
    Split,
    Story,
    draw_problem,
    embedded_problems,
    problem_stream,
    split_of,
)
from rlvr_pl.data.solutions import Work
from rlvr_pl.rewards import gold_answer

SAMPLE = 3000
SPLITS: tuple[Split, ...] = ("train", "test")
Event = Callable[[Story, random.Random], bool]
LINE = re.compile(r"([1-9]\d*)([-+*/])([1-9]\d*)=([1-9]\d*)")
TIMES = {"twice": 2, "three times": 3, "four times": 4}

# Every sentence that a problem may hold, after the names and items are put in.
OWNS = re.compile(r"{owner} has (\d+) {item}\.")
OWNS_PACKS = re.compile(r"{owner} has (\d+) (?:boxes|bags|packs|jars) of (\d+) {item}\.")
BUYS = re.compile(r"{owner} buys (\d+) more\.")
BUYS_PACKS = re.compile(r"{owner} buys (\d+) (?:boxes|bags|packs|jars) of (\d+)\.")
GIVES = re.compile(r"{owner} gives (\d+) to {friend}\.")
MULTIPLIES = re.compile(r"A month later {owner} has (twice|three times|four times) as many\.")
HALVES = re.compile(r"{owner} loses half of them\.")
SHARES = re.compile(r"{owner} sorts them into (\d+) equal piles and keeps one pile\.")
ASKS_COUNT = re.compile(r"How many {item} does {owner} have now\?")
ASKS_PRICE = re.compile(r"Each is worth \$(\d+)\. How many dollars are the {item} worth\?")
ASKS_TOTAL = re.compile(r"{friend} has (\d+) more than {owner}\. How many do they have together\?")


@pytest.fixture(scope="module")
def sample() -> list[dict[str, str]]:
    return [*embedded_problems("train", SAMPLE), *embedded_problems("test", SAMPLE // 4)]


def digest(rows: list[dict[str, str]]) -> str:
    return hashlib.blake2b(json.dumps(rows).encode(), digest_size=8).hexdigest()


def lines(row: dict[str, str]) -> list[str]:
    return row["answer"].split("\n")[:-1]


def with_placeholders(question: str) -> str:
    """The question with {owner}, {friend} and {item} in the places of the names and the item."""
    owner = question.split()[0]
    friends = [name for name in problems.NAMES if name != owner and re.search(rf"\b{name}\b", question)]
    (item,) = (item for item in problems.ITEMS if re.search(rf"\b{item}\b", question))
    assert owner in problems.NAMES
    assert len(friends) <= 1
    text = re.sub(rf"\b{owner}\b", "{owner}", question)
    text = re.sub(rf"\b{item}\b", "{item}", text)
    return re.sub(rf"\b{friends[0]}\b", "{friend}", text) if friends else text


def solve(question: str) -> tuple[int, list[int]]:
    """The answer by reading the question alone, and the quantities on the way to it."""
    text = with_placeholders(question)
    quantities: list[int] = []
    while True:
        text = text.lstrip()
        now = quantities[-1] if quantities else 0
        if match := ASKS_COUNT.fullmatch(text):
            return now, quantities
        if match := ASKS_PRICE.fullmatch(text):
            return now * int(match[1]), quantities
        if match := ASKS_TOTAL.fullmatch(text):
            return now + now + int(match[1]), quantities
        if not quantities and (match := OWNS.match(text)):
            now = int(match[1])
        elif not quantities and (match := OWNS_PACKS.match(text)):
            now = int(match[1]) * int(match[2])
        elif match := BUYS.match(text):
            now += int(match[1])
        elif match := BUYS_PACKS.match(text):
            now += int(match[1]) * int(match[2])
        elif match := GIVES.match(text):
            now -= int(match[1])
        elif match := MULTIPLIES.match(text):
            now *= TIMES[match[1]]
        elif match := HALVES.match(text):
            assert now % 2 == 0
            now //= 2
        elif match := SHARES.match(text):
            assert now % int(match[1]) == 0
            now //= int(match[1])
        else:
            raise AssertionError(f"no such sentence: {text!r}")
        quantities.append(now)
        text = text[match.end() :]


def test_rows_are_in_gsm8ks_schema(sample: list[dict[str, str]]) -> None:
    for row in sample:
        assert set(row) == {"question", "answer"}
        assert re.fullmatch(r"(?:\d+[-+*/]\d+=\d+\n)+#### [1-9]\d*", row["answer"])
        assert row["question"].endswith("?")
        assert row["question"] == " ".join(row["question"].split())
        assert gold_answer(row["answer"]) == row["answer"].rsplit("#### ")[-1]


def test_every_line_of_arithmetic_is_right_and_the_last_one_gives_the_answer(sample: list[dict[str, str]]) -> None:
    for row in sample:
        results = []
        for line in lines(row):
            match = LINE.fullmatch(line)
            assert match, line
            left, operator, right, result = int(match[1]), match[2], int(match[3]), int(match[4])
            if operator == "/":
                assert result * right == left, line  # exact division
            else:
                assert result == {"+": left + right, "-": left - right, "*": left * right}[operator], line
            results.append(result)
        assert int(gold_answer(row["answer"])) == results[-1]


def test_a_reader_of_the_question_alone_finds_the_same_answer(sample: list[dict[str, str]]) -> None:
    for row in sample:
        answer, quantities = solve(row["question"])
        assert answer == int(gold_answer(row["answer"])), row
        assert 2 <= len(quantities) <= 4  # the opening and one to three events
        assert all(2 <= quantity <= MAX_QUANTITY for quantity in quantities), row
        assert answer <= 9 * MAX_QUANTITY


@pytest.mark.parametrize("event", problems.EVENTS, ids=lambda event: event.__name__)
def test_an_event_keeps_the_quantity_in_range_or_leaves_the_story_alone(event: Event) -> None:
    happened = 0
    for quantity in (2, 3, 7, 8, 9, 10, 11, 97, 360, 500, 840, 900, 960, MAX_QUANTITY):
        for seed in range(200):
            story = Story("Mia", "Tom", "eggs", Work(quantity))
            if event(story, random.Random(seed)):
                happened += 1
                assert 2 <= story.quantity <= MAX_QUANTITY
                assert len(story.sentences) == 1
                assert story.work.lines[-1].endswith(f"={story.quantity}")
            else:
                assert story == Story("Mia", "Tom", "eggs", Work(quantity))
    assert 0 < happened < 14 * 200


def test_every_kind_of_sentence_occurs(sample: list[dict[str, str]]) -> None:
    texts = [with_placeholders(row["question"]) for row in sample[:500]]
    kinds = {name: pattern for name, pattern in globals().items() if isinstance(pattern, re.Pattern) and name != "LINE"}
    assert len(kinds) == len(problems.OPENINGS) + len(problems.EVENTS) + len(set(problems.QUESTIONS)) == 11
    assert {name for name, pattern in kinds.items() if any(map(pattern.search, texts))} == set(kinds)


def test_the_first_problems_stay_what_they_are() -> None:
    """The embedded model was trained on these; other ones would be another benchmark."""
    assert embedded_problems("train", 1) == [
        {
            "question": "Leo has 4 jars of 12 coins. Leo buys 84 more. Leo buys 6 jars of 8. Leo buys 8 packs of 4. "
            "Each is worth $3. How many dollars are the coins worth?",
            "answer": "4*12=48\n48+84=132\n6*8=48\n132+48=180\n8*4=32\n180+32=212\n212*3=636\n#### 636",
        }
    ]
    assert embedded_problems("test", 1, seed=1) == [
        {
            "question": "Zoe has 4 bags of 3 coins. Zoe loses half of them. How many coins does Zoe have now?",
            "answer": "4*3=12\n12/2=6\n#### 6",
        }
    ]
    assert digest(embedded_problems("train", 200)) == "8bd9c08b0c7ad86a"
    assert digest(embedded_problems("test", 200)) == "baf122bb51d54aee"


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_another_process_makes_the_same_problems(hash_seed: str) -> None:
    code = (
        "import json, runpy, sys\n"
        "make = runpy.run_path(sys.argv[1])['embedded_problems']\n"
        "print(json.dumps([make(split, 200, seed=5) for split in ('train', 'test')]))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, problems.__file__],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert json.loads(out) == [embedded_problems(split, 200, seed=5) for split in SPLITS]


def test_the_global_random_state_is_neither_read_nor_moved() -> None:
    random.seed(1)
    first = embedded_problems("train", 50)
    state = random.getstate()
    random.seed(2)
    assert embedded_problems("train", 50) == first
    random.seed(1)
    assert random.getstate() == state


def test_seeds_and_splits_give_other_problems() -> None:
    questions = [{row["question"] for row in embedded_problems(split, 300, s)} for split in SPLITS for s in (0, 1)]
    for i, some in enumerate(questions):
        assert len(some) == 300
        for others in questions[i + 1 :]:
            assert len(some & others) < 30  # short problems may coincide, most do not


@pytest.mark.parametrize("split", SPLITS)
def test_a_larger_size_has_the_smaller_one_as_its_prefix(split: Split) -> None:
    whole = embedded_problems(split, 400, seed=3)
    for size in (0, 1, 7, 399):
        assert embedded_problems(split, size, seed=3) == whole[:size]


@pytest.mark.parametrize("split", SPLITS)
def test_a_stream_never_repeats_a_question(split: Split) -> None:
    questions = [problem.question for problem in islice(problem_stream(split, seed=0), SAMPLE)]
    assert len(set(questions)) == SAMPLE


def test_train_and_test_never_share_a_question() -> None:
    drawn = {
        split: {row["question"] for seed, size in ((0, 2000), (1, 100), (17, 1000)) for row in make(split, size, seed)}
        for split, make in ((split, embedded_problems) for split in SPLITS)
    }
    assert len(drawn["train"]) > 2500
    assert len(drawn["test"]) > 2500
    assert drawn["train"].isdisjoint(drawn["test"])
    for split in SPLITS:
        assert {split_of(question) for question in drawn[split]} == {split}


def test_one_question_in_eight_is_a_test_question() -> None:
    rng = random.Random(0)
    splits = [split_of(draw_problem(rng).question) for _ in range(4000)]
    assert 440 < splits.count("test") < 560  # 500 ± 3σ, σ = 21
    assert [i for i in range(16) if split_of(str(i)) == "test"] == [3, 11]
