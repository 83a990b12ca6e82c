"""Log-probabilities of completions under a policy."""

from rlvr_pl.scoring.choice import choose_layout
from rlvr_pl.scoring.layers import use_lean_layers
from rlvr_pl.scoring.layout import Layout, PackedGroups, PaddedRows, Sequences
from rlvr_pl.scoring.score import Scored, TokenScores, score

__all__ = [
    "Layout",
    "PackedGroups",
    "PaddedRows",
    "Scored",
    "Sequences",
    "TokenScores",
    "choose_layout",
    "score",
    "use_lean_layers",
]
