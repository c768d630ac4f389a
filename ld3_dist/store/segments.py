"""A folder of tables as one table: small files, and segments that many of them were merged into.

    rows/<name>.parquet                 a small file, as a trial or an evaluation wrote it
    rows/segment-<number>-<hash>.parquet     the rows of many small files
    rows/_manifest.json                 what every segment holds: its rows, the small files that
                                        they came from, its length and its SHA-256

`folding.py` writes a segment, then the manifest, then removes the small files. A reader takes
everything that is there, so the order matters only for programs that know nothing of a manifest.

Every row has an identity, such as its key. Where two files hold the same identity, one row counts:
one that did not fail before one that failed, then a small file before a segment (it was written
later), then a newer segment before an older one, and last a segment that the manifest does not
name. So every row is seen exactly once, whatever was killed between any two writes.

A reader lists the folder before it reads the manifest. If a file has vanished meanwhile, and the
manifest does not say where its rows are, it looks again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from ..core.errors import InputError
from .columns import IDENTITY, schema_of
from .storage import Storage
from .table_files import SUFFIX, decode, part_of

MANIFEST = "_manifest.json"
"""Its name begins with an underscore, so that readers of Parquet folders pass it over."""

MANIFEST_FORMAT = 1

READERS, LOCAL_READERS = 8, 2
"""Number of threads that read files of an object store, and of a folder: more than two of the
latter would mostly wait for each other.
"""

BATCH = 500
"""Small files that are read before their rows are packed together; it bounds the memory."""

LOOKS = 10
"""Times that a reader looks at a folder whose files vanish under it."""

_SEGMENT = re.compile(r"^segment-(\d+)-[0-9a-f]{8}\.parquet$")

log = logging.getLogger("ld3_dist")


@dataclass(frozen=True)
class Segment:
    """One segment in the manifest.

    files: number of its rows that came from each small file, in the order of its rows.
    """

    name: str
    rows: int
    files: Mapping[str, int]
    sha256: str
    bytes: int

    @property
    def number(self) -> int:
        """The number in its name; a newer segment has a larger one."""
        return number_of(self.name)

    def complaint(self, data: bytes) -> str | None:
        """Why these bytes are not this segment's, or None if they are."""
        if len(data) != self.bytes:
            return f"has {len(data)} bytes, not the {self.bytes} that {MANIFEST} says"
        if hashlib.sha256(data).hexdigest() != self.sha256:
            return f"its SHA-256 is not the one in {MANIFEST}"
        return None


@dataclass(frozen=True)
class Manifest:
    """The segments of a folder, oldest first; `problem` says why the file cannot be used."""

    segments: tuple[Segment, ...] = ()
    problem: str | None = None

    @property
    def files(self) -> frozenset[str]:
        """Names of all small files whose rows are in segments."""
        return frozenset(name for segment in self.segments for name in segment.files)

    @property
    def names(self) -> frozenset[str]:
        """Names of the segments."""
        return frozenset(segment.name for segment in self.segments)

    def encode(self) -> bytes:
        """The bytes of the file."""
        listed = [vars(segment) | {"files": dict(segment.files)} for segment in self.segments]
        return (json.dumps({"format": MANIFEST_FORMAT, "segments": listed}) + "\n").encode()


def is_segment(name: str) -> bool:
    """True for the name of a segment, with or without its folder."""
    return bool(_SEGMENT.match(name.rpartition("/")[2]))


def number_of(name: str) -> int:
    """The number in the name of a segment; 0 for other names."""
    found = _SEGMENT.match(name)
    return int(found[1]) if found else 0


def read_manifest(storage: Storage, folder: str) -> Manifest:
    """The manifest of a folder; an empty one where there is none.

    Raises InputError for one of a newer format.
    """
    name = f"{folder}/{MANIFEST}"
    try:
        body = json.loads(storage.read_bytes(name))
        version = body["format"]
        if version <= MANIFEST_FORMAT:
            return Manifest(tuple(_segment(entry) for entry in body["segments"]))
    except FileNotFoundError:
        return Manifest()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return Manifest(problem=f"is damaged ({type(error).__name__}: {error})")
    raise InputError(
        f"{storage.address(name)}: written by a newer version of ld3_dist (format {version}, this "
        f"one reads up to {MANIFEST_FORMAT}); update ld3_dist"
    )


def _segment(entry: dict[str, Any]) -> Segment:
    files = {str(name): int(rows) for name, rows in entry["files"].items()}
    name, rows, size = str(entry["name"]), int(entry["rows"]), int(entry["bytes"])
    if not is_segment(name) or "/" in name or sum(files.values()) != rows:
        raise ValueError(f"{name} is no segment of {rows} rows")
    return Segment(name, rows, files, str(entry["sha256"]), size)


