"""From a path or URL to a Storage."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

from ..core.errors import InputError
from .storage import LocalStorage, Storage


def open_storage(place: str | os.PathLike[str] | Storage) -> Storage:
    """The storage at a path or URL; touches neither disk nor network.

    A relative path is made absolute now, because workers run in other folders.
    """
    if isinstance(place, Storage):
        return place
    text = os.fspath(place)
    if not text:
        raise InputError("an empty output folder was given; name a folder or a URL")
    scheme = urlsplit(text).scheme if "://" in text else ""
    if scheme and scheme != "file":
        from .object_store import ObjectStorage

        return ObjectStorage(text)
    return LocalStorage(str(Path(text.removeprefix("file://")).expanduser().absolute()))
