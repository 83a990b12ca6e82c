"""Verifiers: what a gold answer means, where a completion's answer stands, and when it is right."""

from rlvr_pl.verifiers.choice import Choice
from rlvr_pl.verifiers.exact import Exact
from rlvr_pl.verifiers.find import VERIFIERS, find_verifier
from rlvr_pl.verifiers.mathematics import Math
from rlvr_pl.verifiers.number import Number
from rlvr_pl.verifiers.verifier import Verifier, VerifierError

__all__ = ["VERIFIERS", "Choice", "Exact", "Math", "Number", "Verifier", "VerifierError", "find_verifier"]
