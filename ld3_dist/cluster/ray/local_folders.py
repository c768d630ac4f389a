"""Folders of a Ray that is started on this machine.

Ray gets a folder with a path short enough for its sockets, and another folder for its object store
if there is no shared memory; without one, Ray would raise FileNotFoundError.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ...core.errors import InputError
from ...store.temporary import (
    LONGEST,
    SHARED,
    fits_sockets,
    is_mine,
    short_places,
    temporary_folder,
    users_folder,
)

log = logging.getLogger("ld3_dist")


def folder_options() -> dict[str, Any]:
    """The options of `ray.init` that keep its folders usable here; empty if Ray's own will do.

    Raises InputError if there is no folder with a path short enough.
    """
    options: dict[str, Any] = {}
    folder = temporary_folder()
    if not fits_sockets(folder):
        folder = _short_folder(str(folder), short_places())
        options["_temp_dir"] = str(folder)
    if not SHARED.is_dir():
        options["_plasma_directory"] = tempfile.gettempdir() if not options else str(folder.parent)
        log.warning(
            "this machine has no %s: Ray's object store goes to %s, which may be slower",
            SHARED,
            options["_plasma_directory"],
        )
    return options


def _short_folder(given: str, places: Iterable[Path]) -> Path:
    """Make a folder of this user for Ray in the first place that is short and writable."""
    for place in places:
        folder = users_folder(place)
        if not fits_sockets(folder):
            continue
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
        except OSError:
            continue
        if is_mine(folder):
            log.warning(
                "the temporary folder %s is too long for Ray, whose sockets may have paths of %d "
                "bytes: Ray uses %s instead",
                given,
                LONGEST,
                folder,
            )
            return folder
    tried = ", ".join(map(str, places))
    raise InputError(
        f"the temporary folder {given} is too long for Ray, whose sockets may have paths of "
        f"{LONGEST} bytes, and none of {tried} is writable; set RAY_TMPDIR to a short folder"
    )
