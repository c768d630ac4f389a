"""The files of a report, written in the place of those of an earlier one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from ..store.storage import Storage, checked

WRITTEN = "_files.json"
"""Names of the files that reports have written into a folder: other files there are not ours."""


def replace_files(out: Storage, files: Mapping[str, bytes]) -> None:
    """Write files by name, and remove what an earlier report wrote and this one has not.

    A figure of settings that have changed would else stand beside those of today. What somebody
    else put into the folder stays.
    """
    former = _written(out)
    _say(out, {*former, *files})  # of a killed report, too, it is known what it wrote
    for name, data in files.items():
        out.write_bytes(name, data)
    for name in former - files.keys():
        out.remove(name)
    _say(out, files)


def _say(out: Storage, names: Iterable[str]) -> None:
    out.write_bytes(WRITTEN, (json.dumps(sorted(names), indent=2) + "\n").encode())


def _written(out: Storage) -> set[str]:
    """The names that reports have written; none where that is not known."""
    try:
        listed = json.loads(out.read_bytes(WRITTEN))
        return {checked(name) for name in listed if isinstance(name, str) and name}
    except (OSError, ValueError, TypeError):
        return set()
