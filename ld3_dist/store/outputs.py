"""Files that a command is asked to write: checked before any work, written whole, never lost.

`check_output` refuses what can be known before the work. `write_output` writes atomically; where
that fails all the same, the result goes to the temporary folder and the message says where.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from ..core.errors import InputError
from ..core.text import control_character
from .storage import LocalStorage

Kind = Literal["file", "folder"]
Paths = Mapping[str, str | os.PathLike[str]]

_PROBE = "ld3_dist-may-write-here"


def check_output(
    path: str | os.PathLike[str],
    kind: Kind = "file",
    force: bool = False,
    *,
    option: str = "--out",
    inputs: Paths | None = None,
) -> Path:
    """The path of an output, if it can be written. Nothing is left behind.

    Args:
        kind: what is to be written there.
        force: replace a file, or write into a folder, that exists.
        option: what the user calls this path, for messages.
        inputs: files that the command reads, by what the user calls them; none may be overwritten,
            forced or not.

    Raises InputError for an empty or unusable path, a folder where a file is wanted and the
    reverse, devices, a path that exists without `force`, an input, and a place that cannot be
    written to.
    """
    text = os.fspath(path)
    what = f"{option} {text}"
    if not text.strip():
        raise InputError(f"{option} is empty; name a {kind}")
    if control_character(text) or "\n" in text:
        raise InputError(f"{option} {text!r}: holds a control character; name another {kind}")
    place = Path(os.path.expanduser(text))
    for name, given in (inputs or {}).items():
        if _same(place, given):
            raise InputError(f"{what}: is the file that {name} reads; name another {kind}")
    mode = _mode(place, what, kind)
    if mode is not None:
        if kind == "file" and (stat.S_ISDIR(mode) or text.endswith(os.sep)):
            raise InputError(f"{what}: is a folder; name a file")
        if kind == "folder" and not stat.S_ISDIR(mode):
            raise InputError(f"{what}: is a file, and a folder is to be written; name another")
        if kind == "file" and not stat.S_ISREG(mode):
            raise InputError(f"{what}: is a device, a pipe or a socket; name a file")
        if not force and (kind == "file" or any(place.iterdir())):
            raise InputError(f"{what}: exists already; name another {kind}, or add --force")
    elif kind == "file" and text.endswith(os.sep):
        raise InputError(f"{what}: ends like a folder's name; name a file")
    _probe(place, what, kind)
    return place


def check_distinct(outputs: Paths) -> None:
    """Refuse two outputs of one command that are the same file.

    Args:
        outputs: paths, by what messages call them: {"the schedule": …, "its picture": …}.
    """
    known: dict[str, str] = {}
    for name, path in outputs.items():
        real = os.path.realpath(os.path.expanduser(os.fspath(path)))
        if real in known:
            raise InputError(
                f"{os.fspath(path)}: {known[real]} and {name} would be the same file; give the "
                "path another ending"
            )
        known[real] = name


def write_output(path: str | os.PathLike[str], data: bytes | str) -> Path:
    """Write a file whole or not at all; an older one is replaced.

    Raises InputError where it cannot be written; the result is then in the temporary folder, and
    the message names the file.
    """
    place = Path(os.path.expanduser(os.fspath(path))).absolute()
    content = data.encode() if isinstance(data, str) else data
    try:
        LocalStorage(str(place.parent)).write_bytes(place.name, content)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"{place}: cannot be written ({reason}); the result is kept in "
            f"{rescue(content, place.name)}: copy it from there"
        ) from error
    return place


def rescue(data: bytes | str, name: str) -> Path:
    """Write a result to a new file in the temporary folder, or in the home folder if that fails.

    Args:
        name: what the file was to be called; its end is kept.

    Raises InputError where neither can be written to.
    """
    content = data.encode() if isinstance(data, str) else data
    reasons = []
    for folder in (tempfile.gettempdir(), str(Path.home())):
        try:
            handle, path = tempfile.mkstemp(prefix="ld3_dist-", suffix=f"-{name[-60:]}", dir=folder)
            with open(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            reasons.append(f"{folder}: {error.strerror}")
        else:
            return Path(path)
    raise InputError(f"{name}: the result cannot be kept anywhere ({'; '.join(reasons)})")


def _same(place: Path, given: str | os.PathLike[str]) -> bool:
    other = os.path.expanduser(os.fspath(given))
    with contextlib.suppress(OSError, ValueError):
        return os.path.samefile(place, other)
    return os.path.realpath(place) == os.path.realpath(other)


def _mode(place: Path, what: str, kind: Kind) -> int | None:
    """The mode of what stands at a path; None where nothing does."""
    try:
        return os.stat(place).st_mode
    except FileNotFoundError:
        return None
    except NotADirectoryError as error:
        raise InputError(f"{what}: a part of its path is a file; name another {kind}") from error
    except OSError as error:
        raise InputError(f"{what}: {error.strerror}; name another {kind}") from error


def _probe(place: Path, what: str, kind: Kind) -> None:
    """Write and remove a file where the output is to lie, under a name as long as its own."""
    folder = place.absolute().parent
    if kind == "folder":
        folder = place.absolute()
        while not folder.exists():  # what is missing will be made
            folder = folder.parent
    elif not folder.is_dir():
        raise InputError(f"{what}: its folder does not exist; create it, or name another")
    name = _PROBE if kind == "folder" else f"{_PROBE}-{place.name}"
    probe = LocalStorage(str(folder))
    try:
        probe.write_bytes(name, b"")
        probe.remove(name)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"{what}: cannot be written ({reason}); name a {kind} that you may write"
        ) from error