@dataclass
class Found:
    """The rows of a folder, each once, ordered by identity.

    unreadable: name of each file that could not be read, and the reason.
    """

    table: pa.Table
    unreadable: dict[str, str]


def read_folder(storage: Storage, folder: str, columns: Sequence[str] | None = None) -> Found:
    """Every row of a folder exactly once, in the order of their identities.

    Args:
        columns: columns to read; all if not given.

    Raises InputError for a file of a newer format.
    """
    schema = schema_of(folder)
    identity = IDENTITY.get(folder, ())
    needed = [name for name in (*identity, "status") if name in schema.names]
    if columns is not None and identity:
        columns = list(dict.fromkeys([*columns, *needed]))
    snapshot = _look(_Reading(storage, folder, part_of(schema, columns)))
    table = pa.concat_tables([part_of(schema, columns).empty_table(), *snapshot.tables()])
    unreadable = snapshot.unreadable()
    del snapshot  # each table once in memory
    if identity:
        table = _in_order(table, identity)
    return Found(table, unreadable)


def distinct(table: pa.Table, identity: Sequence[str]) -> np.ndarray:
    """Indices of the first row of each identity, ascending; rows that failed come after others."""
    names = table.select(list(identity)).to_pandas()
    order = np.argsort(failures(table), kind="stable")
    return np.sort(order[~names.iloc[order].duplicated().to_numpy()])


def failures(table: pa.Table) -> np.ndarray:
    """True for the rows that failed; only rows of tables with a status can."""
    if "status" not in table.column_names:
        return np.zeros(len(table), dtype=bool)
    return np.array(table["status"].to_pylist(), dtype=object) == "failed"


def _in_order(table: pa.Table, identity: Sequence[str]) -> pa.Table:
    """The rows that count, in the order of their identities, null first."""
    kept = distinct(table, identity)
    names = table.select(list(identity)).take(pa.array(kept)).to_pandas()
    names.columns = range(len(identity))
    order = names.sort_values([*names.columns], na_position="first").index.to_numpy()
    return table.take(pa.array(kept[order]))


@dataclass
class _Reading:
    """One look at a folder; what was read stays for the next look."""

    storage: Storage
    folder: str
    schema: pa.Schema
    small: list[str] = field(default_factory=list)
    strays: list[str] = field(default_factory=list)
    manifest: Manifest = Manifest()
    read: dict[str, pa.Table | str] = field(default_factory=dict)
    packed: list[pa.Table] = field(default_factory=list)
    vanished: set[str] = field(default_factory=set)

    def tables(self) -> list[pa.Table]:
        """All tables, those that count first before the others."""
        known = sorted(self.manifest.segments, key=lambda one: -one.number)
        names = [*(one.name for one in known), *sorted(self.strays, key=number_of, reverse=True)]
        found = [self.read[name] for name in names if name in self.read]
        return self.packed + [table for table in found if isinstance(table, pa.Table)]

    def unreadable(self) -> dict[str, str]:
        """Files that could not be read; a segment that is missing is one of them."""
        gone = {n for n in self.read if is_segment(n)} - self.manifest.names - {*self.strays}
        found = {n: text for n, text in self.read.items() if isinstance(text, str)}
        found = {n: text for n, text in found.items() if n not in gone}
        missing = self.vanished & self.manifest.names
        found |= dict.fromkeys(missing, f"is missing, and {MANIFEST} names it")
        if self.manifest.problem:
            found[MANIFEST] = self.manifest.problem
        return {f"{self.folder}/{name}": text for name, text in sorted(found.items())}


def _look(reading: _Reading) -> _Reading:
    """Read everything in a folder; look again where files vanished with their rows."""
    before: set[str] | None = None
    for _ in range(LOOKS):
        there = list_tables(reading.storage, reading.folder)  # before the manifest: see above
        reading.manifest = read_manifest(reading.storage, reading.folder)
        named = reading.manifest.names
        reading.strays = [name for name in there if is_segment(name) and name not in named]
        reading.small = [name for name in there if not is_segment(name)]
        reading.vanished = set()
        reading.read = {n: found for n, found in reading.read.items() if is_segment(n)}
        _read_small(reading)
        _read_segments(reading)
        lost = reading.vanished - reading.manifest.files
        if not lost or lost == before:
            return reading
        before = lost
    return reading


def list_tables(storage: Storage, folder: str) -> list[str]:
    """Names of the Parquet files in a folder, without the folder."""
    return [
        name.removeprefix(f"{folder}/") for name in storage.list(folder) if name.endswith(SUFFIX)
    ]


