"""``base:`` in a configuration file: the same as both files one after the other, and refused where it leads nowhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from rlvr_pl import config_files
from rlvr_pl.cli import resolve
from rlvr_pl.config_files import expand_bases, find_base, find_config
from rlvr_pl.main import main
from rlvr_pl.types import ConfigError
from tests.helpers.paths import CONFIGS


def write(file: Path, **config: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(config))
    return file


def configs_of(arguments: list[str]) -> list[Any]:
    """What each ``--config`` stands for: a file's name, or the YAML in its place."""
    values = [argument.partition("=")[2] for argument in arguments]
    return [Path(value).name if Path(value).suffix == ".yaml" else yaml.safe_load(value) for value in values]


def test_a_base_comes_first_and_its_own_base_before_it(tmp_path: Path) -> None:
    write(tmp_path / "recipes" / "ground.yaml", model={"group_size": 4})
    write(tmp_path / "recipes" / "recipe.yaml", base="ground.yaml", data={"val_size": 3})
    file = write(tmp_path / "mine.yaml", base="recipes/recipe.yaml", data={"val_size": 5})
    assert configs_of(expand_bases([f"--config={file}"])) == [
        "ground.yaml",
        {"data": {"val_size": 3}},
        {"data": {"val_size": 5}},
    ]


@pytest.mark.parametrize("form", [["--config={}"], ["--config", "{}"], ["-c={}"], ["-c", "{}"]])
def test_in_every_form_of_the_flag(form: list[str], tmp_path: Path) -> None:
    write(tmp_path / "base.yaml")
    file = write(tmp_path / "mine.yaml", base="base.yaml", model={"group_size": 2})
    expanded = expand_bases(["fit", *(part.format(file) for part in form), "--model.loss=GSPO"])
    assert (expanded[0], expanded[-1]) == ("fit", "--model.loss=GSPO")
    assert configs_of(expanded[1:-1]) == ["base.yaml", {"model": {"group_size": 2}}]


@pytest.mark.parametrize(
    "argument", ["fit", "--config", "--config={data: {source: a//b/}}", "--config=nowhere.yaml", "--config="]
)
def test_what_has_no_base_is_left_as_it_is(argument: str) -> None:
    assert expand_bases([argument]) == [argument]


def test_a_file_without_a_base_stays_a_file() -> None:
    quickstart = f"--config={CONFIGS / 'quickstart.yaml'}"
    assert expand_bases([quickstart, "--config", str(CONFIGS / "embedded.yaml")]) == [
        quickstart,
        f"--config={CONFIGS / 'embedded.yaml'}",
    ]


def test_fit_runs_with_both(tmp_path: Path) -> None:
    (tmp_path / "quickstart.yaml").write_text((CONFIGS / "quickstart.yaml").read_text())
    file = write(tmp_path / "mine.yaml", base="quickstart.yaml", model={"loss": {"class_path": "GSPO"}})
    expected = resolve(["fit", f"--config={CONFIGS / 'quickstart.yaml'}", "--model.loss=GSPO"])
    assert resolve(["fit", f"--config={file}"]) == expected
    assert expected["model.loss.init_args.clip_low"] == 3e-4


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("nowhere.yaml", r"mine\.yaml: base is 'nowhere\.yaml', but there is no file .*nowhere\.yaml"),
        (["quickstart.yaml"], r"mine\.yaml: base is \['quickstart\.yaml'\]; it must be the path of one configuration"),
        ("mine.yaml", r"base is 'mine\.yaml', which leads in a circle: \S*mine\.yaml → \S*mine\.yaml$"),
        ("other.yaml", r"base is 'mine\.yaml', which leads in a circle: \S*mine\S* → \S*other\S* → \S*mine\.yaml$"),
    ],
)
def test_a_base_that_leads_nowhere_is_refused(base: Any, message: str, tmp_path: Path) -> None:
    write(tmp_path / "other.yaml", base="mine.yaml")
    file = write(tmp_path / "mine.yaml", base=base)
    with pytest.raises(ConfigError, match=message):
        expand_bases([f"--config={file}"])


def test_a_shipped_configuration_is_found_by_name_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config("quickstart") == str(CONFIGS / "quickstart.yaml")
    assert expand_bases(["fit", "--config", "quickstart"]) == ["fit", f"--config={CONFIGS / 'quickstart.yaml'}"]
    base, own = expand_bases(["--config=gspo"])
    assert base == f"--config={CONFIGS / 'qwen_gsm8k.yaml'}"
    assert configs_of([own])[0]["model"]["loss"]["class_path"] == "GSPO"
    mine = write(tmp_path / "mine.yaml", base="quickstart", data={"val_size": 5})
    assert configs_of(expand_bases([f"--config={mine}"])) == ["quickstart.yaml", {"data": {"val_size": 5}}]
    (tmp_path / "gspo").write_text("data: {val_size: 3}")
    assert find_config("gspo") == "gspo"  # a file of one's own


def test_where_the_package_is_installed_its_own_folder_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config_files, "_PACKAGE", tmp_path / "rlvr_pl")
    strangers = write(tmp_path / "configs" / "gspo.yaml")  # beside the package, as in a checkout
    assert find_config("gspo") == str(strangers)
    installed = write(tmp_path / "rlvr_pl" / "configs" / "gspo.yaml")
    assert find_config("gspo") == str(installed)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("quikstart", "Did you mean quickstart?"), ("nonsense", "Choose from choice, compare, compare_controls,")],
)
def test_a_mistyped_name_is_refused_with_what_there_is(name: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as refused:
        expand_bases(["fit", "--config", name])
    said = f"--config {name}: there is no such file, and no configuration of that name comes with rlvr_pl. {remedy}"
    assert str(refused.value).startswith(said)


def test_the_base_of_a_comparison_is_beside_it_or_shipped_or_a_path(tmp_path: Path) -> None:
    write(tmp_path / "gspo.yaml")
    assert find_base("gspo.yaml", tmp_path) == str(tmp_path / "gspo.yaml")
    assert find_base("gspo", tmp_path) == "gspo"
    assert find_base("configs/gspo.yaml", tmp_path) == "configs/gspo.yaml"


def test_a_comparison_file_is_told_from_a_configuration() -> None:
    with pytest.raises(ConfigError, match=r"compare\.yaml is a comparison file; run it with: compare --config"):
        expand_bases([f"--config={CONFIGS / 'compare.yaml'}"])


def test_a_typo_under_a_base_ends_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "quickstart.yaml").write_text((CONFIGS / "quickstart.yaml").read_text())
    file = write(tmp_path / "mine.yaml", base="quickstart.yaml", model={"grop_size": 8})
    with pytest.raises(SystemExit) as stopped:
        main(["fit", f"--config={file}"])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "model.grop_size" in line
    assert "Did you mean model.group_size?" in line
