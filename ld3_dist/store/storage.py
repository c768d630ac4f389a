"""Storage of files: a folder, or a prefix of an object store, behind the same few verbs.

A name is a relative path such as "rows/1f3a.parquet". Two promises hold for every storage:

  - a file is there whole or not at all. Locally: a temporary sibling whose name starts with a dot
    (readers ignore it), flush, fsync, rename over the final name, fsync of the folder. On an object
    store: one upload to the final key, which becomes visible when it is complete;
  - a Storage is a small value: it pickles, costs nothing to make, and opens its connection at the
  first use.

URLs: a path, file://…, s3://bucket/prefix, gs://bucket/prefix, or any scheme that an installed
fsspec package knows.
Options of S3 ride in the query:
s3://bucket/prefix?endpoint_override=http://127.0.0.1:9000&region=us-east-1&anonymous=true;
credentials come from the environment, as with any other S3 client, and are refused in a URL."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from ..core.errors import InputError
from .process import Process, this_process

FOREIGN_AGE = 3600.0
"""Age in seconds at which a temporary file of another machine counts as left behind: whether its
writer lives cannot be seen from here.
"""

_TEMPORARY = re.compile(r"^\.tmp~(?P<host>[^~]+)~(?P<pid>\d+)~(?P<start>[^~]+)~\d+~")
_serial = itertools.count()


class Storage(ABC):
    """A place for files. Names are relative; reading a missing one raises FileNotFoundError with
    its full address.
    """

    @property
    @abstractmethod
    def url(self) -> str:
        """The address, as messages name it."""

    @property
    def local_path(self) -> Path | None:
        """The folder, where the storage is one on this machine."""
        return None

    @abstractmethod
    def child(self, name: str) -> Storage:
        """The storage below `name`."""

    @abstractmethod
    def exists(self, name: str = "") -> bool:
        """True if there is such a file or folder; on an object store, anything below it."""

    @abstractmethod
    def read_bytes(self, name: str) -> bytes:
        """The whole file."""

    @abstractmethod
    def write_bytes(self, name: str, data: bytes) -> None:
        """Write the file whole or not at all, replacing an older one; OSError names the address."""

    @abstractmethod
    def list(self, folder: str = "", recursive: bool = False) -> list[str]:
        """Sorted names of the files in `folder`, relative to this storage; what starts with . or _
        is left out.
        """

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove the file; nothing happens if it is not there."""

    @abstractmethod
    def exclusive(self) -> contextlib.AbstractContextManager[None]:
        """Keep other processes out of this method's block, as far as the storage can."""

    @abstractmethod
    def modified(self, name: str) -> float | None:
        """Time of the last write, in seconds by the storage's own clock; None if unknown."""

    def age(self, name: str) -> float | None:
        """Seconds since the file was last written; None if the storage keeps no times.

        A file written now is compared with it, so that only the storage's own clock counts. Raises
        FileNotFoundError if there is no such file."""
        written = self.modified(name)
        probe = temporary_name("clock")
        self.write_bytes(probe, b"ld3_dist")
        try:
            now = self.modified(probe)
        finally:
            self.remove(probe)
        return None if now is None or written is None else now - written

    def sweep_temporary(self, foreign_age: float = FOREIGN_AGE) -> list[str]:
        """Remove temporary files whose writer is dead and return their names.

        Another machine's processes cannot be seen: its files go when older than `foreign_age`
        seconds. Object stores keep no temporary files (an unfinished upload is invisible; let the
        bucket's lifecycle rule expire it)."""
        return []

    def temporary(self) -> list[str]:
        """Names of temporary files, whether their writers live or not."""
        return []

    def address(self, name: str) -> str:
        """The full address of `name`, for messages."""
        return f"{self.url}/{checked(name)}" if name else self.url

    def check_writable(self) -> None:
        """Raise InputError, naming the address and the cause, unless a file can be written and
        removed here.
        """
        probe = temporary_name("writable")
        try:
            self.write_bytes(probe, b"ld3_dist")
            self.remove(probe)
        except (OSError, ImportError) as error:
            raise InputError(
                f"cannot write to {self.url}: {error}. Give an output folder or URL that you may "
                f"write to"
            ) from error


