"""Hashes and the content of files: how keys stay the same when a path changes.

Keys are hashes of resolved settings, so the same work has the same name on every machine and in
every run. Where a setting names a file, its content enters the key in place of the path.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..core.user_code import FILE, PREFIX, content_in, label
from ..metrics.judges import judge_name
from .settings import Experiment


def digest(value: Any) -> str:
    """Return a short stable hash of JSON-able settings."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def contents_of(experiment: Experiment) -> dict[str, str]:
    """Return a hash of each file that an experiment names, by the name in the settings.

    These are code, schedules to start from, LPIPS trunks, reference statistics and weights of
    extractors. Weights of models are not among them: a model's own hash holds them.
    """
    settings = experiment.model_dump(mode="json", exclude={"models", "report", "resources", "name"})
    found: dict[str, str] = {}
    for name in sorted(set(_words(settings))):
        content = content_in(name)
        place = Path(name.removeprefix(FILE)).expanduser()
        named = name.endswith(".json") or name.startswith(FILE)
        if content is None and named and place.is_file():
            content = hashlib.sha256(place.read_bytes()).hexdigest()[:16]
        if content is not None:
            found[name] = content
    for name in files_of(experiment):
        place = Path(_path(name)).expanduser()
        files = [place] if place.is_file() else sorted(f for f in place.iterdir() if f.is_file())
        digests = [(file.name, _hash_of(file, file.stat().st_mtime_ns)) for file in files]
        found.setdefault(name, digests[0][1] if place.is_file() else digest(digests))
    return found


def files_of(experiment: Experiment) -> list[str]:
    """Names in the settings that stand for a file or a folder of weights or statistics."""
    evaluate = experiment.evaluate
    names = [experiment.lpips.trunk, evaluate.reference, evaluate.extractor]
    names += [name for name in evaluate.metrics or () if judge_name(name) and ":" in name]
    return [name for name in names if name and _is_there(name)]


def _is_there(name: str) -> bool:
    """Tell if a name stands for a file, or as "clip:DIR" for a folder."""
    place = Path(_path(name)).expanduser()
    return place.is_file() or (":" in name and place.is_dir())


@lru_cache(maxsize=256)
def _hash_of(file: Path, written: int) -> str:
    """A short hash of a file, made once per process for each time that it was written."""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()[:16]


def portable(value: Any, contents: dict[str, str]) -> Any:
    """Return the settings with the content of files in place of their paths.

    Args:
        contents: hashes of files, as `contents_of` gives them.
    """
    if isinstance(value, dict):
        return {key: portable(item, contents) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [portable(item, contents) for item in value]
    if isinstance(value, str) and value in contents:
        return f"{_without_folder(value)} {contents[value]}"
    return label(value) if isinstance(value, str) and PREFIX in value else value


def content_of_conditioning(name: str | None) -> str | None:
    """Return "prompts:<file>:<hash>" without the file's name; other names as they are."""
    kind, colon, rest = (name or "").partition(":")
    return f"{kind}:{rest.rpartition(':')[2]}" if colon else name


def plain_numbers(value: Any) -> Any:
    """Return settings with whole numbers as floats, so that 1 and 1.0 are the same setting."""
    if isinstance(value, dict):
        return {k: plain_numbers(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain_numbers(v) for v in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _path(name: str) -> str:
    """The path in "inception:FILE" or "FILE"."""
    kind, colon, rest = name.partition(":")
    return rest if colon and kind.isidentifier() and kind != PREFIX.rstrip(":") else name


def _without_folder(name: str) -> str:
    """A name without the path of its file."""
    if PREFIX in name or name.endswith(".json") or name.startswith(FILE):
        return label(name)
    return name.removesuffix(_path(name)) or "file"


def _words(value: Any) -> Iterator[str]:
    """Every text in a structure of settings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _words(item)
