"""Data sources: what a setting names, what a file holds, and what is said about one that cannot be read."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import datasets
import pytest

from rlvr_pl.data import EmbeddedProblems, HubDataset, LocalDataset
from rlvr_pl.data.problems import embedded_problems
from rlvr_pl.data.sources import DataSource, find_source
from rlvr_pl.types import ConfigError

Rows = list[dict[str, str]]


def make_rows(count: int, first: int = 0) -> Rows:
    return [{"question": f"What is {i} + 1?", "answer": f"{i}+1={i + 1}\n#### {i + 1}"} for i in range(first, count)]


TRAIN, TEST = make_rows(5), make_rows(9, first=5)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading parquet leaves files in the cache of datasets; the user's own is left alone."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def write_jsonl(path: Path, rows: Iterable[object]) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def write_parquet(path: Path, rows: Rows) -> None:
    datasets.Dataset.from_list(rows).to_parquet(str(path))


def rows_of(source: DataSource, split: Any) -> list[object]:
    rows = source(split)
    assert rows is not None
    return list(rows)


# What a setting names.


def test_embedded() -> None:
    source = find_source("embedded")
    assert isinstance(source, EmbeddedProblems)
    assert (source.sizes, source.seed) == ({"train": 8192, "test": 512}, 0)
    assert rows_of(source, "test") == embedded_problems("test", 512)
    small = EmbeddedProblems(train_size=3, test_size=2, seed=9)
    assert rows_of(small, "train") == embedded_problems("train", 3, seed=9)
    assert rows_of(small, "test") == embedded_problems("test", 2, seed=9)


@pytest.mark.parametrize("name", ["openai/gsm8k", "someone/else", "gsm8k", "a-b/c.d"])
def test_a_name_that_is_no_path_is_a_hub_id(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = find_source(name)
    assert isinstance(source, HubDataset)
    assert (source.path, source.name) == (name, "main" if name == "openai/gsm8k" else None)


def test_a_folder_with_the_name_of_a_hub_id_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "openai" / "gsm8k").mkdir(parents=True)
    write_jsonl(tmp_path / "openai" / "gsm8k" / "train.jsonl", TRAIN)
    source = find_source("openai/gsm8k")
    assert isinstance(source, LocalDataset)
    assert rows_of(source, "train") == TRAIN


def test_a_source_of_ones_own_is_returned_as_it_is() -> None:
    def source(split: str) -> Rows | None:
        return TRAIN if split == "train" else None

    assert find_source(source) is source


@pytest.mark.parametrize(
    "name",
    [
        "/no/such/folder",
        "/no",
        "./here",
        "../there",
        "~/nowhere/at/all",
        "a/b/c",
        "rows.jsonl",
        "rows.parquet",
        "a/b.jsonl",
    ],
)
def test_a_path_where_nothing_is(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    with pytest.raises(ConfigError) as error:
        find_source(name)
    assert str(error.value) == f"data.source: there is no file or folder {name!r}"


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_jsonl(tmp_path / "rows.jsonl", TRAIN)
    assert rows_of(find_source("~/rows.jsonl"), "train") == TRAIN


# Files and folders.


@pytest.mark.parametrize(("suffix", "write"), [(".jsonl", write_jsonl), (".parquet", write_parquet)])
def test_a_file_is_the_train_split(suffix: str, write: Callable[[Path, Rows], None], tmp_path: Path) -> None:
    path = tmp_path / f"some{suffix}"
    write(path, TRAIN)
    source = find_source(str(path))
    assert isinstance(source, LocalDataset)
    assert rows_of(source, "train") == TRAIN
    assert source("test") is None


@pytest.mark.parametrize("train", [".jsonl", ".parquet"])
@pytest.mark.parametrize("test", [".jsonl", ".parquet", None])
def test_a_folder_with_files(train: str, test: str | None, tmp_path: Path) -> None:
    write: dict[str, Callable[[Path, Rows], None]] = {".jsonl": write_jsonl, ".parquet": write_parquet}
    write[train](tmp_path / f"train{train}", TRAIN)
    source = find_source(str(tmp_path))
    if test is None:
        assert source("test") is None
    else:
        write[test](tmp_path / f"test{test}", TEST)
        assert rows_of(source, "test") == TEST
    assert rows_of(source, "train") == TRAIN


def test_a_folder_without_such_files_has_no_splits(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("question,answer\n")
    source = find_source(str(tmp_path))
    assert (source("train"), source("test")) == (None, None)


def test_a_saved_dataset_is_the_train_split(tmp_path: Path) -> None:
    datasets.Dataset.from_list(TRAIN).save_to_disk(str(tmp_path / "saved"))
    source = find_source(str(tmp_path / "saved"))
    assert rows_of(source, "train") == TRAIN
    assert source("test") is None


def test_a_saved_dataset_dict(tmp_path: Path) -> None:
    saved = {"train": datasets.Dataset.from_list(TRAIN), "test": datasets.Dataset.from_list(TEST)}
    datasets.DatasetDict(saved).save_to_disk(str(tmp_path / "both"))
    source = find_source(str(tmp_path / "both"))
    assert rows_of(source, "train") == TRAIN
    assert rows_of(source, "test") == TEST
    datasets.DatasetDict({"test": saved["test"]}).save_to_disk(str(tmp_path / "one"))
    source = find_source(str(tmp_path / "one"))
    assert source("train") is None
    assert rows_of(source, "test") == TEST


@pytest.mark.parametrize("marker", ["state.json", "dataset_dict.json"])
def test_a_broken_saved_dataset(marker: str, tmp_path: Path) -> None:
    (tmp_path / marker).write_text('{"splits": ["train"]}')
    with pytest.raises(ConfigError, match=r"data\.source: cannot read"):
        find_source(str(tmp_path))("train")


@pytest.mark.parametrize("name", ["rows.csv", "rows", "rows.json", "rows.jsonl.gz"])
def test_a_file_of_another_kind(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text("question,answer\n")
    with pytest.raises(ConfigError) as error:
        find_source(str(path))("train")
    assert str(error.value) == f"data.source: {str(path)!r} is neither a .jsonl nor a .parquet file"


@pytest.mark.parametrize("content", [b"", b"not parquet at all", b"PAR1\x00\x00\x00\x00PAR1"])
def test_an_unreadable_parquet_file(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        find_source(str(path))("train")
    message = str(error.value)
    assert re.fullmatch(rf"data\.source: cannot read {re.escape(repr(str(path)))}: \S+ \S+ .+", message)


# The lines of a jsonl file.


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [True, False])
def test_newlines(newline: str, last: bool, tmp_path: Path) -> None:
    text = newline.join(json.dumps(row) for row in TRAIN) + newline * last
    (tmp_path / "rows.jsonl").write_bytes(text.encode())
    assert rows_of(find_source(str(tmp_path / "rows.jsonl")), "train") == TRAIN


def test_a_newline_inside_a_string_ends_no_row(tmp_path: Path) -> None:
    """Python's splitlines() would cut at every one of these; only the escaped ones could end a line of jsonl."""
    rows = [{"question": f"a{c}b", "answer": f"1{c}#### 1"} for c in "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e\n\r\t"]
    for escape in (True, False):
        path = tmp_path / f"{escape}.jsonl"
        lines = [json.dumps(row, ensure_ascii=escape) for row in rows]
        assert escape == ("\u2028" not in lines[0])
        path.write_bytes("\n".join(lines).encode())
        assert rows_of(find_source(str(path)), "train") == rows