def temporary_name(name: str) -> str:
    """A hidden name for a file of this process; swept away if the process is killed."""
    me = this_process()
    return f".tmp~{me.host}~{me.pid}~{me.start}~{next(_serial)}~{name}"


def checked(name: str) -> str:
    """`name` itself if it is a relative path without '..'; ValueError otherwise."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name:
        raise ValueError(f"a file in a storage has a relative name without '..', got {name!r}")
    return str(path) if name else ""


def hidden(name: str) -> bool:
    """True if any part of the path starts with a dot or an underscore (temporary, not data)."""
    return any(part[0] in "._" for part in PurePosixPath(name).parts)


@dataclass(frozen=True)
class LocalStorage(Storage):
    """A folder of this machine or of a shared file system; `root` is absolute."""

    root: str

    @property
    def url(self) -> str:
        return self.root

    @property
    def local_path(self) -> Path | None:
        return Path(self.root)

    def _path(self, name: str) -> Path:
        return Path(self.root, checked(name))

    def child(self, name: str) -> LocalStorage:
        return replace(self, root=str(self._path(name)))

    def exists(self, name: str = "") -> bool:
        return self._path(name).exists()

    def read_bytes(self, name: str) -> bytes:
        try:
            return self._path(name).read_bytes()
        except NotADirectoryError as error:  # a file stands where a folder should: nothing in it
            raise FileNotFoundError(*error.args) from error

    def write_bytes(self, name: str, data: bytes) -> None:
        path = self._path(name)
        temporary = path.with_name(temporary_name(path.name))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                self._put(file, data)
                self._sync(file)
            self._rename(temporary, path)
        except BaseException as error:  # a full disk or Ctrl-C leaves no half file behind
            with contextlib.suppress(OSError):
                temporary.unlink()
            if isinstance(error, OSError):
                raise type(error)(error.errno, error.strerror or str(error), str(path)) from error
            raise
        _sync_folder(path.parent)

    # The steps of a write, one method each, so that a subclass can stop between any two of them.

    def _put(self, file: BinaryIO, data: bytes) -> None:
        file.write(data)
        file.flush()

    def _sync(self, file: BinaryIO) -> None:
        os.fsync(file.fileno())

    def _rename(self, temporary: Path, path: Path) -> None:
        os.replace(temporary, path)

    def modified(self, name: str) -> float | None:
        return self._path(name).stat().st_mtime

    def list(self, folder: str = "", recursive: bool = False) -> list[str]:
        names = (path.relative_to(self.root).as_posix() for path in self._walk(folder, recursive))
        return sorted(name for name in names if not hidden(PurePosixPath(name).name))

    def _walk(self, folder: str, recursive: bool) -> Iterator[Path]:
        for top, folders, files in os.walk(self._path(folder)):
            folders[:] = [f for f in folders if recursive and not hidden(f)]
            yield from (Path(top, file) for file in files)

    def remove(self, name: str) -> None:
        self._path(name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """An advisory lock on the folder itself: no lock file to leave behind. Not every network
        file system has it.
        """
        folder = Path(self.root)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            import fcntl
        except ImportError:  # not on Windows
            yield
            return
        handle = os.open(folder, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def temporary(self) -> list[str]:
        found = (path for path in self._walk("", recursive=True) if _TEMPORARY.match(path.name))
        return sorted(path.relative_to(self.root).as_posix() for path in found)

    def sweep_temporary(self, foreign_age: float = FOREIGN_AGE) -> list[str]:
        swept = []
        for path in self._walk("", recursive=True):
            found = _TEMPORARY.match(path.name)
            if not found:
                continue
            writer = Process(found["host"], int(found["pid"]), found["start"])
            with contextlib.suppress(FileNotFoundError):  # its writer may just be renaming it
                foreign_dead = (
                    writer.alive is None and time.time() - path.stat().st_mtime > foreign_age
                )
                if writer.alive is False or foreign_dead:
                    path.unlink()
                    swept.append(path.relative_to(self.root).as_posix())
        return sorted(swept)


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable; some file systems cannot, and then there is nothing more to
    do.
    """
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
