"""The temporary folder and the shared memory of this machine, as Ray needs them.

Ray keeps sockets in <folder>/ray/session_<time>_<pid>/sockets. The path of a socket has at most
107 bytes (sun_path of unix(7), less its final zero). Batch systems often set TMPDIR to a folder
whose path is too long for that. Ray's object store needs /dev/shm, which some containers lack.

Nothing here imports Ray or writes anything: a cluster sets its options by these answers, and
`doctor` reports them.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

LONGEST = 107
"""The most bytes that the path of a socket may have."""

SHARED = Path("/dev/shm")
"""The folder of Linux's shared memory."""

_SOCKET = "ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
"""The longest socket that Ray makes in its folder, with the largest pid of Linux."""


def temporary_folder() -> Path:
    """The folder that Ray uses if it is not told another one."""
    return Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or tempfile.gettempdir())


def fits_sockets(folder: Path) -> bool:
    """Return True if Ray's sockets in a folder have paths that are short enough."""
    return len(os.fsencode(folder / _SOCKET)) <= LONGEST


def short_places() -> tuple[Path, ...]:
    """Folders in which a short one for Ray can be made, in order of preference."""
    return Path("/tmp"), Path("/var/tmp"), Path.home()


def users_folder(place: Path) -> Path:
    """This user's folder for Ray in a place."""
    return place / f"ray-{os.getuid()}"


def short_folder(places: Iterable[Path]) -> Path | None:
    """This user's folder for Ray in the first place where it is short and can be written to.

    It need not exist yet. None if there is no such place.
    """
    for place in places:
        folder = users_folder(place)
        if not fits_sockets(folder):
            continue
        if not folder.exists() and place.is_dir() and os.access(place, os.W_OK | os.X_OK):
            return folder
        if folder.is_dir() and is_mine(folder):
            return folder
    return None


def is_mine(folder: Path) -> bool:
    """Return True if a folder belongs to this user and can be written to."""
    return folder.stat().st_uid == os.getuid() and os.access(folder, os.W_OK | os.X_OK)
