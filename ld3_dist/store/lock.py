"""One driver per output folder: OUT/lock.json names the process that works in it.

The lock holds host, pid, the process's start and a heartbeat. A second driver is refused with that
host and pid. A lock is stale, and taken over, when its process is gone: on the same machine that is
seen at once (no such pid, or the pid belongs to a later process); on another machine, when the
heartbeat is older than `stale_after` seconds (the clocks of the machines must agree to within a
fraction of that).

On a local or shared folder checking and taking are one step (an advisory lock on the folder around
both). An object store offers no such thing here: the lock is written, and read back after a moment,
and of two drivers started in the same instant the one that wrote last wins; a driver that finds its
lock replaced has `lost`."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Self

from ..core.errors import InputError
from .process import Process, this_process
from .storage import Storage

LOCK = "lock.json"
HEARTBEAT = 15.0
STALE_AFTER = 300.0
SETTLE = 1.0
"""Seconds between writing a lock on an object store and reading it back."""


class LockHeld(InputError):
    """The folder is in use by `holder`."""

    def __init__(self, message: str, holder: Process) -> None:
        super().__init__(message)
        self.holder = holder


@dataclass
class Lock:
    """A held lock; a context manager that releases it. Make one with `acquire`."""

    storage: Storage
    owner: Process
    heartbeat: float
    lost: bool = False
    """True once another driver was found in our place; whoever holds the lock should then stop."""
    _stop: threading.Event = field(default_factory=threading.Event, repr=False)
    _thread: threading.Thread | None = field(default=None, repr=False)

    def release(self) -> None:
        """Stop the heartbeat and remove the lock, if it is still ours."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        found = read_lock(self.storage)
        if found is not None and found[0] == self.owner:
            self.storage.remove(LOCK)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def _beat(self) -> None:
        while not self._stop.wait(self.heartbeat):
            try:
                found = read_lock(self.storage)
                if found is not None and found[0] != self.owner:
                    self.lost = True
                    return
                _write(self.storage, self.owner)
            except OSError:  # a full disk or a lost connection may pass; the next beat tries again
                continue


def acquire(
    storage: Storage, heartbeat: float = HEARTBEAT, stale_after: float = STALE_AFTER
) -> Lock:
    """Take the folder for this process and keep the lock fresh from a thread.

    Raises LockHeld, naming host and pid, while another driver has it.
    """
    me = this_process()
    with storage.exclusive():
        _refuse_if_held(storage, stale_after)
        _write(storage, me)
    if storage.local_path is None:
        time.sleep(SETTLE)
        found = read_lock(storage)
        if found is not None and found[0] != me:
            raise _held(storage, *found, stale_after)
    lock = Lock(storage, me, heartbeat)
    lock._thread = threading.Thread(target=lock._beat, name="lock heartbeat", daemon=True)
    lock._thread.start()
    return lock


def read_lock(storage: Storage) -> tuple[Process, float] | None:
    """The holder and the time of its last heartbeat, or None if there is no lock (or none that can
    be read).
    """
    try:
        body = json.loads(storage.read_bytes(LOCK))
        return Process(str(body["host"]), int(body["pid"]), str(body["start"])), float(
            body["heartbeat"]
        )
    except (FileNotFoundError, KeyError, TypeError, ValueError):
        return None


def is_stale(holder: Process, beat: float, stale_after: float = STALE_AFTER) -> bool:
    """Is the holder gone? (See the top of this file.)"""
    if holder.alive is None:
        return time.time() - beat > stale_after
    return not holder.alive


def _refuse_if_held(storage: Storage, stale_after: float) -> None:
    found = read_lock(storage)
    if found is not None and not is_stale(*found, stale_after):
        raise _held(storage, *found, stale_after)


def _held(storage: Storage, holder: Process, beat: float, stale_after: float) -> LockHeld:
    age = max(0.0, time.time() - beat)
    known = (
        ""
        if holder.here
        else f"; if that machine is gone, try again in {max(0.0, stale_after - age):.0f} s"
    )
    return LockHeld(
        f"{storage.url} is in use by process {holder.pid} on {holder.host} (last sign of life "
        f"{age:.0f} s ago). "
        f"Wait until it is done, stop it, or give another output folder{known}",
        holder,
    )


def _write(storage: Storage, owner: Process) -> None:
    body = asdict(owner) | {"heartbeat": time.time()}
    storage.write_bytes(LOCK, (json.dumps(body, indent=2) + "\n").encode())
