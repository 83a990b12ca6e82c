"""Reward functions, what they see of a completion, and their weighted sum."""

from rlvr_pl.rewards.completion import Completion
from rlvr_pl.rewards.functions import RewardFunction, correctness, strict_format, tag_format
from rlvr_pl.rewards.terms import Rewards, RewardSum, RewardTerm
from rlvr_pl.verifiers.number import gold_answer, last_number, parse_number, same_number
from rlvr_pl.verifiers.tags import tagged_answer

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
