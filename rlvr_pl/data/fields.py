"""What the fields of a row mean: its question, its gold answers, and the columns that rewards ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rlvr_pl.types import ConfigError, RunError
from rlvr_pl.verifiers import Number, Verifier


def answer_fields(answer: str | Sequence[str]) -> tuple[str, ...]:
    """List the fields that ``data.answer`` names, which is one or several."""
    return (answer,) if isinstance(answer, str) else tuple(answer)


@dataclass(frozen=True)
class Fields:
    """Reads rows; a row may have more fields than these.

    Attributes:
        question: the field that holds the question.
        answers: the fields that hold gold answers, of which one is enough; a field may hold a list of them.
        verifier: which says what a gold answer means.
        optional_answers: rows may have no gold answer.
        cluster: the field that says which questions belong together; None where each stands alone.
        columns: fields that reward functions ask for, each with the names of those functions.
    """

    question: str = "question"
    answers: tuple[str, ...] = ("answer",)
    verifier: Verifier = field(default_factory=Number)
    optional_answers: bool = False
    cluster: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)

    def check(self, rows: Sequence[object], place: str) -> None:
        """Refuse a field that no row has.

        Args:
            rows: of a split.
            place: which split that is, for messages.

        Raises:
            ConfigError: naming the field, and those that there are.
        """
        there = dict.fromkeys(key for row in rows if isinstance(row, Mapping) for key in row)
        if not there:
            return
        needed = {self.question: ("data.question", "Name the one that holds the questions")}
        if not self.optional_answers:
            remedy = "Name the one that holds the gold answers; without any there is predict"
            needed |= dict.fromkeys(self.answers, ("data.answer", remedy))
        if self.cluster is not None:
            needed[self.cluster] = ("data.cluster", "Name another, or none")
        for column, who in self.columns.items():
            needed.setdefault(column, ("model.rewards", f"{who} asks for it"))
        for column, (key, remedy) in needed.items():
            if column not in there:
                names = ", ".join(map(str, there))
                raise ConfigError(f"{key}: {place} has no column {column!r}; its columns are {names}. {remedy}")

    def read_question(self, row: object) -> str:
        """Read a row's question.

        Raises:
            ValueError: if it is none, or the row is no object.
        """
        if not isinstance(row, Mapping):
            names = " and ".join(map(repr, (self.question, *self.answers)))
            raise ValueError(f"not an object with {names}: {str(row)[:40]!r}")
        value = row.get(self.question)
        if not isinstance(value, str):
            kind = "missing" if value is None else type(value).__name__
            raise ValueError(f"{self.question!r} is {kind}, not text")
        if not value.strip():
            raise ValueError(f"{self.question!r} is empty")
        value.encode()  # a lone surrogate, which JSON can spell, is a ValueError here and a TypeError to tokenizers
        return value

    def read_golds(self, row: Mapping[str, object]) -> tuple[str, ...]:
        """Read a row's gold answers, each once; none where there may be none.

        Raises:
            ValueError: if there has to be one and is none, or the verifier cannot use one.
        """
        values: list[object] = []
        for name in self.answers:
            value = row.get(name)
            values += value if isinstance(value, list | tuple) else [value]
        given = [value for value in values if not _is_blank(value)]
        if not given and not self.optional_answers:
            state = "missing" if all(value is None for value in values) else "empty"
            raise ValueError(f"{' or '.join(map(repr, self.answers))} is {state}")
        return tuple(dict.fromkeys(map(self._gold, given)))

    def _gold(self, value: object) -> str:
        try:
            gold = self.verifier.gold(value)
            if not isinstance(gold, str) or not gold:
                raise TypeError(f"its gold answer is {gold!r}, which is no text")
            gold.encode()
        except (ValueError, RunError):
            raise
        except Exception as error:  # a verifier of the user's own
            name = type(self.verifier).__name__
            raise ValueError(f"{name} raised ({type(error).__name__}: {error}) on its answer {value!r:.80}") from error
        return gold

    def read_columns(self, row: Mapping[str, object]) -> dict[str, object]:
        """Take what reward functions ask for.

        Raises:
            ValueError: if the row lacks it.
        """
        for column, who in self.columns.items():
            if column not in row:
                raise ValueError(f"{column!r} is missing, for which {who} asks")
        return {column: row[column] for column in self.columns}

    def read_cluster(self, row: Mapping[str, object]) -> str:
        """Say what a row's question belongs to; empty where each stands alone.

        Raises:
            ValueError: if the row does not say.
        """
        if self.cluster is None:
            return ""
        member_of = str(row.get(self.cluster) or "")
        if not member_of:
            raise ValueError(f"{self.cluster!r} (data.cluster) is missing")
        return member_of


def _is_blank(value: object) -> bool:
    """None, a blank text, or NaN, which tables have in place of None."""
    return value is None or (isinstance(value, str) and not value.strip()) or value != value
