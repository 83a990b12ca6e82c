"""Configuration files: those that come with the package by name, and those that name the file they change.

Where grpo.yaml says ``base: recipe.yaml``, ``fit --config grpo.yaml`` is
``fit --config recipe.yaml --config grpo.yaml``, so that a file which only swaps the objective holds nothing but the
objective, and is whole by itself for whoever types its name.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from rlvr_pl.types import ConfigError

BASE = "base"
_FLAGS = ("--config", "-c")
_NAME = re.compile(r"[A-Za-z][\w-]*")
_PACKAGE = Path(__file__).parent


def shipped_configs() -> dict[str, Path]:
    """List the configuration files that come with the package, by name: the installed ones, or the checkout's."""
    installed = _PACKAGE / "configs"
    folder = installed if installed.is_dir() else _PACKAGE.parent / "configs"
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}


def find_config(value: str) -> str:
    """Find the file that ``--config`` stands for: the one at that path, or one that comes with the package.

    Args:
        value: a path, or a name such as ``gspo``. What looks like no name is left for the parser as it is.

    Raises:
        ConfigError: if no configuration has that name.
    """
    if not _NAME.fullmatch(value) or Path(value).is_file():
        return value
    shipped = shipped_configs()
    if value not in shipped:
        close = difflib.get_close_matches(value, shipped)
        raise ConfigError(
            f"--config {value}: there is no such file, and no configuration of that name comes with rlvr_pl. "
            + (f"Did you mean {' or '.join(close)}?" if close else f"Choose from {', '.join(shipped)}")
        )
    return str(shipped[value])


def find_base(name: str, folder: Path) -> str:
    """Find a configuration that a comparison file names.

    Args:
        name: a path from the comparison file's folder, the name of one that comes with the package, or a path from
            the current folder; the first of these that is there.
        folder: of the comparison file.

    Returns:
        What ``fit --config`` takes for it: the path, or the name as it is.
    """
    beside = folder / name
    return str(beside) if beside.is_file() else name


def expand_bases(arguments: Sequence[str]) -> list[str]:
    """Put the base of each configuration file in front of it.

    Args:
        arguments: of ``fit`` and its like, with ``--config FILE`` any number of times. Files without a base, and what
            is no file at all, are left for the parser as they are.

    Returns:
        The same arguments; a file that has a base is replaced by that and by what else the file says, as YAML.

    Raises:
        ConfigError: if a base is not there, is no path, or leads back to itself; if a file is a comparison's; or if no
            configuration has the name that is given.
    """
    expanded: list[str] = []
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if expanded and expanded[-1] in _FLAGS:
            flag, value = expanded.pop(), argument
        elif flag not in _FLAGS or not equals:
            expanded.append(argument)
            continue
        expanded += [f"{flag}={config}" for config in _configs(find_config(value), ())]
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
            f"{file}: base is {name!r}; it must be the path of one configuration file, from this one's folder, or the "
            "name of one that comes with rlvr_pl"
        )
    base = file.parent / name
    if not base.is_file():
        base = shipped_configs().get(name, base)
    if not base.is_file():
        raise ConfigError(f"{file}: base is {name!r}, but there is no file {str(base)!r}")
    chain = (*above, file)
    if base.resolve() in [other.resolve() for other in chain]:
        raise ConfigError(f"{file}: base is {name!r}, which leads in a circle: {' → '.join(map(str, (*chain, base)))}")
    yield from _configs(str(base), chain)
    yield yaml.safe_dump(config, sort_keys=False)