def test_other_scripts_are_read_as_utf_8_whatever_the_locale(tmp_path: Path) -> None:
    rows = [{"question": "Zoë pays 5 €. 买 3 个?", "answer": "√ #### 5"}]
    (tmp_path / "rows.jsonl").write_bytes(json.dumps(rows[0], ensure_ascii=False).encode("utf-8"))
    assert rows_of(find_source(str(tmp_path / "rows.jsonl")), "train") == rows


def test_a_broken_line_stands_for_itself(tmp_path: Path) -> None:
    """So that it is refused by its number, and the rows after it keep theirs."""
    good = json.dumps(TRAIN[0])
    (tmp_path / "rows.jsonl").write_text(f'{good}\n{{"question": "cut\n{good}\n[1, 2]\n17\n', encoding="utf-8")
    rows = rows_of(find_source(str(tmp_path / "rows.jsonl")), "train")
    assert rows == [TRAIN[0], '{"question": "cut\n', TRAIN[0], [1, 2], 17]


def test_an_empty_file_has_no_rows(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b"")
    assert rows_of(find_source(str(tmp_path / "rows.jsonl")), "train") == []


@pytest.mark.parametrize("content", [b'{"question": "\xff"}', b"\xfe\xff\x00{", "é".encode("latin-1")])
def test_a_file_that_is_not_utf_8(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        find_source(str(path))("train")
    message = str(error.value)
    assert message.startswith(f"data.source: cannot read {str(path)!r}: 'utf-8' codec can't decode byte ")
    assert len(message.splitlines()) == 1


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(TRAIN[0]).encode())
    assert rows_of(find_source(str(tmp_path / "rows.jsonl")), "train") == TRAIN[:1]


