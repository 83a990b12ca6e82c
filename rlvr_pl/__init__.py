"""GRPO, Dr.GRPO and GSPO on verifiable rewards.

The names that a program of one's own starts from; each is imported when it is first asked for, so that
``import rlvr_pl`` takes no time. Objectives stay in ``rlvr_pl.losses`` alone: a configuration file names a class by the
shortest path that leads to it, and a run's must stay what it was.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "Completion": "rewards",
    "ConfigError": "types",
    "GSM8KDataModule": "data",
    "GroupPolicyModule": "module",
    "RewardTerm": "rewards",
    "__version__": "version",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
