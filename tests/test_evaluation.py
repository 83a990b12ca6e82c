"""The grade of a completion, and its means over an evaluation."""

from __future__ import annotations

import itertools
from statistics import fmean

import pytest
import torch
from torch import Tensor

from rlvr_pl.evaluation import EvaluationMetrics, Grade, grade, majority_ties, pass_at, passes
from rlvr_pl.rewards import Completion

torch.set_num_threads(1)

NAMES = ["accuracy", "accuracy_flexible", "format_rate", "mean_tokens", "truncated_rate"]


def completion(text: str, gold: str = "18", tokens: int = 7, truncated: bool = False) -> Completion:
    return Completion(text, "How many?", gold, tokens, truncated)


def verdict(text: str, gold: str = "18") -> tuple[str | None, bool, bool, bool]:
    g = grade(completion(text, gold))
    return g.extracted, g.correct, g.correct_flexible, g.formatted


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<reasoning>9 + 9</reasoning><answer>18</answer>", ("18", True, True, True)),
        ("<reasoning>9 + 9</reasoning>\n<answer>\n$18.00\n</answer>\n", ("$18.00", True, True, True)),
        ("<reasoning>9 + 9</reasoning><answer>17</answer>", ("17", False, False, True)),
        ("<reasoning>9 + 9</reasoning><answer>17</answer> or 18", ("17", False, True, False)),
        ("<answer>18</answer> of 20", ("18", True, False, False)),
        ("The answer is 18", (None, False, True, False)),
        ("The answer is <answer>18", (None, False, True, False)),
        ("I do not know", (None, False, False, False)),
        ("<reasoning></reasoning><answer></answer>", ("", False, False, False)),
        ("<reasoning>a</reasoning><answer>eighteen</answer>", ("eighteen", False, False, True)),
        ("", (None, False, False, False)),
    ],
)
def test_the_grade_of_a_text(text: str, expected: tuple[str | None, bool, bool, bool]) -> None:
    assert verdict(text) == expected


def test_a_grade_compares_numbers_and_not_texts() -> None:
    assert verdict("<answer>1234</answer>", gold="1,234")[:3] == ("1234", True, True)
    assert verdict("<answer>0.5</answer>", gold="1/2")[:3] == ("0.5", True, True)
    assert verdict("<answer>-18</answer>", gold="18")[:3] == ("-18", False, False)


def test_a_grade_carries_length_and_truncation() -> None:
    assert grade(completion("x", tokens=96, truncated=True)) == Grade(None, False, False, False, 96, True)
    assert grade(completion("<answer>18</answer>", tokens=3)) == Grade("18", True, True, False, 3, False)


def grades(*rows: tuple[int, int, int, int, int]) -> list[Grade]:
    return [Grade(None, bool(a), bool(b), bool(c), tokens, bool(d)) for a, b, c, tokens, d in rows]


# right, right flexibly, formatted, tokens, truncated
ROWS = [
    (1, 1, 1, 10, 0),
    (0, 1, 1, 20, 0),
    (0, 0, 1, 96, 1),
    (0, 1, 1, 3, 0),
    (1, 0, 0, 1, 0),
    (0, 0, 0, 96, 1),
    (0, 1, 0, 11, 0),
]
MEANS = dict(zip(NAMES, [2 / 7, 4 / 7, 4 / 7, 237 / 7, 2 / 7], strict=True))


def means(metrics: EvaluationMetrics) -> dict[str, float]:
    values = metrics.compute()
    assert list(values) == NAMES
    return {name: float(value) for name, value in values.items()}


@pytest.mark.parametrize("sizes", [[7], [6, 1], [1, 6], [3, 3, 1], [1] * 7, [0, 7], [7, 0]])
def test_means_over_completions_however_they_were_batched(sizes: list[int]) -> None:
    """A mean of batch means would differ wherever the batches do."""
    metrics, rows = EvaluationMetrics(), list(ROWS)
    for size in sizes:
        metrics.update(grades(*rows[:size]))
        rows = rows[size:]
    assert means(metrics) == MEANS


