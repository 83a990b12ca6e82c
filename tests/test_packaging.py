"""What ``pip install`` puts where, and the names that ``import rlvr_pl`` offers."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from importlib import import_module

import pytest

import rlvr_pl
from rlvr_pl import __main__
from tests.helpers.paths import CONFIGS, ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_package_and_the_configurations_are_installed() -> None:
    setuptools = PROJECT["tool"]["setuptools"]
    folders = [file.parent for file in (ROOT / "rlvr_pl").rglob("__init__.py")]
    packages = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert sorted(setuptools["packages"]) == sorted({*packages, "rlvr_pl.configs"})
    assert setuptools["package-dir"] == {"rlvr_pl.configs": CONFIGS.name}
    for package, patterns in setuptools["package-data"].items():
        folder = ROOT / setuptools["package-dir"].get(package, package.replace(".", "/"))
        assert all(list(folder.glob(pattern)) for pattern in patterns), package


def test_the_program_that_is_installed() -> None:
    module, _, function = PROJECT["project"]["scripts"]["rlvr_pl"].partition(":")
    assert getattr(import_module(module), function) is __main__.start_installed


def test_the_installed_program_finds_what_lies_in_the_current_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/rlvr_pl", "--version"])
    monkeypatch.setattr(sys, "path", ["/usr/bin"])
    __main__.start_installed()
    assert sys.path == ["", "/usr/bin"]
    assert capsys.readouterr().out == f"rlvr_pl {PROJECT['project']['version']}\n"


def test_the_public_names_are_those_of_their_homes() -> None:
    for name, home in rlvr_pl._HOME.items():
        assert getattr(rlvr_pl, name) is getattr(import_module(f"rlvr_pl.{home}"), name)
    assert set(rlvr_pl.__all__) < set(dir(rlvr_pl))
    assert rlvr_pl.__version__ == PROJECT["project"]["version"]
    with pytest.raises(AttributeError, match=r"^module 'rlvr_pl' has no attribute 'GRPOO'$"):
        _ = rlvr_pl.GRPOO


def test_importing_the_package_loads_nothing() -> None:
    program = (
        "import sys, rlvr_pl; print(sorted(name for name in sys.modules if name.startswith(('rlvr_pl.', 'torch'))))"
    )
    shown = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout == "[]\n"


@pytest.mark.parametrize(
    ("own", "spins"), [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")]
)
def test_idle_threads_are_told_to_spin_briefly_before_torch_is_there(own: dict[str, str], spins: str) -> None:
    program = (
        "import os, sys; from rlvr_pl import __main__; __main__.bear_company(); "
        "print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")} | own
    command = [sys.executable, "-c", program]
    shown = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert shown.stdout == f"{spins} False\n"
