"""Storages that die before their n-th write or removal: nothing they are asked for afterwards
happens, as after the death of their process.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ld3_dist.store.object_store import ObjectStorage
from ld3_dist.store.storage import LocalStorage, Storage


class Died(BaseException):
    """The end of a process; nothing in the package catches it."""


@dataclass
class Life:
    """Writes and removals left until death."""

    left: float = float("inf")
    lock: threading.Lock = field(default_factory=threading.Lock)

    def step(self) -> None:
        """Die if nothing is left."""
        with self.lock:
            self.left -= 1
            if self.left < 0:
                raise Died


class Mortal(Storage):
    """The two verbs that change a storage, each with a chance to die before it."""

    life: Life

    def write_bytes(self, name: str, data: bytes) -> None:
        self.life.step()
        super().write_bytes(name, data)  # type: ignore[safe-super]

    def remove(self, name: str) -> None:
        self.life.step()
        super().remove(name)  # type: ignore[safe-super]


@dataclass(frozen=True)
class MortalFolder(Mortal, LocalStorage):
    life: Life = field(default_factory=Life, compare=False)


@dataclass(frozen=True)
class MortalBucket(Mortal, ObjectStorage):
    life: Life = field(default_factory=Life, compare=False)


def mortal(storage: Storage, steps: float) -> Storage:
    """The same storage, dying after some writes and removals."""
    if isinstance(storage, LocalStorage):
        return MortalFolder(storage.root, life=Life(steps))
    assert isinstance(storage, ObjectStorage)
    return MortalBucket(storage.location, life=Life(steps))


@dataclass(frozen=True)
class Watched(LocalStorage):
    """A folder that calls `act` before its n-th reading of a file, a manifest or a list."""

    act: Callable[[], Any] = field(default=lambda: None, compare=False)
    life: Life = field(default_factory=Life, compare=False)

    def _look(self) -> None:
        try:
            self.life.step()
        except Died:
            self.life.left = float("inf")
            self.act()

    def read_bytes(self, name: str) -> bytes:
        self._look()
        return super().read_bytes(name)

    def list(self, folder: str = "", recursive: bool = False) -> list[str]:
        self._look()
        return super().list(folder, recursive)
