"""What is right: the grade of one completion, and its means over an evaluation as a torchmetrics metric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric

from rlvr_pl.rewards import Completion, last_number, same_number, strict_format, tagged_answer


@dataclass(frozen=True)
class Grade:
    """What is right and wrong about one completion."""

    extracted: str | None  # what stands in the answer tags
    correct: bool  # strict: the tagged answer is the gold number
    correct_flexible: bool  # the last number is, tagged or not
    formatted: bool  # the tags stand once each, in order, around something
    tokens: int
    truncated: bool


def grade(completion: Completion) -> Grade:
    """Grade one completion against its gold answer."""
    extracted = tagged_answer(completion.text)
    return Grade(
        extracted=extracted,
        correct=same_number(extracted, completion.gold),
        correct_flexible=same_number(last_number(completion.text), completion.gold),
        formatted=strict_format(completion) > 0,
        tokens=completion.tokens,
        truncated=completion.truncated,
    )


class EvaluationMetrics(Metric):
    """Means over completions: accuracy, accuracy_flexible, format_rate, mean_tokens and truncated_rate.

    The states are sums, added over ranks, so the means are exact over completions however they were spread and
    batched. They are integers: Lightning's bf16-true turns every floating-point tensor of a module into bfloat16, where
    256 + 1 is 256.

    With several samples a question, every question having as many, a mean over completions is the mean over questions
    of the share of its samples.
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

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(len(self._FIELDS), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, grades: Sequence[Grade]) -> None:
        """Count these completions in."""
        rows = [[int(asdict(g)[field]) for field in self._FIELDS.values()] for g in grades]
        self.sums += torch.tensor(rows, dtype=torch.int64).sum(dim=0).to(self.sums.device)
        self.count += len(grades)

    def compute(self) -> dict[str, Tensor]:
        """Divide by the completions counted so far, in float64; NaN before the first."""
        return dict(zip(self._FIELDS, self.sums.double() / self.count, strict=True))
