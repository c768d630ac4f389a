"""Storages that kill their process, or run full, at a chosen step of a write; and sweeps on them.

    python faulty_storage.py sweep FILE --output OUT      the command line on such a storage

The environment variable LD3_DIST_FAULT names the step. It is "point", "point:n" (the n-th time the
process passes it) or "point@part:n" (counting only files whose name holds `part`). The process is
killed there (SIGKILL). With "full " in front the disk is full from then on: OSError instead. With
"stop " in front the process stays where it is (SIGSTOP) until it is sent SIGCONT or killed.
Without the variable these storages do what the real ones do."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ld3_dist.store import opening
from ld3_dist.store.object_store import ObjectStorage
from ld3_dist.store.storage import LocalStorage, Storage

WRITE_POINTS = (
    "write.before",
    "write.half",
    "write.written",
    "write.synced",
    "write.renamed",
    "write.after",
)
"""The steps of a write into a folder, in order."""

OBJECT_POINTS = ("write.before", "write.half", "write.after")
"""The steps of an upload."""

SWEEP = [sys.executable, __file__, "sweep"]
"""The command of a sweep on such a storage; EXPERIMENT.yaml and options follow."""

_passed: Counter[str] = Counter()
_current = threading.local()
_really_open = opening.open_storage


def with_fault(point: str) -> dict[str, str]:
    """The environment of a process that is to meet a fault ("" for none)."""
    here = Path(__file__).parent
    paths = [str(here), str(here.parents[1]), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"LD3_DIST_FAULT": point, "PYTHONPATH": os.pathsep.join(paths)}


def fault(point: str, name: str) -> None:
    """Die, or run full, if LD3_DIST_FAULT asks for it at this step of writing `name`."""
    asked = os.environ.get("LD3_DIST_FAULT")
    if not asked:
        return
    kind = next((kind for kind in ("full ", "stop ") if asked.startswith(kind)), "")
    target, _, count = asked.removeprefix(kind).partition(":")
    wanted, _, part = target.partition("@")
    if point != wanted or part not in name:
        return
    _passed[asked] += 1
    if kind == "full ":
        if _passed[asked] >= int(count or 1):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    elif _passed[asked] == int(count or 1):
        os.kill(os.getpid(), signal.SIGSTOP if kind else signal.SIGKILL)


def before(name: str) -> None:
    """The first step of a write."""
    _current.name = name
    if name.endswith("manifest.json"):
        fault("manifest.before", "")
    fault("write.before", name)


def after(name: str) -> None:
    """The last step of a write."""
    fault("write.after", name)
    if name.endswith("manifest.json"):
        fault("manifest.after", "")


@dataclass(frozen=True)
class FaultyFolder(LocalStorage):
    """A folder with a fault between any two steps of a write."""

    def write_bytes(self, name: str, data: bytes) -> None:
        try:
            before(name)
        except OSError as error:  # named like any other failure to write
            raise OSError(error.errno, error.strerror, str(self._path(name))) from error
        super().write_bytes(name, data)
        after(name)

    def _put(self, file: BinaryIO, data: bytes) -> None:
        half = len(data) // 2
        super()._put(file, data[:half])
        fault("write.half", _current.name)
        super()._put(file, data[half:])
        fault("write.written", _current.name)

    def _sync(self, file: BinaryIO) -> None:
        super()._sync(file)
        fault("write.synced", _current.name)

    def _rename(self, temporary: Path, path: Path) -> None:
        super()._rename(temporary, path)
        fault("write.renamed", _current.name)


@dataclass(frozen=True)
class FaultyBucket(ObjectStorage):
    """A prefix of an object store with a fault before, in the middle of, and after an upload."""

    def write_bytes(self, name: str, data: bytes) -> None:
        before(name)
        super().write_bytes(name, data)
        after(name)

    def _put(self, stream: Any, data: bytes) -> None:
        half = len(data) // 2
        super()._put(stream, data[:half])
        fault("write.half", _current.name)
        super()._put(stream, data[half:])


def open_faulty(place: str | os.PathLike[str] | Storage) -> Storage:
    """`open_storage`, with faults."""
    opened = _really_open(place)
    if type(opened) is LocalStorage:
        return FaultyFolder(opened.root)
    if type(opened) is ObjectStorage:
        return FaultyBucket(opened.location)
    return opened


def main() -> None:
    """The command line; the storages it opens, and hands to its workers, are faulty ones."""
    import faulty_storage  # not as __main__, which workers could not import

    opening.open_storage = faulty_storage.open_faulty

    from ld3_dist.cli.app import main as command_line

    command_line()


if __name__ == "__main__":
    main()
