"""Mathematics: the library's verdicts, and a process that an endless expression ends."""

from __future__ import annotations

import os
import pickle
import re

import pytest

from rlvr_pl.evaluation import grade
from rlvr_pl.rewards import Completion, correctness
from rlvr_pl.verifiers import Math
from rlvr_pl.verifiers.mathematics import expression, last_boxed

ENDLESS = "9^{9^{9^{9}}}"


@pytest.fixture(scope="module")
def verifier() -> Math:
    return Math()


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"so \boxed{18}.", "18"),
        (r"\boxed{1} no, \boxed{ \frac{1}{2} }", r"\frac{1}{2}"),
        (r"\boxed{\text{a \} b}}", r"\text{a \} b}"),
        (r"\fbox{3}", "3"),
        (r"\boxed{1} and \boxed{2", "1"),
        (r"\boxed{2", None),
        (r"{\boxed 2}", None),
        ("}} 18", None),
        (r"\boxed{" * 200_000 + "}", ""),
    ],
)
def test_the_last_box(text: str, content: str | None) -> None:
    assert last_boxed(text) == content


@pytest.mark.parametrize(
    ("answer", "inside"),
    [
        ("$x$", "x"),
        ("$$x$$.", None),
        ("$$x$$", "x"),
        (r"\(x\)", "x"),
        (r"\boxed{x}", "x"),
        (r"\$18", r"\$18"),
        ("$3$ or $4$", None),
        ("", None),
        ("1" * 513, None),
    ],
)
def test_an_expression_is_taken_out_of_what_stands_around_it(answer: str, inside: str | None) -> None:
    assert expression(answer) == inside


@pytest.mark.parametrize(
    ("answer", "gold", "equal"),
    [
        ("0.5", r"\frac{1}{2}", True),
        ("1+x^2", "x^2 + 1", True),
        (r"$\frac{2}{4}$", r"\boxed{\frac12}", True),
        ("18", "018", True),
        ("2x", "2", False),
        ("(1,2)", "[1,2]", False),
        (r"3 \text{ or } 4", "4", False),
        ("$3$ or $4$", "4", False),
        ("", "4", False),
        (r"\frac", "4", False),
        ("\ud800", "4", False),
    ],
)
def test_expressions_are_compared_as_mathematics(answer: str, gold: str, equal: bool, verifier: Math) -> None:
    assert verifier.equal(answer, gold) is equal
    assert verifier._worker.started <= 1, "one process serves all"


def test_gold_answers(verifier: Math) -> None:
    assert verifier.gold(r"$1+1=2$, so $\boxed{\frac{4}{2}}$.") == r"\frac{4}{2}"
    assert [verifier.gold(value) for value in ("x #### 5", 5, 0.5, "$x$")] == ["5", "5", "0.5", "$x$"]
    with pytest.raises(ValueError, match=r"^its answer is no expression that math-verify reads: '\$3\$ or \$4\$'$"):
        verifier.gold("$3$ or $4$")


def test_where_answers_stand(verifier: Math) -> None:
    for text, strict, flexible in (
        (r"so \boxed{5}", "5", "5"),
        (r"\boxed{4}<answer>5</answer>", "5", "5"),
        ("it is $x^2$ then", None, "x^2"),
        ("it costs $5", None, "5"),
        ("none", None, None),
    ):
        assert (verifier.extract(text), verifier.extract_flexible(text)) == (strict, flexible)
    assert [verifier.formatted(text) for text in (r"\boxed{5}", r"\boxed{5} \boxed{5}", "5")] == [True, False, False]
    given = Completion(r"so \boxed{0.5}", "?", r"\frac12", 3, False, verifier=verifier)
    assert (correctness(given), grade(given).correct, grade(given).formatted) == (1.5, True, True)


def test_an_endless_expression_ends_the_process_and_not_the_run() -> None:
    verifier = Math(limit_s=0.2)
    assert not verifier.equal(ENDLESS, "5")
    assert verifier._worker._process is None, "it was ended"
    assert not verifier.equal(ENDLESS, "5"), "and is not asked again"
    assert verifier._worker.started == 1
    assert Math.equal(verifier, "x", "x"), "nothing to ask about"
    verifier = pickle.loads(pickle.dumps(verifier))  # a copy has no process
    assert (verifier.limit_s, verifier._worker.started) == (0.2, 0)


def test_an_interrupted_question_leaves_no_answer_to_the_next(verifier: Math, monkeypatch: pytest.MonkeyPatch) -> None:
    assert verifier._worker.ask("x+1", "1+x")
    process = verifier._worker._process
    assert process is not None

    def interrupt() -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(process.stdout, "readline", interrupt)
    with pytest.raises(KeyboardInterrupt):
        verifier._worker.ask("x+1", "1+x")
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)
    assert not verifier._worker.ask("x+1", "x+2")


def test_its_name_is_its_settings() -> None:
    assert re.fullmatch(r"rlvr_pl\.verifiers\.mathematics\.Math\(limit_s=5\.0\)", Math().name)


def test_an_example_in_the_prompt_gives_its_answer_as_completions_should() -> None:
    solution = r"Half of 3 is $\frac32$. \boxed{\frac{3}{2}}"
    verifier = Math()
    assert verifier.example(solution, verifier.gold(solution)) == solution
    assert verifier.extract(verifier.example(solution, r"\frac{3}{2}")) == r"\frac{3}{2}"
    assert verifier.extract(verifier.example("Half of 3. #### 1.5", "1.5")) == "1.5", "in the tags"
