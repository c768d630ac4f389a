"""Merging the small files of a table into segments, while a sweep goes on writing them.

One merge is three steps: the segment is written, the manifest names it, the files whose rows it
holds are removed. Killed anywhere, the folder holds every row, some perhaps twice; `segments.py`
says which counts, and the next merge clears up.

A segment takes in the segments before it that have no more rows than itself. A table of n rows so
has about log2(n / LEAST) segments, and each row is rewritten as often. A segment is never changed,
and its name is never used again. If a row was made anew, the segment with the older one is merged
along, so that a program that reads the Parquet files alone sees one of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from pandas.core.util.hashing import hash_pandas_object

from .columns import IDENTITY, schema_of
from .process import trim
from .segments import (
    MANIFEST,
    Manifest,
    Segment,
    distinct,
    failures,
    is_segment,
    list_tables,
    number_of,
    read_files,
    read_manifest,
    readers_of,
)
from .storage import Storage
from .table_files import encode, part_of

LEAST = 500
"""Small files that are worth a merge."""

MOST = 2000
"""Small files that one merge takes; it bounds memory, and the time that the folder is locked."""

LARGEST_ROWS, LARGEST_BYTES = 50_000, 64 * 2**20
"""A segment that a merge would make larger than this is left as it is."""

DAMAGED = "_damaged-"
"""The beginning of the name of a segment that was set aside; readers pass it over."""

EVERY = 20.0
"""Seconds between two looks at the folders of a running sweep."""

log = logging.getLogger("ld3_dist")


@dataclass
class Segments:
    """The segments of one folder of tables, from the side of the one who writes them."""

    storage: Storage
    folder: str
    _hashes: dict[str, np.ndarray] = field(default_factory=dict)

    def fold(self, least: int = LEAST) -> int:
        """Merge the small files into segments; return the number of files merged.

        Nothing happens while there are fewer than `least` of them, but what a killed merge left
        is cleared up. Only one process of a folder should merge; on a folder of this machine a lock
        sees to it. Raises OSError where the storage fails.
        """
        total = 0
        while self.storage.list(self.folder):
            with self.storage.child(self.folder).exclusive():
                merged = self._fold_once(least)
            total += merged
            if merged < MOST:
                break
        if total:
            trim()  # reading many files leaves some hundred MB, and a driver lives long
        return total

    def take_in(self, tables: Sequence[tuple[str, pa.Table]]) -> int:
        """Add rows of another folder, by the names of their files; return the number added.

        A row that is here already stays, unless it failed and the other folder's did not.
        """
        added = 0
        for start in range(0, len(tables), MOST):
            some = list(tables[start : start + MOST])
            with self.storage.child(self.folder).exclusive():
                added += self._add(some)
        return added

    def _add(self, tables: list[tuple[str, pa.Table]]) -> int:
        there = list_tables(self.storage, self.folder)
        manifest = read_manifest(self.storage, self.folder)
        sound = self._without_damaged(manifest, there)
        known = np.concatenate([self._hashes[name] for name in sound.names] or [np.empty(0)])
        batch = _Batch(schema_of(self.folder), [], tables, {})  # after the rows that are here
        rows = batch.table()
        hashes = _hashes(rows, self.identity)
        fresh = ~np.isin(hashes, known)
        if not fresh.all():
            fresh |= np.isin(hashes, self._failed(sound)) & ~failures(rows)
        if not fresh.any():
            return 0
        merged, kept = self._partners(batch, sound)
        batch.add_segments(self.storage, self.folder, merged)
        new = self._write(batch, _next_number(there, manifest))
        body = Manifest((*kept, new)).encode()
        self.storage.write_bytes(f"{self.folder}/{MANIFEST}", body)
        self._remove([segment.name for segment in merged])
        return int(fresh.sum())

    def _failed(self, manifest: Manifest) -> np.ndarray:
        """The hashes of the identities of rows that failed."""
        schema = schema_of(self.folder)
        if "status" not in schema.names:  # no row of this table fails
            return np.empty(0)
        wanted = part_of(schema, [*self.identity, "status"])
        known = {segment.name: segment for segment in manifest.segments}
        found = read_files(self.storage, self.folder, known, wanted, known, strict=True)
        tables = [table for table in found.values() if isinstance(table, pa.Table)]
        every = pa.concat_tables([wanted.empty_table(), *tables])
        return _hashes(every, self.identity)[failures(every)]

    def _fold_once(self, least: int) -> int:
        there = list_tables(self.storage, self.folder)
        manifest = read_manifest(self.storage, self.folder)
        sound = self._without_damaged(manifest, there)
        named, merged_before = sound.names, sound.files
        strays = [n for n in there if is_segment(n) and n not in manifest.names]
        small = [name for name in there if not is_segment(name)]
        left_over = [name for name in small if name in merged_before]
        broken = len(named) < len(manifest.segments) or manifest.problem is not None
        if len(small) < least and not left_over and not strays and not broken:
            return 0
        strays.sort(key=number_of, reverse=True)
        batch = _Batch.read(self.storage, self.folder, small[:MOST], strays)
        for name in {*strays} & batch.unreadable.keys():
            self._set_aside(name, batch.unreadable[name])
        useless = [name for name in left_over if name in batch.unreadable]
        merged, kept = self._partners(batch, sound)
        if batch.names:
            try:
                batch.add_segments(self.storage, self.folder, merged)
            except OSError:
                self._hashes.clear()  # look at every segment again
                raise
            new = self._write(batch, _next_number(there, manifest))
            kept = [*kept, new]
        if batch.names or broken:
            body = Manifest(tuple(kept)).encode()
            self.storage.write_bytes(f"{self.folder}/{MANIFEST}", body)
        self._remove([*batch.names, *useless, *(segment.name for segment in merged)])
        return len(batch.names)

    def _without_damaged(self, manifest: Manifest, there: Sequence[str]) -> Manifest:
        """The manifest without segments that are lost or cannot be read; they are set aside.

        The next sweep makes their rows again.
        """
        sound = []
        for segment in manifest.segments:
            problem = self._hash(segment) if segment.name in there else "is missing"
            if problem is None:
                sound.append(segment)
            else:
                self._set_aside(segment.name, f"{problem}; {segment.rows} rows are lost")
        return Manifest(tuple(sound))

    def _set_aside(self, segment: str, problem: str) -> None:
        """Take a damaged segment out of every reader's way, and keep its bytes."""
        name, aside = (f"{self.folder}/{prefix}{segment}" for prefix in ("", DAMAGED))
        log.warning("%s: %s", self.storage.address(name), problem)
        with contextlib.suppress(FileNotFoundError):
            self.storage.write_bytes(aside, self.storage.read_bytes(name))
            self.storage.remove(name)

    def _hash(self, segment: Segment) -> str | None:
        """Know the identities in a segment; a text with the reason if it cannot be read."""
        if segment.name in self._hashes:
            return None
        wanted = part_of(schema_of(self.folder), self.identity)
        known = {segment.name: segment}
        found = read_files(self.storage, self.folder, known, wanted, known, strict=True)
        table = found.get(segment.name, "is missing")
        if isinstance(table, str):
            return table
        self._hashes[segment.name] = _hashes(table, self.identity)
        return None

    @property
    def identity(self) -> Sequence[str]:
        """Columns that tell rows apart."""
        return IDENTITY[self.folder]

    def _partners(self, batch: _Batch, manifest: Manifest) -> tuple[list[Segment], list[Segment]]:
        """The segments to merge along with a batch, newest first, and those to keep."""
        merged: list[Segment] = []
        kept: list[Segment] = []
        known = _hashes(batch.table(), self.identity)
        for segment in sorted(manifest.segments, key=lambda one: one.number):
            again = np.isin(self._hashes[segment.name], known).any()
            (merged if again else kept).append(segment)
        rows = len(known) + sum(segment.rows for segment in merged)
        size = sum(segment.bytes for segment in merged)
        while batch.names and kept and kept[-1].rows <= rows:
            rows, size = rows + kept[-1].rows, size + kept[-1].bytes
            if rows > LARGEST_ROWS or size > LARGEST_BYTES:
                break
            merged.append(kept.pop())
        return sorted(merged, key=lambda one: -one.number), kept

    def _write(self, batch: _Batch, number: int) -> Segment:
        """Write the rows of a batch that count as a segment, ordered by their files."""
        table, owners = batch.table(), batch.owners()
        rows = distinct(table, self.identity)
        rows = rows[np.argsort(owners[rows], kind="stable")]
        counts = np.bincount(owners[rows], minlength=len(batch.files))
        table = table.combine_chunks().take(pa.array(rows))
        data = encode(table)
        sha256 = hashlib.sha256(data).hexdigest()
        name = f"segment-{number:05d}-{sha256[:8]}.parquet"
        files = dict(zip(batch.files, counts.tolist(), strict=True))
        self.storage.write_bytes(f"{self.folder}/{name}", data)
        self._hashes[name] = _hashes(table, self.identity)
        return Segment(name, len(table), files, sha256, len(data))

    def _remove(self, names: Sequence[str]) -> None:
        for name in names:
            self._hashes.pop(name, None)
        with ThreadPoolExecutor(readers_of(self.storage)) as pool:
            list(pool.map(lambda name: self.storage.remove(f"{self.folder}/{name}"), names))


