"""Several output folders merged into a new one.

Rows, evaluations and losses are merged as tables, each row once. Pairs, schedules, pictures and the
records of failures are copied. What the folders' current experiments ask for is asked for by the
merged folder, too.

One row can be in several folders, and be another there: it failed, or another machine computed
other numbers. The one that did not fail counts, of those one that was evaluated, of those the first
folder's, as in `results.load_results`. Only its own schedule and evaluations are merged with it.

A file `_merge.json` stands in the folder from before the first row until after the lock is
released. A merge that was killed goes on when it is asked for again; what is there already is not
read again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from ..core.errors import InputError
from .columns import IDENTITY, schema_of
from .folding import Segments
from .frames import column
from .lineage import CLAIM, current, lineage_name, lineages
from .lock import acquire, locks_in, refuse_if_held
from .pairs import MANIFEST as PAIRS_MANIFEST
from .pairs import Manifest, ShardRecord
from .segments import is_segment, list_tables, read_files, read_manifest, rows_of
from .storage import Storage
from .tables import read_table

MARK = "_merge.json"
OLDEST_FORMAT = 3
"""Folders of older formats hold one experiment each, and their keys are others."""

COPIED = ("schedules", "samples", "failures")


def merge(sources: Sequence[Storage], target: Storage) -> Iterator[str]:
    """Merge folders into `target`; yields a line for each part that is done.

    Raises InputError, before anything is written, for folders of different or older formats, for a
    target that holds something else, and for folders that a sweep is running in.
    """
    formats = {storage.url: _format(storage) for storage in sources}
    _check_formats(formats)
    for storage in (*sources, target):
        refuse_if_held(storage)
    about = json.dumps({"sources": [storage.url for storage in sources]}).encode()
    _check_target(sources, target, about)
    target.check_writable()
    with acquire(target) as lock:
        target.write_bytes(MARK, about)
        for storage, out in zip(sources, outdone(sources), strict=True):
            lock.check()
            if out:
                yield f"left out: {len(out)} rows of {storage.url} that another folder has better"
            for folder in IDENTITY:
                lock.check()
                tables = [(name, _without(out, rows)) for name, rows in tables_in(storage, folder)]
                added = Segments(target, folder).take_in(tables)
                yield f"{folder}: {added} from {storage.url}"
            yield from _copy_files(storage, target, out)
        for folder in IDENTITY:
            Segments(target, folder).fold()  # segments that a killed merge left beside the others
        yield from _merge_lineage(sources, target, max(formats.values()))
    target.remove(MARK)  # after the lock, which a kill would else leave with nothing to explain it


def tables_in(storage: Storage, folder: str) -> list[tuple[str, pa.Table]]:
    """The rows of a folder by the small files that they came from, those that count first."""
    schema, manifest = schema_of(folder), read_manifest(storage, folder)
    there = list_tables(storage, folder)
    small = [name for name in there if not is_segment(name)]
    known = {one.name: one for one in reversed(manifest.segments)}
    strays = [name for name in there if is_segment(name) and name not in known]
    found = read_files(storage, folder, [*small, *known, *strays], schema, known, strict=True)
    for name in known.keys() - found.keys():
        found[name] = "is missing"
    parts = []
    for name, table in found.items():
        if isinstance(table, str):
            raise InputError(
                f"{storage.address(f'{folder}/{name}')}: {table}; run the sweep once more in its "
                f"folder, which makes it again, then merge"
            )
        files = known[name].files if name in known else {name: len(table)}
        whole = name not in known
        parts += [(n, table if whole else rows_of(known[name], n, table)) for n in files]
    return parts


def _format(storage: Storage) -> int:
    """The format of an output folder. Raises InputError where nothing says it."""
    try:
        claim = json.loads(storage.read_bytes(CLAIM))
        return int(claim.get("format", 0))
    except (FileNotFoundError, ValueError, AttributeError, TypeError) as error:
        raise InputError(
            f"{storage.address(CLAIM)}: is missing or damaged, so that the folder's format is not "
            f"known; run its sweep once more, then merge"
        ) from error


def _check_formats(formats: dict[str, int]) -> None:
    listed = ", ".join(f"{url} has {version}" for url, version in formats.items())
    if len({*formats.values()}) > 1:
        raise InputError(
            f"folders of different formats cannot be merged: {listed}. load_results reads them "
            f"together all the same"
        )
    if min(formats.values()) < OLDEST_FORMAT:
        raise InputError(
            f"folders of format {min(formats.values())} cannot be merged ({listed}); their results "
            f"can be read together with load_results and compared with `ld3-dist compare`"
        )


def _check_target(sources: Sequence[Storage], target: Storage, about: bytes) -> None:
    if target.url in [storage.url for storage in sources]:
        raise InputError(f"--output {target.url}: is one of the folders to merge; name another")
    try:
        begun = target.read_bytes(MARK)
    except FileNotFoundError:
        begun = None
    if begun is None and {*target.list(recursive=True)} - {*locks_in(target)}:
        raise InputError(f"--output {target.url}: exists already and holds files; name another")
    if begun not in (None, about):
        raise InputError(
            f"--output {target.url}: a merge of other folders was begun there "
            f"({begun.decode(errors='replace')}); finish it, or name another"
        )


def outdone(sources: Sequence[Storage]) -> list[frozenset[str]]:
    """For each folder, the keys of its rows that differ from the row of another folder which counts
    in their place.
    """
    names = ["status", "knots", "evals", "valid_loss"]
    parts = []
    for place, storage in enumerate(sources):
        rows = read_table(storage, "rows", ["key", *names])
        evaluated = column(read_table(storage, "evaluations", ["key"]), "key")
        values = zip(*(column(rows, name).map(_plain) for name in names), strict=True)
        parts.append(
            pd.DataFrame(
                {
                    "key": column(rows, "key"),
                    "failed": column(rows, "status") == "failed",
                    "bare": ~column(rows, "key").isin(list(evaluated)),
                    "place": place,
                    "content": [repr(row) for row in values],
                }
            )
        )
    every: Any = pd.concat(parts, ignore_index=True)
    several = every[every["key"].duplicated(keep=False)]
    order = several.sort_values(["failed", "bare", "place"], kind="stable")
    counts = order.drop_duplicates("key").set_index("key")["content"]
    other = several[several["content"] != several["key"].map(counts)]
    return [frozenset(other.loc[other["place"] == i, "key"]) for i in range(len(sources))]


def _plain(value: Any) -> Any:
    """A value of a row whose text is the same in every folder."""
    return value.tolist() if isinstance(value, np.ndarray) else value


def _without(keys: frozenset[str], table: pa.Table) -> pa.Table:
    """The rows of a table that do not belong to some rows."""
    if not keys:
        return table
    return table.filter(pa.array([key not in keys for key in table["key"].to_pylist()]))


def _copy_files(source: Storage, target: Storage, out: frozenset[str]) -> Iterator[str]:
    left_out = {f"schedules/{key}.json" for key in out}
    for folder in COPIED:
        names = [name for name in source.list(folder, recursive=True) if name not in left_out]
        copied = _copy(source, target, names)
        yield f"{folder}: {copied} files from {source.url}"
    names = source.list("pairs", recursive=True)
    shards = [name for name in names if not name.endswith(PAIRS_MANIFEST)]
    copied = _copy(source, target, shards)
    for key in sorted({name.split("/")[1] for name in names}):
        _merge_pairs(source.child(f"pairs/{key}"), target.child(f"pairs/{key}"))
    yield f"pairs: {copied} shards from {source.url}"


def _copy(source: Storage, target: Storage, names: Sequence[str]) -> int:
    """Copy the files that are not there; returns how many."""
    folders = {name.rpartition("/")[0] for name in names}
    there = {name for folder in folders for name in target.list(folder)}
    missing = [name for name in names if name not in there]
    for name in missing:
        target.write_bytes(name, source.read_bytes(name))
    return len(missing)


def _merge_pairs(source: Storage, target: Storage) -> None:
    """Write a manifest that names the shards of both; of two that overlap, the longer one."""
    mine = Manifest.load(source)
    if mine is None:
        return
    theirs = Manifest.load(target)
    shards = {shard.name: shard for shard in (*mine.shards, *(theirs.shards if theirs else ()))}
    kept: list[ShardRecord] = []
    for shard in sorted(shards.values(), key=lambda one: (one.start - one.stop, one.start)):
        if all(shard.stop <= other.start or other.stop <= shard.start for other in kept):
            kept.append(shard)
    Manifest(mine.meta, tuple(kept)).save(target)


def _merge_lineage(sources: Sequence[Storage], target: Storage, version: int) -> Iterator[str]:
    """Copy every experiment, and make one that asks for what the current ones ask for."""
    every = [found for storage in sources for found in lineages(storage)]
    for fingerprint in sorted({str(found["fingerprint"]) for found in every}):
        same = [found for found in every if found["fingerprint"] == fingerprint]
        _write(target, united(same, fingerprint))
    latest = {str(found["fingerprint"]): found for found in map(current, sources) if found}
    names = sorted(latest)
    if len(names) > 1:
        fingerprint = hashlib.sha256(" ".join(names).encode()).hexdigest()[:16]
        _write(target, united([latest[name] for name in names], fingerprint) | {"merged": names})
        names = [fingerprint]
    if names:
        claim = {"format": version, "current": names[0]}
        target.write_bytes(CLAIM, (json.dumps(claim, indent=2) + "\n").encode())
    yield f"experiments: {len({str(found['fingerprint']) for found in every})}"


def united(experiments: Sequence[dict[str, Any]], fingerprint: str) -> dict[str, Any]:
    """One experiment that asks for everything that several ask for; the first one's settings."""
    asked: dict[str, Any] = {}
    for part in ("trials", "members", "baselines"):
        listed = [item for one in experiments for item in one["asked"].get(part, [])]
        asked[part] = list({json.dumps(item): item for item in listed}.values())
    asked["complete"] = all(one["asked"].get("complete") for one in experiments)
    found = experiments[0] | {"fingerprint": fingerprint, "asked": asked}
    scores = [one.get("evaluation") for one in experiments]
    if all(isinstance(score, list) for score in scores):
        found["evaluation"] = sorted({item for score in scores for item in score or ()})
    found["name"] = " + ".join(dict.fromkeys(str(one.get("name")) for one in experiments))
    found["first_run"] = min(str(one.get("first_run")) for one in experiments)
    found["last_run"] = max(str(one.get("last_run")) for one in experiments)
    return found


def _write(target: Storage, experiment: dict[str, Any]) -> None:
    name = lineage_name(str(experiment["fingerprint"]))
    target.write_bytes(name, (json.dumps(experiment, indent=2) + "\n").encode())
