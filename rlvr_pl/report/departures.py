"""How a study departs from what was declared before its first run: such a study explores, and confirms nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rlvr_pl.report.study import Study
from rlvr_pl.report.wording import listed
from rlvr_pl.run.declaration import read_declaration


def find_departures(study: Study) -> list[str]:
    """Find every departure, each as a sentence without its full stop; none where all is as declared."""
    declaration, sound = read_declaration(study.comparison)
    if declaration is None:
        return ["nothing in the folder says what was declared before the runs"]
    if not sound:
        return ["the declaration is not what its digest says: it was changed after it was made"]
    stated = {key: study.comparison.get(key) for key in ("metric", "checkpoint", "margin", "thresholds")}
    declared = {key: getattr(declaration, key) for key in stated} | {"thresholds": list(declaration.thresholds)}
    return [
        *_added_or_left_out("arm", study.arms, declaration.arms),
        *_added_or_left_out("seed", sorted(set(study.runs["seed"])), declaration.seeds),
        *(
            f"{key} was declared as {declared[key]} and is {stated[key]}"
            for key in stated
            if stated[key] != declared[key]
        ),
    ]


def _added_or_left_out(what: str, present: Iterable[object], declared: Iterable[object]) -> Iterator[str]:
    present, declared = list(present), list(declared)
    for names, happened in (
        ([name for name in present if name not in declared], "added"),
        ([name for name in declared if name not in present], "left out"),
    ):
        if names:
            plural = len(names) > 1
            which = listed([str(name) for name in names])
            yield f"{what}s {which} were {happened}" if plural else f"{what} {which} was {happened}"
