"""Checkpoints by URL.

Each is downloaded once, into $LD3_DIST_CACHE or ~/.cache/ld3_dist, under the hash of its URL.
"""

from __future__ import annotations

import os
import shutil
import urllib.request
from hashlib import sha256
from pathlib import Path
from urllib.parse import urlparse

from ...core.errors import InputError


def cached_path(url: str) -> Path:
    """The path in the cache for the file of a URL, which may not be there yet."""
    folder = Path(os.environ.get("LD3_DIST_CACHE", "~/.cache/ld3_dist")).expanduser()
    return folder / f"{sha256(url.encode()).hexdigest()[:16]}-{Path(urlparse(url).path).name}"


def fetch(url: str) -> Path:
    """The local file of a URL; InputError if it is not in the cache and cannot be downloaded."""
    file = cached_path(url)
    if file.is_file():
        return file
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(url, timeout=60) as response, part.open("wb") as out:
            shutil.copyfileobj(response, out)
            out.flush()
            os.fsync(out.fileno())
            length = response.headers.get("Content-Length")
        if length is not None and part.stat().st_size != int(length):
            raise OSError(f"{part.stat().st_size} of {length} bytes arrived")
        os.replace(part, file)
    except (OSError, ValueError) as error:
        part.unlink(missing_ok=True)
        raise InputError(
            f"edm checkpoint {url}: cannot be downloaded ({error}); download it and give the file"
        ) from error
    return file
