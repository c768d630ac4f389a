"""One Parquet file of a table: its bytes from records, and its rows from bytes.

When a table is written, NaN and infinity become null. A row with the status "ok" and a loss that is
not finite becomes "diverged", because null alone would mean "not measured".
"""

from __future__ import annotations

import io
import json
import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..core.errors import InputError
from .columns import FORMAT, schema_of

SUFFIX = ".parquet"
RENAMED = {"preset": "procedure", "generation": "round"}
"""Columns that older versions wrote, by the names they have now."""

OWN = "metric."
"""The beginning of the names of columns for metrics that are not built in."""

OVER_GRID = "over_grid."
"""The beginning of the names of columns that compare a judge's scores with those of a grid."""

PACKED = {OWN: "own_metrics", OVER_GRID: "over_grid"}
"""Columns that are kept as JSON: the beginning of their names, and the column of the JSON."""

_LOSSES = ("train_loss", "valid_loss")


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
    return encode(pa.table(columns, schema=schema))


def encode(table: pa.Table) -> bytes:
    """The bytes of a table as a Parquet file."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def part_of(schema: pa.Schema, columns: Sequence[str] | None) -> pa.Schema:
    """The schema of some columns; of all if None. Raises KeyError for one that is not there."""
    if columns is None:
        return schema
    return pa.schema([schema.field(name) for name in columns], metadata=schema.metadata)


def decode(where: str, data: bytes, schema: pa.Schema) -> pa.Table | str:
    """The rows of a Parquet file in a schema; a text with the reason if it cannot be read.

    Columns that the file does not have are null. Raises InputError, with `where` as the name of
    the file, if a newer version wrote it.
    """
    try:
        file = pq.ParquetFile(pa.BufferReader(data), pre_buffer=False)
        version = int((file.schema_arrow.metadata or {}).get(b"ld3_dist.format", b"0"))
        known = {RENAMED.get(name, name): name for name in file.schema_arrow.names}
        present = [known[name] for name in schema.names if name in known]
        table = file.read(columns=present, use_threads=False)
    except (OSError, ValueError, pa.ArrowException) as error:
        return f"{type(error).__name__}: {error}"
    if version > FORMAT:
        raise InputError(
            f"{where}: written by a newer version of ld3_dist (format {version}, this one "
            f"reads up to {FORMAT}); update ld3_dist"
        )
    if table.schema.equals(schema):
        return pa.Table.from_arrays(table.columns, schema=schema)
    try:
        columns = [
            table[known[field.name]].cast(field.type)
            if field.name in known
            else pa.nulls(len(table), field.type)
            for field in schema
        ]
        return pa.table(columns, schema=schema)
    except (pa.ArrowException, KeyError, ValueError) as error:
        return f"not a table {(schema.metadata or {})[b'ld3_dist.table'].decode()}: {error}"


def _plain(folder: str, schema: pa.Schema, record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with null for numbers that are not finite, and with a user's metrics as JSON."""
    for start, column in PACKED.items():
        own = {key: _finite(value) for key, value in record.items() if key.startswith(start)}
        if own:
            record = {key: value for key, value in record.items() if key not in own}
            record = {**record, column: json.dumps(own, sort_keys=True)}
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
        return type(value)(_finite(item) for item in value)
    return value


def format_of(data: bytes) -> int:
    """The format of the tables that a file was written in; 0 if that cannot be told."""
    try:
        schema = pq.read_schema(pa.BufferReader(data))
    except (OSError, pa.ArrowException):
        return 0
    return int((schema.metadata or {}).get(b"ld3_dist.format", b"0"))