def _read_small(reading: _Reading) -> None:
    """Read the small files, packing the rows of many into one table."""
    reading.packed = []
    for start in range(0, len(reading.small), BATCH):
        names = reading.small[start : start + BATCH]
        found = read_files(reading.storage, reading.folder, names, reading.schema)
        reading.vanished |= set(names) - found.keys()
        tables = [table for table in found.values() if isinstance(table, pa.Table)]
        if tables:
            reading.packed.append(pa.concat_tables(tables).combine_chunks())
        reading.read |= {name: text for name, text in found.items() if isinstance(text, str)}


def _read_segments(reading: _Reading) -> None:
    known = {segment.name: segment for segment in reading.manifest.segments}
    names = [name for name in (*known, *reading.strays) if name not in reading.read]
    found = read_files(reading.storage, reading.folder, names, reading.schema, known)
    reading.vanished |= set(names) - found.keys()
    reading.read |= found


def read_files(
    storage: Storage,
    folder: str,
    names: Iterable[str],
    schema: pa.Schema,
    known: Mapping[str, Segment] | None = None,
    strict: bool = False,
) -> dict[str, pa.Table | str]:
    """The tables of some files, in their order; the reason for one that cannot be read.

    Files that are not there are left out. Segments in `known` are verified first.

    Args:
        strict: raise OSError where the storage fails, so that it is not taken for a damaged file.
    """

    def read(name: str) -> pa.Table | str | None:
        try:
            data = storage.read_bytes(f"{folder}/{name}")
        except FileNotFoundError:
            return None
        except OSError as error:
            if strict:
                raise
            return f"{type(error).__name__}: {error}"
        segment = (known or {}).get(name)
        problem = segment and segment.complaint(data)
        return problem or decode(storage.address(f"{folder}/{name}"), data, schema)

    listed = list(names)
    with ThreadPoolExecutor(readers_of(storage)) as pool:
        tables = list(pool.map(read, listed))
    pairs = zip(listed, tables, strict=True)
    return {name: table for name, table in pairs if table is not None}


def readers_of(storage: Storage) -> int:
    """The number of threads that read from a storage."""
    return READERS if storage.local_path is None else LOCAL_READERS


def read_small_file(storage: Storage, folder: str, name: str) -> pa.Table | None:
    """The rows that a small file holds, or held before it was merged; None if they are nowhere.

    Args:
        name: of the file, without its folder.
    """
    schema = schema_of(folder)
    for _ in range(LOOKS):
        found = read_files(storage, folder, [name], schema).get(name)
        if found is not None:
            return found if isinstance(found, pa.Table) else None
        holders = [one for one in read_manifest(storage, folder).segments if name in one.files]
        if not holders:
            return None
        newest = max(holders, key=lambda segment: segment.number)
        table = read_files(storage, folder, [newest.name], schema, {newest.name: newest})
        if newest.name in table:
            whole = table[newest.name]
            return rows_of(newest, name, whole) if isinstance(whole, pa.Table) else None
    return None


def rows_of(segment: Segment, name: str, table: pa.Table) -> pa.Table:
    """The rows of a segment that came from one small file."""
    start = 0
    for file, rows in segment.files.items():
        if file == name:
            return table.slice(start, rows)
        start += rows
    return table.slice(0, 0)


def problems(storage: Storage, folder: str) -> Iterator[tuple[str, str]]:
    """Everything that is wrong with the segments of a folder: the file, and the problem.

    Reads every segment. Says nothing about the small files themselves.
    """
    there = set(list_tables(storage, folder))
    manifest = read_manifest(storage, folder)
    if manifest.problem:
        yield f"{folder}/{MANIFEST}", manifest.problem
    known = {segment.name: segment for segment in manifest.segments}
    strays = sorted(name for name in there if is_segment(name) and name not in known)
    found = read_files(storage, folder, [*known, *strays], schema_of(folder), known)
    for name in known:
        if name not in found:
            yield f"{folder}/{name}", f"is missing, and {MANIFEST} names it"
    for name, table in found.items():
        if isinstance(table, str):
            yield f"{folder}/{name}", f"cannot be read: {table}"
        elif name in strays and not manifest.problem:
            yield f"{folder}/{name}", f"is not in {MANIFEST}; left over from a merge"
        elif name in known and len(table) != known[name].rows:
            rows = known[name].rows
            yield f"{folder}/{name}", f"has {len(table)} rows, not the {rows} of {MANIFEST}"
    for name in sorted(manifest.files & there):
        yield f"{folder}/{name}", "is merged already; left over from a merge"
