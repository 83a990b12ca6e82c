"""Log-probabilities of completions under a policy."""

from rlvr_pl.scoring.layout import Sequences, lay_out
from rlvr_pl.scoring.score import TokenScores, score

__all__ = ["Sequences", "TokenScores", "lay_out", "score"]
