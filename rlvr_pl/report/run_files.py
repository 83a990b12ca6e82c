"""The records and events of one run, read fast and however they ended: whole, still growing, or torn by a kill.

Every reader returns what could be read, and says in words what could not.
"""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any, get_type_hints

import pandas as pd
import pyarrow as pa
import pyarrow.json
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.tensorflow_stub import errors
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import PyRecordReader_New

from rlvr_pl.run.folder import EVENTS
from rlvr_pl.run.records import EvaluationRecord

# The completion's text, most of a file, is left out; so is `extracted`.
_ARROW = {int: pa.int64(), str: pa.string(), bool: pa.bool_()}
_RECORD_COLUMNS = {
    name: _ARROW[kind]
    for name, kind in get_type_hints(EvaluationRecord).items()
    if name not in ("completion", "extracted")
}
RECORD_COLUMNS = tuple(_RECORD_COLUMNS)
_RECORD_SCHEMA = pa.schema(list(_RECORD_COLUMNS.items()))
_LONGEST_LINE = 1 << 23  # bytes; pyarrow reads blocks of this size, and a line must fit into one


def read_evaluation(path: Path) -> tuple[pd.DataFrame, str | None]:
    """Read the grades of one evaluation, without the completions.

    Returns:
        A row per record with the columns ``RECORD_COLUMNS``, and what is wrong with the file, or None.
    """
    data = path.read_bytes()
    if not data.strip():
        return _RECORD_SCHEMA.empty_table().to_pandas(), "holds no records"
    problems = []
    try:
        table = _parse(data)
    except pa.ArrowInvalid:
        lines = data.splitlines(keepends=True)
        whole = [line for line in lines if _is_record(line)]
        torn = whole == lines[:-1]
        problems.append("its last line is torn" if torn else f"unreadable lines: {len(lines) - len(whole)}")
        table = _parse(b"".join(whole)) if whole else _RECORD_SCHEMA.empty_table()
    frame = table.to_pandas()
    frame["cluster"] = frame["cluster"].fillna("")  # records made before there were clusters have none
    incomplete = frame.isna().any(axis=1)
    if incomplete.any():
        problems.append(f"records that lack a field: {incomplete.sum()}")
        types = {name: str(kind) for name, kind in _RECORD_COLUMNS.items() if kind != pa.string()}
        frame = frame[~incomplete].astype(types)
    return frame, f"{', '.join(problems)}; the other {len(frame)} records are used" if problems else None


def _parse(data: bytes) -> pa.Table:
    return pyarrow.json.read_json(
        io.BytesIO(data),
        read_options=pyarrow.json.ReadOptions(block_size=_LONGEST_LINE),
        parse_options=pyarrow.json.ParseOptions(
            explicit_schema=_RECORD_SCHEMA, unexpected_field_behavior="ignore", newlines_in_values=False
        ),
    )


def _is_record(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def read_completions(path: Path, questions: set[int]) -> dict[int, dict[str, Any]]:
    """Read the first whole record of each of these questions in one evaluation."""
    found: dict[int, dict[str, Any]] = {}
    with path.open("rb") as lines:
        for line in lines:
            try:
                record = json.loads(line)
            except ValueError:
                continue  # read_evaluation has named it
            if record["question"] in questions:
                found.setdefault(record["question"], record)
    return found


def read_scalars(folder: Path) -> tuple[pd.DataFrame, list[str]]:
    """Read TensorBoard's scalars of a run from all of its event files: of a resumed run the later file wins.

    Returns:
        The columns rollout, tag and value, ordered by tag and rollout; and what is wrong, a text per torn file.
    """
    values: dict[tuple[str, int], float] = {}
    torn: list[str] = []
    for file in sorted(folder.glob(EVENTS), key=_written):
        reader = PyRecordReader_New(str(file), 0, b"", None)
        while True:
            try:
                reader.GetNext()
                event = Event.FromString(reader.record())
            except errors.OutOfRangeError:
                break
            except Exception as error:  # a torn record fails in the reader or in the parser, as the bytes fall
                torn.append(f"{file.name}: torn ({str(error).rpartition(' has ')[2] or type(error).__name__})")
                break
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    values[_current_name(value.tag), event.step] = value.simple_value
    rows = [(rollout, tag, value) for (tag, rollout), value in sorted(values.items())]
    return pd.DataFrame(rows, columns=["rollout", "tag", "value"]), torn


def _current_name(tag: str) -> str:
    """Older runs called the group of a rollout's seconds ``time``."""
    return re.sub("^time/", "wall/", tag)


def _written(file: Path) -> tuple[int, int]:
    """When an event file was begun, from its name (second, and number in its process): a clone loses file times."""
    stamp, count = file.name.split(".")[3], file.name.rpartition(".")[2]
    return int(stamp) if stamp.isdigit() else 0, int(count) if count.isdigit() else 0
