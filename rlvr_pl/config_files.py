"""Configuration files that name the file they change: ``base: recipe.yaml``.

``fit --config grpo.yaml`` is then ``fit --config recipe.yaml --config grpo.yaml``, so that a file which only swaps the
objective holds nothing but the objective, and is whole by itself for whoever types its name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from rlvr_pl.types import ConfigError

BASE = "base"
_FLAGS = ("--config", "-c")


def expand_bases(arguments: Sequence[str]) -> list[str]:
    """Put the base of each configuration file in front of it.

    Args:
        arguments: of ``fit`` and its like, with ``--config FILE`` any number of times. Files without a base, and what
            is no file at all, are left for the parser as they are.

    Returns:
        The same arguments; a file that has a base is replaced by that and by what else the file says, as YAML.

    Raises:
        ConfigError: if a base is not there, is no path, or is its own base.
    """
    expanded: list[str] = []
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if expanded and expanded[-1] in _FLAGS:
            flag, value = expanded.pop(), argument
        elif flag not in _FLAGS or not equals:
            expanded.append(argument)
            continue
        expanded += [f"{flag}={config}" for config in _with_base(Path(value), ())]
    return expanded


def _with_base(file: Path, above: tuple[Path, ...]) -> Iterator[str]:
    """Of a file, the configurations to be taken one after the other: paths, or YAML where ``base`` was taken out."""
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):  # for the parser to say
        config = None
    if not isinstance(config, dict) or BASE not in config:
        yield str(file)
        return
    name = config.pop(BASE)
    if not isinstance(name, str):
        raise ConfigError(
            f"{file}: base is {name!r}; it must be the path of one configuration file, from this one's folder"
        )
    base = file.parent / name
    if not base.is_file():
        raise ConfigError(f"{file}: base is {name!r}, but there is no file {str(base)!r}")
    if base.resolve() in (file.resolve(), *above):
        raise ConfigError(f"{file}: base is {name!r}, which has this file as its own base")
    yield from _with_base(base, (*above, file.resolve()))
    yield yaml.safe_dump(config, sort_keys=False)
