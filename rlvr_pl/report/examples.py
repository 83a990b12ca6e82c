"""Completions to look at: for each arm, the questions on which it is furthest ahead of the others."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlvr_pl.report.analysis import SOLVED
from rlvr_pl.report.judging import verifier_of
from rlvr_pl.report.outcomes import METRICS, ROLLOUT_OF, Outcomes
from rlvr_pl.report.run_files import read_completions
from rlvr_pl.report.study import Study
from rlvr_pl.run.records import gold_of, records_path

_ALL = 6  # examples, shared out between the arms
_EMBEDDED = ("rlvr_pl.data.EmbeddedProblems", "rlvr_pl.data.sources.EmbeddedProblems")


@dataclass(frozen=True)
class Answer:
    """One completion of one run, which did what most of its arm's runs did."""

    who: str
    seed: int
    solved: str  # by how many of the arm's runs
    right: bool
    completion: str
    tokens: int


@dataclass(frozen=True)
class Example:
    """A question and what came of it."""

    question: int
    text: str | None  # where it can be had from the configuration alone
    gold: str
    why: str
    answers: list[Answer]


@dataclass(frozen=True)
class _Chosen:
    column: int
    why: str


def find_examples(study: Study, outcomes: Outcomes) -> list[Example]:
    """Find questions that tell the arms apart by strict accuracy; none where no question does."""
    if not outcomes.golds:
        return []
    chosen = _choose(outcomes)
    questions = {outcomes.golds[choice.column][0] for choice in chosen}
    texts = _question_texts(study, outcomes)
    shown: dict[Path, dict[int, dict[str, Any]]] = {}

    def answer(arm: str, column: int, initial: bool) -> Answer:
        shares = (outcomes.initial if initial else outcomes.final)[arm, "strict"][:, column]
        solved = shares >= SOLVED
        usual = bool(solved.mean() >= 0.5)
        seed = outcomes.seeds[arm][int(np.argmax(solved == usual))]
        run = study.runs.set_index(["arm", "seed"]).loc[(arm, seed)]
        rollout = 0 if initial else int(run[ROLLOUT_OF[outcomes.checkpoint]])
        path = records_path(study.folder / run["path"], outcomes.split, rollout)
        if path not in shown:
            shown[path] = read_completions(path, questions)
        record = shown[path][outcomes.golds[column][0]]
        return Answer(
            who="before training" if initial else arm,
            seed=seed,
            solved=f"{solved.sum()} of {len(solved)}",
            right=record["correct"],
            completion=record["completion"],
            tokens=record["tokens"],
        )

    examples = []
    for choice in chosen:
        number, gold = outcomes.golds[choice.column]
        answers = [answer(outcomes.arms[0], choice.column, initial=True)]
        answers += [answer(arm, choice.column, initial=False) for arm in outcomes.arms]
        examples.append(Example(number, texts.get(number), gold, choice.why, answers))
    return examples


def _choose(outcomes: Outcomes) -> list[_Chosen]:
    """The same number of questions for each arm, so that none is shown at its best and the others at their worst.

    Strict accuracy decides; where that is equal, flexible accuracy.
    """
    arms = outcomes.arms
    lead: dict[str, Any] = {}
    for arm in arms:
        by_metric = []
        for metric in METRICS:
            own = outcomes.final[arm, metric].mean(axis=0)
            others = [outcomes.final[other, metric].mean(axis=0) for other in arms if other != arm]
            by_metric.append(own - (np.mean(others, axis=0) if others else outcomes.initial[arm, metric].mean(axis=0)))
        lead[arm] = by_metric[0] + 1e-3 * by_metric[1]
    chosen: dict[int, _Chosen] = {}
    for arm in arms:
        why = f"{arm} ahead of the others" if len(arms) > 1 else "gained most in training"
        best = [int(q) for q in np.argsort(-lead[arm], kind="stable") if lead[arm][q] > 0]
        chosen |= {q: _Chosen(q, why) for q in best[: max(1, _ALL // len(arms))] if q not in chosen}
    return list(chosen.values())


def _question_texts(study: Study, outcomes: Outcomes) -> dict[int, str]:
    """Question texts by number, from the data source that the configuration names: records hold none.

    Only from the embedded problems or a local file, and only if its gold answers are the records' own: neither the
    network nor a user's code is called on to draw a report.
    """
    settings = next((s for s in study.settings.values() if "data.source" in s or "data.source.class_path" in s), {})
    source = settings.get("data.source")
    arguments: dict[str, Any] = {}
    if settings.get("data.source.class_path") in _EMBEDDED:
        source = "embedded"
        arguments = {k.rpartition(".")[2]: v for k, v in settings.items() if k.startswith("data.source.init_args.")}
    if source != "embedded" and not (isinstance(source, str) and Path(source).expanduser().exists()):
        return {}
    # Imported here: what reads data sets loads libraries that nothing else in a report needs.
    from rlvr_pl.data.fields import Fields, answer_fields
    from rlvr_pl.data.sources import EmbeddedProblems, LocalDataset

    verifier = verifier_of(settings)
    if verifier is None:
        return {}
    answers = answer_fields(settings.get("data.answer", "answer"))
    fields = Fields(settings.get("data.question", "question"), answers, verifier)
    rows_of = EmbeddedProblems(**arguments) if source == "embedded" else LocalDataset(str(source))
    try:
        rows: Any = rows_of("test") if outcomes.split == "test" else rows_of("train")
        if rows is None:
            rows = rows_of("train")  # without a test split, the tested questions were held out of train
        table = list(rows)
        if all(gold_of(fields.read_golds(table[number])) == gold for number, gold in outcomes.golds):
            return {number: table[number][fields.question] for number, _ in outcomes.golds}
    except Exception:  # any file may lie at that path by now; the report goes without the texts
        pass
    return {}
