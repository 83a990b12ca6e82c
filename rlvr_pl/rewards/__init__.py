"""Answer extraction and verification, and the reward functions that stand on them."""

from rlvr_pl.rewards.answers import gold_answer, last_number, parse_number, same_number, tagged_answer
from rlvr_pl.rewards.completion import Completion
from rlvr_pl.rewards.functions import RewardFunction, correctness, strict_format, tag_format
from rlvr_pl.rewards.terms import Rewards, RewardSum, RewardTerm

__all__ = [
    "Completion",
    "RewardFunction",
    "RewardSum",
    "RewardTerm",
    "Rewards",
    "correctness",
    "gold_answer",
    "last_number",
    "parse_number",
    "same_number",
    "strict_format",
    "tag_format",
    "tagged_answer",
]
