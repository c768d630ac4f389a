"""Result tables: many small Parquet files of one schema, read as one.

Every trial, every set of baselines and every evaluation writes a file of its own, atomically.
Writers need not wait for each other, and no file is ever appended to. Reading a table means reading
all files of a folder.

When a table is written, NaN and infinity become null. A row with the status "ok" and a loss that is
not finite becomes "diverged", because null alone would mean "not measured".
"""

from __future__ import annotations

import io
import json
import logging
import math
import operator
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ..core.errors import InputError
from .columns import FORMAT, SCHEMAS, schema_of
from .opening import open_storage
from .storage import Storage

SUFFIX = ".parquet"
RENAMED = {"preset": "procedure", "generation": "round"}
"""Columns that older versions wrote, by the names they have now."""

READERS = 8
"""Number of threads that read files; they mostly wait for the disk or the network."""

OWN = "metric."
"""The beginning of the names of columns for metrics that are not built in."""

log = logging.getLogger("ld3_dist")

_said: set[str] = set()

_LOSSES = ("train_loss", "valid_loss")
_NULLABLE = {
    pa.int32(): pd.Int32Dtype(),
    pa.int64(): pd.Int64Dtype(),
    pa.bool_(): pd.BooleanDtype(),
}


def write_table(
    storage: Storage, folder: str, name: str, records: Sequence[Mapping[str, Any]]
) -> None:
    """Write `records` as folder/name.parquet, one atomic file in the schema of the folder.

    Missing keys become null. Raises TypeError, naming column and value, for an unknown key, for a
    null in a required column, and for a value of the wrong type.
    """
    storage.write_bytes(f"{folder}/{name}{SUFFIX}", encode_table(folder, records))


def encode_table(folder: str, records: Sequence[Mapping[str, Any]]) -> bytes:
    """The bytes that `write_table` writes; they depend on the records alone."""
    schema = schema_of(folder)
    plain = [_plain(folder, schema, record) for record in records]
    columns = []
    for field in schema:
        values = [record.get(field.name) for record in plain]
        whole = pa.types.is_integer(field.type)
        if not field.nullable and None in values:
            raise TypeError(
                f"table {folder}, record {values.index(None)}: column {field.name!r} must not "
                "be null"
            )
        try:
            if whole:  # pyarrow would cut 1.5 down to 1
                values = [value if value is None else operator.index(value) for value in values]
            columns.append(pa.array(values, type=field.type))
        except (pa.ArrowInvalid, TypeError, OverflowError) as error:
            raise TypeError(
                f"table {folder}: column {field.name!r} is {field.type}: {error}"
            ) from error
    sink = io.BytesIO()
    pq.write_table(pa.table(columns, schema=schema), sink, compression="zstd")
    return sink.getvalue()


def frame_of(folder: str, records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Records as a frame with the columns of a table; missing keys become null."""
    table = pq.read_table(pa.BufferReader(encode_table(folder, records)))
    return _with_own_metrics(table.to_pandas(types_mapper=_NULLABLE.get))


def read_table(storage: Storage, folder: str) -> pd.DataFrame:
    """Every file of a table as one frame, in order of the file names.

    Integers and booleans have pandas' nullable types. Columns that an older version did not write
    are null. A file that cannot be read is left out with a warning, and
    `frame.attrs["unreadable"]` names it. Raises InputError for a file of a newer format.
    """
    schema = schema_of(folder)
    names = [name for name in storage.list(folder) if name.endswith(SUFFIX)]
    with ThreadPoolExecutor(READERS) as pool:
        read = list(pool.map(lambda name: _read(storage, name, schema), names))
    tables = [table for table in read if isinstance(table, pa.Table)]
    unreadable = {
        name: reason for name, reason in zip(names, read, strict=True) if isinstance(reason, str)
    }
    for name, reason in unreadable.items():
        _say_once(f"{storage.address(name)}: left out, cannot be read ({reason})")
    frame = pa.concat_tables([schema.empty_table(), *tables]).to_pandas(types_mapper=_NULLABLE.get)
    frame = _with_own_metrics(frame)
    frame.attrs["unreadable"] = sorted(unreadable)
    return frame


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
    if "own_metrics" not in frame:
        return frame
    found = [json.loads(text) if isinstance(text, str) else {} for text in frame["own_metrics"]]
    frame = frame.drop(columns="own_metrics")
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
    """The records of one file; None if it is missing or cannot be read.

    Such a file is written again by the next run.
    """
    try:
        table = _read(storage, f"{folder}/{name}{SUFFIX}", schema_of(folder))
    except FileNotFoundError:
        return None
    return None if isinstance(table, str) else table.to_pylist()


def format_of(storage: Storage, name: str) -> int:
    """The format of the tables that a file was written in; 0 if that cannot be told."""
    try:
        schema = pq.read_schema(pa.BufferReader(storage.read_bytes(name)))
    except (OSError, pa.ArrowException):
        return 0
    return int((schema.metadata or {}).get(b"ld3_dist.format", b"0"))


def _plain(folder: str, schema: pa.Schema, record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with null for numbers that are not finite, and with a user's metrics as JSON."""
    own = {key: _finite(value) for key, value in record.items() if key.startswith(OWN)}
    if own:
        record = {key: value for key, value in record.items() if key not in own}
        record = {**record, "own_metrics": json.dumps(own, sort_keys=True)}
    extra = sorted(set(record) - set(schema.names))
    if extra:
        raise TypeError(
            f"table {folder} has no column {extra[0]!r}; its columns: {', '.join(schema.names)}"
        )
    plain = {key: _finite(value) for key, value in record.items()}
    lost = [key for key in _LOSSES if record.get(key) is not None and plain[key] is None]
    if folder == "rows" and lost and record.get("status") == "ok":
        plain["status"] = "diverged"
        plain["message"] = record.get("message") or f"{lost[0]} was {record[lost[0]]}"
    return plain


def _finite(value: Any) -> Any:
    if isinstance(value, (float, np.floating)):
        return value if math.isfinite(value) else None
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def _read(storage: Storage, name: str, schema: pa.Schema) -> pa.Table | str:
    """The table of a file in `schema`; a text with the reason if it cannot be read."""
    try:
        table = pq.read_table(pa.BufferReader(storage.read_bytes(name)))
    except (OSError, pa.ArrowException) as error:
        return f"{type(error).__name__}: {error}"
    version = int((table.schema.metadata or {}).get(b"ld3_dist.format", b"0"))
    if version > FORMAT:
        raise InputError(
            f"{storage.address(name)}: written by a newer version of ld3_dist (format {version}, "
            f"this one reads up to {FORMAT}); update ld3_dist"
        )
    try:
        names = {RENAMED.get(name, name): name for name in table.column_names}
        columns = [
            table[names[field.name]].cast(field.type)
            if field.name in names
            else pa.nulls(len(table), field.type)
            for field in schema
        ]
        return pa.table(columns, schema=schema)
    except (pa.ArrowException, KeyError, ValueError) as error:
        return f"not a table {schema.metadata[b'ld3_dist.table'].decode()}: {error}"
