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
        ConfigError: if a base is not there, is no path, or leads back to itself; or if a file is a comparison's.
    """
    expanded: list[str] = []
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if expanded and expanded[-1] in _FLAGS:
            flag, value = expanded.pop(), argument
        elif flag not in _FLAGS or not equals:
            expanded.append(argument)
            continue
        expanded += [f"{flag}={config}" for config in _configs(value, ())]
    return expanded


def _configs(value: str, above: tuple[Path, ...]) -> Iterator[str]:
    """Yield the configurations that a file stands for, base first: as they were given, or YAML without ``base``."""
    file = Path(value)
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):  # for the parser to say
        config = None
    if not isinstance(config, dict) or BASE not in config:
        yield value
        return
    if "arms" in config:
        raise ConfigError(f"{file} is a comparison file; run it with: compare --config {file}")
    name = config.pop(BASE)
    if not isinstance(name, str):
        raise ConfigError(
            f"{file}: base is {name!r}; it must be the path of one configuration file, from this one's folder"
        )
    base = file.parent / name
    if not base.is_file():
        raise ConfigError(f"{file}: base is {name!r}, but there is no file {str(base)!r}")
    chain = (*above, file)
    if base.resolve() in [other.resolve() for other in chain]:
        raise ConfigError(f"{file}: base is {name!r}, which leads in a circle: {' → '.join(map(str, (*chain, base)))}")
    yield from _configs(str(base), chain)
    yield yaml.safe_dump(config, sort_keys=False)
