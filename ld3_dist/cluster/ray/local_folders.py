"""Folders of a Ray that is started on this machine: short enough, and shared memory where there is
any.

Ray keeps sockets in <folder>/ray/session_<time>_<pid>/sockets, and the path of a socket may have at
most 107 bytes (sun_path of unix(7), less its final zero). Its folder follows TMPDIR, which batch
systems make long. Its object store needs /dev/shm, which some containers do not have; without it
Ray raises FileNotFoundError, unless it is told another folder."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ...core.errors import InputError

log = logging.getLogger("ld3_dist")

LONGEST = 107
"""Bytes that the path of a socket may have."""

_SOCKET = "ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
"""The longest socket that Ray makes in its folder, with the largest pid of Linux."""

SHARED = Path("/dev/shm")


def folder_options() -> dict[str, Any]:
    """The options of `ray.init` that keep its folders usable here; empty where Ray's own will do.

    Raises InputError if there is no folder with a path short enough."""
    options: dict[str, Any] = {}
    given = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or tempfile.gettempdir()
    folder = Path(given)
    if not _short(folder):
        folder = _short_folder(given, (Path("/tmp"), Path("/var/tmp"), Path.home()))
        options["_temp_dir"] = str(folder)
    if not SHARED.is_dir():
        options["_plasma_directory"] = tempfile.gettempdir() if not options else str(folder.parent)
        log.warning(
            "this machine has no %s: Ray's object store goes to %s, which may be slower",
            SHARED,
            options["_plasma_directory"],
        )
    return options


def _short(folder: Path) -> bool:
    return len(os.fsencode(folder / _SOCKET)) <= LONGEST


def _short_folder(given: str, places: Iterable[Path]) -> Path:
    """A folder of this user's for Ray in the first place that is short and writable."""
    for place in places:
        folder = place / f"ray-{os.getuid()}"
        if not _short(folder):
            continue
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
        except OSError:
            continue
        if folder.stat().st_uid == os.getuid() and os.access(folder, os.W_OK | os.X_OK):
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
