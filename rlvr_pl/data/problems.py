"""A seeded generator of multi-step arithmetic word problems in GSM8K's schema.

Each problem is a row ``{"question": str, "answer": str}`` whose answer ends in ``#### <integer>``, as in
``openai/gsm8k``. A problem follows one quantity through two to four events; each adds a step, which
:mod:`rlvr_pl.data.solutions` solves in one or two lines of arithmetic.

A problem belongs to the test split or to the train split by a hash of its question, so the two can never share one,
whatever seeds and sizes are asked for.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from rlvr_pl.data.solutions import RIGHT, Step, Work, answer_text

Split = Literal["train", "test"]

TEST_SHARE = 8  # one question in eight belongs to the test split
MAX_QUANTITY = 999  # no intermediate result is larger

NAMES = ("Mia", "Tom", "Ana", "Ben", "Lea", "Sam", "Zoe", "Max", "Eva", "Leo", "Ida", "Jon")
ITEMS = ("apples", "cards", "coins", "books", "stamps", "shells", "pens", "beads", "eggs", "toys")
PACKS = ("boxes", "bags", "packs", "jars")
MULTIPLES = {2: "twice", 3: "three times", 4: "four times"}


@dataclass
class Story:
    """A problem in the making: sentences and steps so far, and the work that solves them."""

    owner: str
    friend: str
    item: str
    work: Work = field(default_factory=Work)
    sentences: list[str] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)

    @property
    def quantity(self) -> int:
        return self.work.quantity

    @property
    def question(self) -> str:
        return " ".join(self.sentences)

    def tell(self, sentence: str) -> None:
        self.sentences.append(sentence)

    def take(self, kind: str, *numbers: int) -> None:
        """Append a step, and solve it."""
        self.steps.append(Step(kind, numbers))
        self.work.quantity = RIGHT[kind](self.work, *numbers)


# Openings: how the quantity comes into being.


def owns(story: Story, rng: random.Random) -> None:
    count = rng.randint(5, 99)
    story.tell(f"{story.owner} has {count} {story.item}.")
    story.take("owns", count)


def owns_packs(story: Story, rng: random.Random) -> None:
    packs, each = rng.randint(3, 12), rng.randint(3, 12)
    story.tell(f"{story.owner} has {packs} {rng.choice(PACKS)} of {each} {story.item}.")
    story.take("owns_packs", packs, each)


# Events: each returns False, and leaves the story alone, where its arithmetic would not come out in range.


def buys(story: Story, rng: random.Random) -> bool:
    count = rng.randint(4, 99)
    if story.quantity + count > MAX_QUANTITY:
        return False
    story.tell(f"{story.owner} buys {count} more.")
    story.take("buys", count)
    return True


def buys_packs(story: Story, rng: random.Random) -> bool:
    packs, each = rng.randint(2, 9), rng.randint(3, 12)
    if story.quantity + packs * each > MAX_QUANTITY:
        return False
    story.tell(f"{story.owner} buys {packs} {rng.choice(PACKS)} of {each}.")
    story.take("buys_packs", packs, each)
    return True


def gives(story: Story, rng: random.Random) -> bool:
    if story.quantity < 10:
        return False
    count = rng.randint(3, min(99, story.quantity - 2))
    story.tell(f"{story.owner} gives {count} to {story.friend}.")
    story.take("gives", count)
    return True


def multiplies(story: Story, rng: random.Random) -> bool:
    factor = rng.choice(tuple(MULTIPLES))
    if story.quantity * factor > MAX_QUANTITY:
        return False
    story.tell(f"A month later {story.owner} has {MULTIPLES[factor]} as many.")
    story.take("multiplies", factor)
    return True


def halves(story: Story, rng: random.Random) -> bool:
    if story.quantity % 2 or story.quantity < 8:
        return False
    story.tell(f"{story.owner} loses half of them.")
    story.take("halves")
    return True


def shares(story: Story, rng: random.Random) -> bool:
    divisors = [d for d in range(3, 10) if story.quantity % d == 0 and story.quantity // d > 2]
    if not divisors:
        return False
    parts = rng.choice(divisors)
    story.tell(f"{story.owner} sorts them into {parts} equal piles and keeps one pile.")
    story.take("shares", parts)
    return True


# Questions: each asks for a number that follows from the quantity.


def asks_count(story: Story, rng: random.Random) -> None:
    story.tell(f"How many {story.item} does {story.owner} have now?")
    story.take("count")


def asks_price(story: Story, rng: random.Random) -> None:
    price = rng.randint(2, 9)
    story.tell(f"Each is worth ${price}. How many dollars are the {story.item} worth?")
    story.take("price", price)


def asks_total(story: Story, rng: random.Random) -> None:
    more = rng.randint(3, 60)
    story.tell(f"{story.friend} has {more} more than {story.owner}. How many do they have together?")
    story.take("total", more)


OPENINGS: tuple[Callable[[Story, random.Random], None], ...] = (owns, owns_packs)
EVENTS: tuple[Callable[[Story, random.Random], bool], ...] = (buys, buys_packs, gives, multiplies, halves, shares)
QUESTIONS: tuple[Callable[[Story, random.Random], None], ...] = (asks_count, asks_count, asks_price, asks_total)


def draw_problem(rng: random.Random) -> Story:
    """Draw one problem: an opening, one to three events, a question."""
    owner, friend = rng.sample(NAMES, 2)
    story = Story(owner, friend, rng.choice(ITEMS))
    rng.choice(OPENINGS)(story, rng)
    remaining_events = rng.randint(1, 3)
    while remaining_events:
        if rng.choice(EVENTS)(story, rng):
            remaining_events -= 1
    rng.choice(QUESTIONS)(story, rng)
    return story


def split_of(question: str) -> Split:
    """Tell which split a question belongs to: a function of its text alone."""
    digest = hashlib.blake2b(question.encode(), digest_size=4).digest()
    return "test" if int.from_bytes(digest, "big") % TEST_SHARE == 0 else "train"


def problem_stream(split: Split, seed: int) -> Iterator[Story]:
    """Draw distinct problems of one split without end; the same ones for the same ``seed``."""
    rng = random.Random(f"rlvr_pl/{split}/{seed}")
    seen: set[str] = set()
    while True:
        problem = draw_problem(rng)
        if split_of(problem.question) == split and problem.question not in seen:
            seen.add(problem.question)
            yield problem


def embedded_problems(split: Split, size: int, seed: int = 0) -> list[dict[str, str]]:
    """Draw the first ``size`` problems of :func:`problem_stream`, as rows with the keys ``question`` and ``answer``."""
    problems = itertools.islice(problem_stream(split, seed), size)
    return [{"question": problem.question, "answer": answer_text(problem.work)} for problem in problems]
