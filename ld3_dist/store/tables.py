"""Result tables: many small Parquet files of one schema, read as one.

Every trial, baseline set or evaluation writes its own file, atomically and without asking anybody;
reading a table is reading a folder. Nothing is appended to, so nothing can be half appended.

On writing, a NaN or an infinity becomes null; a row that calls itself "ok" with a loss that is not
finite becomes "diverged", because null alone would read as "not measured"."""

from __future__ import annotations

import io
import json
import math
import operator
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ..core.errors import InputError
from .columns import FORMAT, schema_of
from .storage import Storage

SUFFIX = ".parquet"
READERS = 8
"""Threads that read files; what they wait for is the disk or the network."""

OWN = "metric."
"""How columns of metrics that are not built in begin."""

_LOSSES = ("train_loss", "valid_loss")
_NULLABLE = {
    pa.int32(): pd.Int32Dtype(),
    pa.int64(): pd.Int64Dtype(),
    pa.bool_(): pd.BooleanDtype(),
}


class UnreadableTable(UserWarning):
    """A file of a table could not be read and was left out."""


def write_table(
    storage: Storage, folder: str, name: str, records: Sequence[Mapping[str, Any]]
) -> None:
    """Write `records` as folder/name.parquet, one atomic file in the schema of the folder; missing
    keys become null.

    Raises TypeError, naming column and value, for an unknown key, a null where one is required, or
    a wrong type."""
    storage.write_bytes(f"{folder}/{name}{SUFFIX}", encode_table(folder, records))


def encode_table(folder: str, records: Sequence[Mapping[str, Any]]) -> bytes:
    """The bytes of such a file; they depend on the records alone."""
    schema = schema_of(folder)
    plain = [_plain(folder, schema, record) for record in records]
    columns = []
    for field in schema:
        values = [record.get(field.name) for record in plain]
        whole = pa.types.is_integer(field.type)
        if not field.nullable and None in values:
            raise TypeError(
                f"table {folder}, record {values.index(None)}: column {field.name!r} must not be "
                f"null"
            )
        try:
            # pyarrow would cut 1.5 down to 1
            exact = (
                [value if value is None else operator.index(value) for value in values]
                if whole
                else values
            )
            columns.append(pa.array(exact, type=field.type))
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
    """Every file of a table as one frame, in order of the file names; integers and booleans in
    pandas' nullable types.

    A file that is not readable is left out, warned about, and named in `frame.attrs["unreadable"]`.
    Columns that an older version did not write are null. Raises InputError for a file of a newer
    format."""
    schema = schema_of(folder)
    names = [name for name in storage.list(folder) if name.endswith(SUFFIX)]
    with ThreadPoolExecutor(READERS) as pool:
        read = list(pool.map(lambda name: _read(storage, name, schema), names))
    tables = [table for table in read if isinstance(table, pa.Table)]
    unreadable = {
        name: reason for name, reason in zip(names, read, strict=True) if isinstance(reason, str)
    }
    for name, reason in unreadable.items():
        warnings.warn(
            f"{storage.address(name)}: left out, cannot be read ({reason})",
            UnreadableTable,
            stacklevel=2,
        )
    frame = pa.concat_tables([schema.empty_table(), *tables]).to_pandas(types_mapper=_NULLABLE.get)
    frame = _with_own_metrics(frame)
    frame.attrs["unreadable"] = sorted(unreadable)
    return frame


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


def read_records(storage: Storage, folder: str, name: str) -> list[dict[str, Any]] | None:
    """The records of one file; None where it is missing or cannot be read (it will then be written
    again).
    """
    try:
        table = _read(storage, f"{folder}/{name}{SUFFIX}", schema_of(folder))
    except FileNotFoundError:
        return None
    return None if isinstance(table, str) else table.to_pylist()


def _plain(folder: str, schema: pa.Schema, record: Mapping[str, Any]) -> dict[str, Any]:
    """The record without numbers that are not finite, metrics of one's own as JSON."""
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
    """The table in `schema`, or why it cannot be read."""
    try:
        table = pq.read_table(pa.BufferReader(storage.read_bytes(name)))
    except (OSError, pa.ArrowException) as error:
        return f"{type(error).__name__}: {error}"
    version = int((table.schema.metadata or {}).get(b"ld3_dist.format", b"0"))
    if version > FORMAT:
        raise InputError(
            f"{storage.address(name)}: written by a newer version of ld3_dist (format {version}, "
            f"this one reads up to "
            f"{FORMAT}); update ld3_dist"
        )
    try:
        columns = [
            table[field.name].cast(field.type)
            if field.name in table.column_names
            else pa.nulls(len(table), field.type)
            for field in schema
        ]
        return pa.table(columns, schema=schema)
    except (pa.ArrowException, KeyError, ValueError) as error:
        return f"not a table {schema.metadata[b'ld3_dist.table'].decode()}: {error}"