def test_ranks_add_their_sums() -> None:
    """Torchmetrics' own synchronisation, with the other rank's states at hand instead of a process group."""
    here, there = EvaluationMetrics(), EvaluationMetrics()
    here.update(grades(*ROWS[:5]))
    there.update(grades(*ROWS[5:]))

    def gather(state: Tensor, group: object) -> list[Tensor]:
        name = next(name for name in here.metric_state if getattr(here, name) is state)
        return [state, getattr(there, name)]

    here.dist_sync_fn = gather
    here.distributed_available_fn = lambda: True
    assert means(here) == MEANS


def test_a_reset_starts_over() -> None:
    metrics = EvaluationMetrics()
    metrics.update(grades((1, 1, 1, 100, 1)))
    metrics.reset()
    metrics.update(grades(*ROWS))
    assert means(metrics) == MEANS


def test_sums_stay_exact_where_float32_would_not() -> None:
    metrics = EvaluationMetrics()
    metrics.update(grades((1, 0, 0, 2**24, 0)))
    metrics.update(grades((1, 0, 0, 1, 0)))
    assert means(metrics)["mean_tokens"] == (2**24 + 1) / 2


def test_sums_stay_exact_in_a_module_that_is_converted_to_bfloat16() -> None:
    """As Lightning's bf16-true does: 1,319 grades, one at a time, counted to 256."""
    module = torch.nn.Module()
    module.metrics = EvaluationMetrics()
    module.to(torch.bfloat16)
    for i in range(1319):
        module.metrics.update(grades((i % 3 == 0, 1, 1, 300 + i % 7, 0)))
    values = means(module.metrics)
    assert values["accuracy"] == 440 / 1319
    assert values["mean_tokens"] == sum(300 + i % 7 for i in range(1319)) / 1319
    assert values["format_rate"] == 1.0


def test_several_samples_a_question_are_a_mean_over_questions() -> None:
    """Shares of right samples: 3/4, 0/4, 1/4."""
    metrics = EvaluationMetrics()
    for right in (3, 0, 1):
        metrics.update(grades(*[(int(i < right), 0, 0, 5, 0) for i in range(4)]))
    assert means(metrics)["accuracy"] == (3 / 4 + 0 / 4 + 1 / 4) / 3


# Several samples a question


@pytest.mark.parametrize("right", range(6))
@pytest.mark.parametrize("k", range(1, 6))
def test_pass_at_k_is_the_mean_over_all_subsets_of_k_samples(k: int, right: int) -> None:
    samples = [i < right for i in range(5)]
    assert pass_at(k, 5, right) == pytest.approx(
        fmean(any(some) for some in itertools.combinations(samples, k)), abs=1e-15
    )


def test_the_ks_that_are_told() -> None:
    assert [passes(n) for n in (2, 3, 4, 6, 8)] == [[2], [2, 3], [2, 4], [2, 4, 6], [2, 4, 8]]


@pytest.mark.parametrize(
    ("extracted", "ties"),
    [
        (["18", "18.0", "7", None], 1),
        (["18", "7", "7", None], 0),
        (["18", "7", "$18", "7"], 2),
        (["18", "7", "8", "nine"], 3),
        (["no", "idea", None, ""], 0),
        (["18", None, None, None], 1),
    ],
)
def test_the_majoritys_answer_and_its_ties(extracted: list[str | None], ties: int) -> None:
    assert majority_ties(extracted, [text in ("18", "18.0", "$18") for text in extracted]) == ties


def test_several_samples_have_metrics_of_their_own() -> None:
    """Of three questions, four samples each: 2, 1 and 0 are right."""
    metrics = EvaluationMetrics(samples=4)
    answers = [["18", "18", "7", None], ["18", "7", "8", None], ["7", "7", "7", "7"]]
    for some in (answers[:1], answers[1:]):
        metrics.update([Grade(a, a == "18", a == "18", True, 5, False) for question in some for a in question])
    values = {name: float(value) for name, value in metrics.compute().items()}
    assert list(values) == [*NAMES, "avg_at_4", "pass_at_2", "pass_at_4", "maj_at_4"]
    assert values["avg_at_4"] == values["accuracy"] == 3 / 12
    assert values["pass_at_2"] == pytest.approx((5 / 6 + 1 / 2 + 0) / 3)
    assert values["pass_at_4"] == pytest.approx(2 / 3)
    assert values["maj_at_4"] == pytest.approx((1 + 1 / 3 + 0) / 3)
