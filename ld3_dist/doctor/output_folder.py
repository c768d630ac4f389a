"""Where results are to go: reachable, writable, and not another experiment's; found out by reading
alone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from ..core.errors import InputError
from ..store.opening import open_storage
from ..store.storage import Storage


def storage_checks(output: str, fingerprint: str | None) -> Iterator[tuple[str, str, str, str]]:
    """(name, status, detail, remedy) of every check of an output folder or URL; `fingerprint` None
    is unknown.
    """
    try:
        storage = open_storage(output)
        found = storage.read_bytes("experiment.json") if storage.exists("experiment.json") else None
        empty = not storage.exists()
    except (InputError, OSError, ImportError, ValueError) as error:
        yield (
            output,
            "missing",
            f"cannot be reached: {error}",
            "check address, credentials and network",
        )
        return
    if storage.local_path is not None:
        folder = existing(storage.local_path)
        fits = folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)
        detail = "writable" if fits else f"{folder} is not a folder you may write to"
        yield (
            storage.url,
            "ok" if fits else "missing",
            detail,
            "" if fits else "give another --output",
        )
    else:
        detail = "answers; whether it may be written to shows when a sweep starts"
        yield storage.url, "note", detail, ""
    yield _owner(storage, found, empty, fingerprint)


def existing(path: Path) -> Path:
    """The path itself, or the nearest one above it that exists."""
    path = path.expanduser().absolute()
    return next(p for p in (path, *path.parents) if p.exists())


def _owner(
    storage: Storage, found: bytes | None, empty: bool, fingerprint: str | None
) -> tuple[str, str, str, str]:
    """Whose folder it is."""
    if found is None:
        if empty or not (storage.exists("rows") or storage.exists("pairs")):
            return "results in it", "ok", "none yet", ""
        return (
            "results in it",
            "missing",
            "there are some, but no experiment.json",
            "give another --output",
        )
    try:
        owner = json.loads(found).get("fingerprint")
    except (ValueError, AttributeError):
        return "results in it", "missing", "experiment.json is damaged", "give another --output"
    if fingerprint is None:
        return (
            "results in it",
            "note",
            f"of an experiment with fingerprint {owner}; this one's is not known yet",
            "",
        )
    if owner == fingerprint:
        return "results in it", "ok", "this experiment's: a sweep goes on where it stopped", ""
    return (
        "results in it",
        "missing",
        f"another experiment's (fingerprint {owner})",
        "give another --output",
    )
