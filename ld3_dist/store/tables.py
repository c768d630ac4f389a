"""Result tables: many small Parquet files of one schema, read as one.

Every trial, every set of baselines and every evaluation writes a file of its own, atomically.
Writers need not wait for each other, and no file is ever appended to. A driver merges the files
into segments (`folding.py`), and a reader sees each row once (`segments.py`).
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from .columns import SCHEMAS
from .opening import open_storage
from .segments import MANIFEST, read_folder, read_small_file
from .storage import Storage
from .table_files import OWN, PACKED, SUFFIX, encode_table
from .table_files import format_of as format_of_bytes

__all__ = [
    "OWN",
    "SUFFIX",
    "Indexed",
    "encode_table",
    "format_of",
    "frame_of",
    "read_records",
    "read_table",
    "row_index",
    "unreadable_tables",
    "write_table",
]

log = logging.getLogger("ld3_dist")

_said: set[str] = set()

_NULLABLE = {
    pa.int32(): pd.Int32Dtype(),
    pa.int64(): pd.Int64Dtype(),
    pa.bool_(): pd.BooleanDtype(),
}


class Indexed(NamedTuple):
    """A row without its grid, its curves and its settings."""

    key: str
    kind: str
    status: str
    cell: str
    trial: Any
    seed: int | None
    start: str | None
    valid_loss: float | None


def write_table(
    storage: Storage, folder: str, name: str, records: Sequence[Mapping[str, Any]]
) -> None:
    """Write `records` as folder/name.parquet, one atomic file in the schema of the folder.

    Missing keys become null. Raises TypeError, naming column and value, for an unknown key, for a
    null in a required column, and for a value of the wrong type.
    """
    storage.write_bytes(f"{folder}/{name}{SUFFIX}", encode_table(folder, records))


def frame_of(folder: str, records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Records as a frame with the columns of a table; missing keys become null."""
    table = pq.read_table(pa.BufferReader(encode_table(folder, records)))
    return _with_own_metrics(table.to_pandas(types_mapper=_NULLABLE.get))


def read_table(storage: Storage, folder: str, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Every row of a table as one frame, each row once.

    Rows are in the order of their keys; those of failures in the order of their files. Integers
    and booleans have pandas' nullable types. Columns that an older version did not write are null.
    What cannot be read is left out with a warning, and `frame.attrs["unreadable"]` names it.

    Args:
        columns: columns to read, which is much faster; all if not given.

    Raises InputError for a file of a newer format.
    """
    found = read_folder(storage, folder, columns)
    for name, reason in found.unreadable.items():
        if name.endswith(MANIFEST):
            _say_once(f"{storage.address(name)}: {reason}; every segment is read without it")
        else:
            _say_once(f"{storage.address(name)}: left out, cannot be read ({reason})")
    unreadable, table = list(found.unreadable), found.table
    del found  # `self_destruct` frees each column once it is converted
    if columns is not None:
        table = table.select(list(columns))
    frame = table.to_pandas(types_mapper=_NULLABLE.get, self_destruct=True, split_blocks=True)
    frame = _with_own_metrics(frame)
    frame.attrs["unreadable"] = unreadable
    return frame


def row_index(storage: Storage) -> dict[str, Indexed]:
    """Some facts of each row that is there, by its key; far cheaper than the rows themselves."""
    found = read_folder(storage, "rows", Indexed._fields).table.select(list(Indexed._fields))
    values = zip(*(column.to_pylist() for column in found.columns), strict=True)
    return {row[0]: Indexed(*row) for row in values}


def _say_once(message: str) -> None:
    """Log a warning, unless this process has done so: a sweep reads its tables many times."""
    if message not in _said:
        _said.add(message)
        log.warning(message)


def _with_own_metrics(frame: pd.DataFrame) -> pd.DataFrame:
    """A column for each metric that is not built in, in place of their JSON.

    One that gives several numbers has no column of its own name, which holds only that it was not
    measured.
    """
    for packed in PACKED.values():
        frame = _unpacked(frame, packed)
    return frame


def _unpacked(frame: pd.DataFrame, packed: str) -> pd.DataFrame:
    """The frame with columns in place of one that holds them as JSON."""
    if packed not in frame:
        return frame
    found = [json.loads(text) if isinstance(text, str) else {} for text in frame[packed]]
    frame = frame.drop(columns=packed)
    names = sorted({name for values in found for name in values})
    for name in names:
        column = [values.get(name) for values in found]
        several = any(other.startswith(f"{name}.") for other in names)
        if not several or any(value is not None for value in column):
            frame[name] = column
    return frame


def unreadable_tables(place: str | os.PathLike[str] | Storage) -> list[str]:
    """Names of the files of tables in a sweep's folder that cannot be read."""
    storage = open_storage(place)
    return [name for folder in SCHEMAS for name in read_table(storage, folder).attrs["unreadable"]]


def read_records(storage: Storage, folder: str, name: str) -> list[dict[str, Any]] | None:
    """The records of one file, merged into a segment or not; None if they cannot be read.

    Such a file is written again by the next run.
    """
    table = read_small_file(storage, folder, f"{name}{SUFFIX}")
    return None if table is None else table.to_pylist()


def format_of(storage: Storage, name: str) -> int:
    """The format of the tables that a file was written in; 0 if that cannot be told."""
    try:
        return format_of_bytes(storage.read_bytes(name))
    except OSError:
        return 0
