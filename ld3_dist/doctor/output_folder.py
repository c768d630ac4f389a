"""Checks of the place for results: it can be reached, written to, and goes on with an experiment.

A file is written there and removed at once; nothing is left behind.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..core.errors import InputError
from ..experiment.plan import FORMAT
from ..store.lineage import current, lineages
from ..store.opening import open_storage
from ..store.outputs import check_output
from ..store.storage import Storage
from .check import Check

ANOTHER = "give another --output"


def storage_checks(output: str, fingerprint: str | None) -> Iterator[Check]:
    """Check an output folder or URL for an experiment.

    Args:
        fingerprint: of the experiment; None if it is not known.
    """
    try:
        storage = open_storage(output)
        if storage.local_path is not None:
            check_output(output, "folder", force=True, option="--output")
        found = current(storage)
        known = {one["fingerprint"] for one in lineages(storage)}
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
    yield _owner(storage, found, known, fingerprint)


def existing(path: Path) -> Path:
    """The path itself, or the nearest one above it that exists."""
    path = Path(os.path.expanduser(path)).absolute()
    return next(p for p in (path, *path.parents) if os.path.exists(p))


def _owner(
    storage: Storage, found: dict[str, Any], known: set[str], fingerprint: str | None
) -> Check:
    """Check that a sweep can go on in a folder, and say which experiments ran there.

    Args:
        found: the version of the experiment that ran last; {} if there is none.
        known: fingerprints of all versions.
    """
    name = "results in it"
    if not found:
        if not (storage.exists("rows") or storage.exists("pairs")):
            return Check("storage", name, "ok", "none yet")
        detail = "there are some, but no experiment.json: the next sweep makes it again"
        return Check("storage", name, "note", detail)
    if found.get("format", 0) != FORMAT:
        detail = f"of format {found.get('format', 0)}, in which a sweep cannot go on"
        return Check("storage", name, "missing", detail, ANOTHER)
    if fingerprint is None:
        detail = f"of fingerprint {found['fingerprint']}; this one's is not known yet"
        return Check("storage", name, "note", detail)
    if fingerprint in known:
        detail = "this experiment's: a sweep goes on where it stopped"
    else:
        detail = (
            f"of {found.get('name')!r} (fingerprint {found['fingerprint']}): what this one asks "
            "for, too, is reused; `ld3-dist show` with --output says how much"
        )
    return Check("storage", name, "ok", detail)