def test_a_blank_line_at_the_end_is_no_row(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(TRAIN[0]) + "\n\n")
    assert rows_of(find_source(str(tmp_path / "rows.jsonl")), "train") == TRAIN[:1]


def test_a_line_nested_too_deep_stands_for_itself(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("[" * 100_000)
    assert rows_of(find_source(str(tmp_path / "rows.jsonl")), "train") == ["[" * 100_000]


# The hub.


def test_the_hub_is_asked_for_gsm8ks_main_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def load_dataset(*args: Any) -> datasets.DatasetDict:
        asked.append(args)
        both = {"train": datasets.Dataset.from_list(TRAIN), "test": datasets.Dataset.from_list(TEST)}
        return datasets.DatasetDict(both)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    source = find_source("openai/gsm8k")
    assert rows_of(source, "train") == TRAIN
    assert rows_of(source, "test") == TEST
    assert set(asked) == {("openai/gsm8k", "main")}
    asked.clear()
    assert rows_of(HubDataset("someone/else", name="socratic"), "train") == TRAIN
    assert asked == [("someone/else", "socratic")]


def test_a_hub_dataset_without_a_test_split(monkeypatch: pytest.MonkeyPatch) -> None:
    only_train = datasets.DatasetDict({"train": datasets.Dataset.from_list(TRAIN)})
    monkeypatch.setattr(datasets, "load_dataset", lambda *args: only_train)
    assert rows_of(find_source("someone/else"), "train") == TRAIN
    assert find_source("someone/else")("test") is None


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("Couldn't reach 'no/such' on the Hub\nRetry later"),
        OSError("\n  no route to host\nat line 3"),
        datasets.exceptions.DatasetNotFoundError("Dataset 'no/such' doesn't exist on the Hub"),
        datasets.exceptions.DatasetGenerationError("An error occurred while generating the dataset"),
        ValueError("BuilderConfig 'main' not found. Available: ['a']"),
        RuntimeError("Dataset scripts are no longer supported, but found such.py"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_hub_that_does_not_deliver(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*args: Any) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(ConfigError) as raised:
        find_source("no/such")("train")
    reason = str(error).strip().split("\n")[0]
    assert str(raised.value) == (
        "data.source: cannot load 'no/such': it is neither a local file or folder nor available on the Hugging Face "
        f"hub ({reason}). Check the name and the network, or give a local path, or 'embedded'"
    )
    assert raised.value.__cause__ is error


def one_row(split: str) -> list[object] | None:
    return [TRAIN[0]] if split == "train" else None


def test_an_import_path_names_a_source_of_your_own() -> None:
    assert rows_of(find_source("tests.data.test_sources.one_row"), "train") == [TRAIN[0]]
    assert len(list(find_source("rlvr_pl.data.EmbeddedProblems")("test") or ())) == 512


def test_an_import_path_that_leads_nowhere() -> None:
    with pytest.raises(ConfigError, match=r"data\.source: cannot import 'no\.such_source'"):
        find_source("no.such_source")
