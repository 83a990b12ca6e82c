"""Which verifier a setting names."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

from rlvr_pl.types import ConfigError
from rlvr_pl.verifiers.choice import Choice
from rlvr_pl.verifiers.exact import Exact
from rlvr_pl.verifiers.mathematics import Math
from rlvr_pl.verifiers.number import Number
from rlvr_pl.verifiers.verifier import Verifier

VERIFIERS: dict[str, type[Verifier]] = {"number": Number, "choice": Choice, "math": Math, "exact": Exact}


class Function(Verifier):
    """A function of one's own that tells whether an answer is the gold answer; all else is as in ``Verifier``."""

    def __init__(self, function: Callable[[str, str], bool]) -> None:
        self._function = function

    def equal(self, answer: str, gold: str) -> bool:
        return self._function(answer, gold)

    @property
    def name(self) -> str:
        return f"{self._function.__module__}.{getattr(self._function, '__qualname__', self._function)}"


def find_verifier(verifier: str | Verifier | Callable[[str, str], bool]) -> Verifier:
    """Find the verifier that a setting names.

    Args:
        verifier: a key of ``VERIFIERS``; the import path of a verifier's class, which is made without arguments, or
            of a function (answer, gold) -> bool; or one of these objects.

    Raises:
        ConfigError: if it is none of these.
    """
    if isinstance(verifier, str):
        return VERIFIERS[verifier]() if verifier in VERIFIERS else _made_of(_imported(verifier), verifier)
    return _made_of(verifier, repr(verifier))


def _imported(path: str) -> Any:
    module, _, name = path.rpartition(".")
    if not module:
        raise ConfigError(
            f"data.verifier: there is no {path!r}; choose from {', '.join(VERIFIERS)}, or give the path of a class or "
            "function of your own, such as my_project.same"
        )
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"data.verifier: cannot import {path!r}: {error}") from error


def _made_of(found: Any, name: str) -> Verifier:
    if isinstance(found, Verifier):
        return found
    if isinstance(found, type):
        if not issubclass(found, Verifier):
            raise ConfigError(f"data.verifier: {name} is no subclass of rlvr_pl.verifiers.Verifier")
        try:
            return found()
        except TypeError as error:
            raise ConfigError(f"data.verifier: {name} cannot be made without arguments: {error}") from error
    try:
        inspect.signature(found).bind("", "")
    except (TypeError, ValueError):
        raise ConfigError(
            f"data.verifier: {name} is neither a verifier nor a function of two texts: "
            "def same(answer: str, gold: str) -> bool"
        ) from None
    return Function(found)