@dataclass
class _Batch:
    """The rows that one merge takes in; those that count before others come first."""

    schema: pa.Schema

    small: list[tuple[str, pa.Table]]
    strays: list[tuple[str, pa.Table]]
    unreadable: dict[str, str]
    segments: list[tuple[Segment, pa.Table]] = field(default_factory=list)
    _small: pa.Table | None = None

    @classmethod
    def read(
        cls, storage: Storage, folder: str, small: Sequence[str], strays: Sequence[str]
    ) -> _Batch:
        """Read small files, and segments that the manifest does not name."""
        schema = schema_of(folder)
        found = read_files(storage, folder, [*small, *strays], schema, strict=True)
        good = {name: table for name, table in found.items() if isinstance(table, pa.Table)}
        return cls(
            schema,
            [(name, good[name]) for name in small if name in good],
            [(name, good[name]) for name in strays if name in good],
            {name: text for name, text in found.items() if isinstance(text, str)},
        )

    def add_segments(self, storage: Storage, folder: str, segments: Sequence[Segment]) -> None:
        """Take in segments, newest first. Raises OSError for one that cannot be read any more."""
        known = {segment.name: segment for segment in segments}
        found = read_files(storage, folder, known, schema_of(folder), known, strict=True)
        for segment in segments:
            table = found.get(segment.name)
            if not isinstance(table, pa.Table):
                address = storage.address(f"{folder}/{segment.name}")
                raise OSError(f"{address}: has changed while it was merged ({table})")
            self.segments.append((segment, table))

    @property
    def names(self) -> list[str]:
        """Files that are removed afterwards, besides the segments."""
        return [name for name, _ in (*self.small, *self.strays)]

    @property
    def files(self) -> dict[str, int]:
        """Index of each small file."""
        found = [name for name, _ in self.small]
        found += [name for segment, _ in self.segments for name in segment.files]
        found += [name for name, _ in self.strays]
        return {name: index for index, name in enumerate(dict.fromkeys(found))}

    def table(self) -> pa.Table:
        """All rows."""
        if self._small is None:
            parts = [self.schema.empty_table(), *(table for _, table in self.small)]
            self._small = pa.concat_tables(parts).combine_chunks()
        others = [table for _, table in (*self.segments, *self.strays)]
        return pa.concat_tables([self._small, *others]).combine_chunks()

    def owners(self) -> np.ndarray:
        """Index of the small file that each row came from."""
        files = self.files
        counts = [(name, len(table)) for name, table in self.small]
        counts += [item for segment, _ in self.segments for item in segment.files.items()]
        counts += [(name, len(table)) for name, table in self.strays]
        owners = np.array([files[name] for name, _ in counts], dtype=np.int64)
        return np.repeat(owners, [rows for _, rows in counts])


