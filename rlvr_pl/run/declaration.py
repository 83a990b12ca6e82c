"""What a comparison declares before its first run: by what it will be judged, so that nothing is chosen afterwards.

It stands in ``comparison.yaml`` with a digest of itself. Whoever wants to prove that nothing was changed publishes the
digest, which ``compare`` prints, before the runs begin.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Metric = Literal["strict", "flexible"]
Checkpoint = Literal["best", "last"]

METRICS: tuple[Metric, ...] = ("strict", "flexible")
CHECKPOINTS: tuple[Checkpoint, ...] = ("best", "last")
MARGIN = 2.0  # points of accuracy under which arms count as equivalent, unless the comparison says otherwise
LOOKS = "one, when every declared run has ended"
DECLARATION = "declaration"  # its place in comparison.yaml


@dataclass(frozen=True)
class Declaration:
    """The rules and the plan of a comparison.

    Attributes:
        metric: of the primary outcome: accuracy in the answer tags, or by the last number.
        checkpoint: whose answers to the test questions count: the best on val, or the last.
        margin: points of accuracy under which two arms count as equivalent.
        thresholds: percent of val accuracy for which tokens are counted.
        arms: their settings, as in the comparison file.
        seeds: of each arm.
        plan: what else the comparison file says of the runs: base, overrides, tune.
        looks: how often a verdict is taken.
        made: when, ISO 8601.
    """

    arms: Mapping[str, Mapping[str, Any]]
    seeds: tuple[int, ...]
    metric: Metric = "strict"
    checkpoint: Checkpoint = "best"
    margin: float = MARGIN
    thresholds: tuple[float, ...] = ()
    plan: Mapping[str, Any] = field(default_factory=dict)
    looks: str = LOOKS
    made: str = ""

    @property
    def sha256(self) -> str:
        """The digest of all of it."""
        text = json.dumps(asdict(self), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def as_written(self) -> dict[str, Any]:
        """Write it for ``comparison.yaml``, with its digest."""
        written = asdict(self) | {"seeds": list(self.seeds), "thresholds": list(self.thresholds)}
        return written | {"sha256": self.sha256}

    @classmethod
    def of_comparison(cls, comparison: Mapping[str, Any]) -> Declaration:
        """Take the rules that a comparison states without having declared them, and the usual ones for the others."""
        stated = {key: comparison[key] for key in ("metric", "checkpoint", "margin") if key in comparison}
        arms, seeds = comparison.get("arms", {}), tuple(comparison.get("seeds", ()))
        return cls(arms, seeds, thresholds=tuple(comparison.get("thresholds", ())), **stated)

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Declaration:
        """Read what ``as_written`` wrote, whether or not its digest is still its own."""
        known = {name: values[name] for name in cls.__dataclass_fields__ if name in values}
        return cls(**known | {name: tuple(known[name]) for name in ("seeds", "thresholds")})


def read_declaration(comparison: Mapping[str, Any]) -> tuple[Declaration | None, bool]:
    """Read the declaration of a comparison.

    Args:
        comparison: what ``comparison.yaml`` holds.

    Returns:
        The declaration, None where there is none; and whether it is still what its digest says.
    """
    values = comparison.get(DECLARATION)
    if not isinstance(values, dict):
        return None, False
    try:
        declaration = Declaration.read(values)
    except (KeyError, TypeError):  # somebody has taken out a part of it
        return None, False
    return declaration, values.get("sha256") == declaration.sha256
