"""Who judged a study's answers, as far as its configuration alone says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlvr_pl.report.study import Study
from rlvr_pl.verifiers import VERIFIERS, Verifier


def verifier_of(settings: Mapping[str, Any]) -> Verifier | None:
    """Make the verifier of a flat configuration; None for one of the user's own, whose code no report calls."""
    name = settings.get("data.verifier", "number")
    path = settings.get("data.verifier.class_path")
    if path is None:
        return VERIFIERS[name]() if name in VERIFIERS else None
    kind = next((kind for kind in VERIFIERS.values() if path in _paths(kind)), None)
    start = "data.verifier.init_args."
    arguments = {key.removeprefix(start): value for key, value in settings.items() if key.startswith(start)}
    return None if kind is None else kind(**arguments)


def _paths(kind: type[Verifier]) -> tuple[str, str]:
    return f"rlvr_pl.verifiers.{kind.__name__}", f"{kind.__module__}.{kind.__name__}"


def where_answers_stand(study: Study) -> tuple[str, str]:
    """Say what the strict and the flexible accuracy look at."""
    verifier = verifier_of(next(iter(study.settings.values()), {}))
    if verifier is None:
        return "the answer as data.verifier extracts it", "the answer however it is given"
    return f"the answer {verifier.strict}", f"the {verifier.flexible}"
