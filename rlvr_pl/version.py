"""The version of the package."""

from __future__ import annotations

import importlib.metadata
import tomllib
from pathlib import Path

_PACKAGE = Path(__file__).parent


def package_version() -> str | None:
    """Find the version of the installed package, or of the checkout that it is run from; None where neither says."""
    try:
        return importlib.metadata.version(_PACKAGE.name)
    except importlib.metadata.PackageNotFoundError:
        project = _PACKAGE.parent / "pyproject.toml"
        return tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"] if project.is_file() else None


__version__ = package_version()
