"""Checks of the place for results: it can be written to, and belongs to no other experiment.

A file is written there and removed at once; nothing is left behind.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from ..core.errors import InputError
from ..store.opening import open_storage
from ..store.outputs import check_output
from ..store.storage import Storage
from .check import Check

ANOTHER = "give another --output"
MADE_AGAIN = "a sweep makes it again if rows and pairs are this experiment's, and refuses otherwise"


def storage_checks(output: str, fingerprint: str | None) -> Iterator[Check]:
    """Check an output folder or URL for an experiment.

    Args:
        fingerprint: of the experiment; None if it is not known.
    """
    try:
        storage = open_storage(output)
        if storage.local_path is not None:
            check_output(output, "folder", force=True, option="--output")
        found = storage.read_bytes("experiment.json") if storage.exists("experiment.json") else None
        empty = not storage.exists()
        if storage.local_path is None:
            storage.check_writable()
    except InputError as error:
        yield Check("storage", output, "missing", str(error), ANOTHER)
        return
    except (OSError, ImportError, ValueError) as error:
        remedy = "check address, credentials and network"
        yield Check("storage", output, "missing", f"cannot be reached: {error}", remedy)
        return
    yield Check("storage", storage.url, "ok", "writable")
    yield _owner(storage, found, empty, fingerprint)


def existing(path: Path) -> Path:
    """The path itself, or the nearest one above it that exists."""
    path = Path(os.path.expanduser(path)).absolute()
    return next(p for p in (path, *path.parents) if os.path.exists(p))


def _owner(storage: Storage, found: bytes | None, empty: bool, fingerprint: str | None) -> Check:
    """Check that the results in a folder belong to this experiment.

    Args:
        found: bytes of its experiment.json, if there is one.
        empty: True if nothing is in the folder.
    """
    name = "results in it"
    if found is None:
        if empty or not (storage.exists("rows") or storage.exists("pairs")):
            return Check("storage", name, "ok", "none yet")
        detail = f"there are some, but no experiment.json: {MADE_AGAIN}"
        return Check("storage", name, "note", detail)
    try:
        owner = json.loads(found).get("fingerprint")
    except (ValueError, AttributeError):
        return Check("storage", name, "note", f"experiment.json is damaged: {MADE_AGAIN}")
    if fingerprint is None:
        detail = f"of an experiment with fingerprint {owner}; this one's is not known yet"
        return Check("storage", name, "note", detail)
    if owner == fingerprint:
        detail = "this experiment's: a sweep goes on where it stopped"
        return Check("storage", name, "ok", detail)
    detail = f"another experiment's (fingerprint {owner})"
    return Check("storage", name, "missing", detail, ANOTHER)
