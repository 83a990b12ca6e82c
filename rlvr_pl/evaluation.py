"""What is right: the grade of one completion, and its means over an evaluation as a torchmetrics metric.

With n samples a question of which c are right, beside the mean (avg@n):

- pass@k, the probability that one of k samples at least is right, without bias 1 − C(n−c, k) / C(n, k) (Chen et al.
  2021, arXiv 2107.03374, eq. 1), for k = 2, 4, 8, … and n;
- maj@n, whether the answer that most of the samples give is right. Answers that the verifier finds equal are one, and
  so are all that are right. A sample without an answer where it was asked for has no vote, and of t answers with
  equally many votes each is taken with probability 1/t.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric

from rlvr_pl.rewards import Completion
from rlvr_pl.verifiers import Number, Verifier
from rlvr_pl.verifiers.verifier import agree


@dataclass(frozen=True)
class Grade:
    """What is right and wrong about one completion."""

    extracted: str | None  # the answer where it was asked for: what stands in the answer tags, say
    correct: bool  # strict: that is a gold answer
    correct_flexible: bool  # the answer however it is given is, such as the last number
    formatted: bool  # the form that was asked for: the tags stand once each, in order, around something
    tokens: int
    truncated: bool


def grade(completion: Completion) -> Grade:
    """Grade one completion against its gold answers, by its verifier."""
    extracted = completion.answer
    return Grade(
        extracted=extracted,
        correct=completion.is_right(extracted),
        correct_flexible=completion.is_right(completion.answer_flexible),
        formatted=completion.verifier.formatted(completion.text),
        tokens=completion.tokens,
        truncated=completion.truncated,
    )


def passes(samples: int) -> list[int]:
    """List the k for which pass@k is told: powers of two up to the number of samples, and that number."""
    return sorted({2**i for i in range(1, samples.bit_length()) if 2**i < samples} | {samples})


def pass_at(k: int, samples: int, right: int) -> float:
    """Estimate the probability that at least one of k samples is right, from ``samples`` of which ``right`` are."""
    return 1 - math.comb(samples - right, k) / math.comb(samples, k)


def majority_ties(extracted: Sequence[str | None], correct: Sequence[bool], verifier: Verifier | None = None) -> int:
    """Count the answers that share the most votes, the right one being among them; 0 where it is not.

    Args:
        extracted: the answer of each sample of one question.
        correct: whether it is right.
        verifier: which tells whether two answers are one; of numbers where it is None.
    """
    verifier = verifier or Number()
    right = sum(correct)  # all of them one answer, several accepted ones too
    wrong: Counter[str] = Counter()  # by the first of the answers that are equal
    for answer, is_right in zip(extracted, correct, strict=True):
        if not is_right and answer is not None and agree(verifier, answer, answer):
            wrong[next((first for first in wrong if agree(verifier, answer, first)), answer)] += 1
    if not right or right < max(wrong.values(), default=0):
        return 0
    return 1 + sum(votes == right for votes in wrong.values())


class EvaluationMetrics(Metric):
    """Means over completions: accuracy, accuracy_flexible, format_rate, mean_tokens and truncated_rate.

    With several samples a question also avg_at_n, pass_at_k and maj_at_n: see the module's docstring.

    The states are sums, added over ranks, so the means are exact over completions however they were spread and
    batched. They are integers: Lightning's bf16-true turns every floating-point tensor of a module into bfloat16, where
    256 + 1 is 256.

    With several samples a question, every question having as many, a mean over completions is the mean over questions
    of the share of its samples.

    Args:
        samples: n, completions a question, side by side in what is counted in.
    """

    full_state_update = False
    _FIELDS: ClassVar = {
        "accuracy": "correct",
        "accuracy_flexible": "correct_flexible",
        "format_rate": "formatted",
        "mean_tokens": "tokens",
        "truncated_rate": "truncated",
    }
    sums: Tensor
    count: Tensor
    right: Tensor
    majority: Tensor

    def __init__(self, samples: int = 1) -> None:
        super().__init__()
        self.samples = samples
        # Questions by how many of their samples are right, and by how many answers tie with the right one.
        self.add_state("right", torch.zeros(samples + 1, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("majority", torch.zeros(samples + 1, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("sums", torch.zeros(len(self._FIELDS), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, grades: Sequence[Grade], verifier: Verifier | None = None) -> None:
        """Count these completions in.

        Args:
            grades: of completions.
            verifier: that graded them; of numbers where it is None.
        """
        rows = [[int(asdict(g)[field]) for field in self._FIELDS.values()] for g in grades]
        self.sums += torch.tensor(rows, dtype=torch.int64).sum(dim=0).to(self.sums.device)
        self.count += len(grades)
        questions = [grades[first : first + self.samples] for first in range(0, len(grades), self.samples)]
        correct = [[g.correct for g in samples] for samples in questions]
        if self.samples > 1:
            ties = [
                majority_ties([g.extracted for g in q], c, verifier) for q, c in zip(questions, correct, strict=True)
            ]
            self.majority += self._histogram(ties)
        self.right += self._histogram([sum(c) for c in correct])

    def _histogram(self, values: Sequence[int]) -> Tensor:
        """Count how often each of 0, …, n occurs."""
        counted = torch.bincount(torch.tensor(values, dtype=torch.int64), minlength=self.samples + 1)
        return counted.to(self.count.device)

    def compute(self) -> dict[str, Tensor]:
        """Divide by the completions counted so far, in float64; NaN before the first."""
        means = dict(zip(self._FIELDS, self.sums.double() / self.count, strict=True))
        n = self.samples
        if n == 1:
            return means

        def mean(questions: Tensor, values: Sequence[float]) -> Tensor:
            weights = torch.tensor(values, dtype=torch.float64, device=questions.device)
            return (questions * weights).sum() / questions.sum()

        means[f"avg_at_{n}"] = means["accuracy"]
        for k in passes(n):
            means[f"pass_at_{k}"] = mean(self.right, [pass_at(k, n, right) for right in range(n + 1)])
        means[f"maj_at_{n}"] = mean(self.majority, [0.0, *(1 / ties for ties in range(1, n + 1))])
        return means