def _hashes(table: pa.Table, identity: Sequence[str]) -> np.ndarray:
    """A hash of each row's identity; two that agree by chance only cost a larger merge."""
    frame = table.select(list(identity)).to_pandas()
    return np.asarray(hash_pandas_object(frame, index=False))


def _next_number(there: Sequence[str], manifest: Manifest) -> int:
    return 1 + max(map(number_of, [*there, *manifest.names]), default=0)


@contextlib.contextmanager
def folding(storage: Storage, every: float = EVERY, least: int = LEAST) -> Iterator[None]:
    """Merge the tables of a sweep in the background while the block runs, and wholly at its end.

    If the block ends with an exception the folder stays as it is. A merge that fails is logged and
    tried again: rows are not lost by it.
    """
    tables = [Segments(storage, folder) for folder in IDENTITY]
    ended = threading.Event()

    def work() -> None:
        while not ended.wait(every):
            fold_all(tables, least)

    thread = threading.Thread(target=work, name="ld3_dist-folding", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    fold_all(tables, 1)


def fold_all(tables: Sequence[Segments], least: int) -> None:
    """Merge several tables; a storage that fails is a warning."""
    for segments in tables:
        try:
            segments.fold(least)
        except OSError as error:
            log.warning("%s: not merged: %s", segments.storage.address(segments.folder), error)
