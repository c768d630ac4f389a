"""Storages of paths and URLs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from ..core.errors import InputError
from .storage import LocalStorage, Storage

Place = str | os.PathLike[str] | Storage


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


def open_places(places: Sequence[Place | Sequence[Place]]) -> list[Storage]:
    """The storages of sweeps, each given by itself or in a list. Raises InputError as
    `load_results` does.
    """
    listed: list[Place] = []
    for given in places:
        listed += [given] if isinstance(given, str | os.PathLike | Storage) else given
    if not listed:
        raise InputError("no folder was given; give the output folder of a sweep")
    found: dict[str, Storage] = {}
    for place in listed:
        storage = open_storage(place)
        name = os.path.realpath(storage.local_path) if storage.local_path else storage.url
        if name in found:
            raise InputError(f"{storage.url}: the same folder was given twice ({found[name].url})")
        if not storage.exists():
            raise InputError(f"{storage.url}: no such folder; give the output folder of a sweep")
        if not storage.exists("rows") and not storage.exists("experiment.json"):
            raise InputError(
                f"{storage.url}: holds no results (no rows/); give the output folder of a sweep"
            )
        found[name] = storage
    return list(found.values())
