"""The tables of a finished sweep as they were before they were merged: small files alone."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

from ld3_dist.store.opening import open_storage
from ld3_dist.store.segments import MANIFEST, read_manifest
from ld3_dist.store.table_files import encode


def unfold(out: Path, folder: str) -> dict[str, list[str]]:
    """Write each segment's rows to the files that they came from; the keys in each file."""
    keys: dict[str, list[str]] = {}
    for segment in read_manifest(open_storage(out), folder).segments:
        table, at = pq.read_table(out / folder / segment.name), 0
        for name, count in segment.files.items():
            if count:
                part = table.slice(at, count)
                (out / folder / name).write_bytes(encode(part))
                keys[name] = part["key"].to_pylist()
            at += count
        (out / folder / segment.name).unlink()
    (out / folder / MANIFEST).unlink()
    return keys
