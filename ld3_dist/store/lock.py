"""One driver per output folder: OUT/lock.json names the process that works in it.

The lock holds host, pid, the process's start and a heartbeat. A second driver is refused with that
host and pid. A lock is stale, and taken over, when its process is gone. On the same machine that is
seen at once: there is no such pid, or the pid belongs to a later process. On another machine it is
assumed when the heartbeat is older than `stale_after` seconds. The clocks of the machines must
agree to within a fraction of that; a heartbeat in the future shows that they do not, and then the
age of the file by the storage's own clock decides.

On a local or shared folder, checking and taking are one step (an advisory lock on the folder around
both). An object store has no such step: the lock is written and read back after a moment, and of
two drivers started in the same instant the one that wrote last wins.

A driver that does part i of n of a sweep holds lock-i-of-n.json instead. Different parts of the
same n go side by side; a whole sweep is alone, and so is each part.

Beside its heartbeat a driver writes what it is doing (`Lock.note`), for those who watch the folder.

A driver can lose its lock all the same, for instance while its process is stopped for longer than
`stale_after`. `Lock.check` then raises LockLost, and the driver must stop writing."""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any, Self

from ..core.errors import InputError
from .part import Part
from .process import Process, this_process
from .storage import Storage

LOCK = "lock.json"
_PART = re.compile(r"lock-(\d+)-of-(\d+)\.json")
HEARTBEAT = 15.0
STALE_AFTER = 300.0
SETTLE = 1.0
"""Seconds between writing a lock on an object store and reading it back."""


class LockHeld(InputError):
    """The folder is in use by `holder`."""

    def __init__(self, message: str, holder: Process) -> None:
        super().__init__(message)
        self.holder = holder


class LockLost(RuntimeError):
    """Another driver has taken the folder over; the message names it."""


@dataclass
class Lock:
    """A held lock; a context manager that releases it. Make one with `acquire`."""

    storage: Storage
    owner: Process
    heartbeat: float
    name: str = LOCK
    note: dict[str, Any] = field(default_factory=dict)
    """What the driver is doing; written with the next heartbeat."""
    usurper: Process | None = None
    """The driver that was found in our place."""
    _looked: float = field(default_factory=time.monotonic, repr=False)
    _stop: threading.Event = field(default_factory=threading.Event, repr=False)
    _thread: threading.Thread | None = field(default=None, repr=False)

    def check(self) -> None:
        """Raise LockLost if another driver has taken the folder over; cheap to call often.

        Where no heartbeat has been made for a while (the process was stopped, or the machine
        asleep), the lock is read first: the thread may not have had its turn yet."""
        if time.monotonic() - self._looked > 2 * self.heartbeat:
            self._beat_once()
        if self.usurper is not None:
            raise LockLost(
                f"process {self.usurper.pid} on {self.usurper.place} has taken over "
                f"{self.storage.url}, because this driver gave no sign of life for too long; this "
                f"driver ends and leaves the folder to the other. Everything finished is kept"
            )

    def release(self) -> None:
        """Stop the heartbeat and remove the lock, if it is still ours."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        found = read_lock(self.storage, self.name)
        if found is not None and found[0] == self.owner:
            self.storage.remove(self.name)

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
        while self.usurper is None and not self._stop.wait(self.heartbeat):
            self._beat_once()

    def _beat_once(self) -> None:
        """Write the heartbeat, unless the lock is another's by now."""
        self._looked = time.monotonic()
        # a full disk or a lost connection may pass; the next beat tries again
        with contextlib.suppress(OSError):
            found = read_lock(self.storage, self.name)
            if found is not None and found[0] != self.owner:
                self.usurper = found[0]
            else:
                _write(self.storage, self.owner, self.name, self.note)


def lock_name(part: Part | None) -> str:
    """The file of the lock of a part, or of a whole sweep."""
    return LOCK if part is None else f"lock-{part.index}-of-{part.count}.json"


def acquire(
    storage: Storage,
    heartbeat: float = HEARTBEAT,
    stale_after: float = STALE_AFTER,
    part: Part | None = None,
) -> Lock:
    """Take the folder, or a part of its work, and keep the lock fresh from a thread.

    Raises LockHeld, naming host and pid, while another driver has it.
    """
    me, name = this_process(), lock_name(part)
    with storage.exclusive():
        refuse_if_held(storage, stale_after, part)
        _write(storage, me, name)
    if storage.local_path is None:
        time.sleep(SETTLE)
        found = read_lock(storage, name)
        if found is not None and found[0] != me:
            raise _held(storage, *found, stale_after, name)
    lock = Lock(storage, me, heartbeat, name)
    lock._thread = threading.Thread(target=lock._beat, name="lock heartbeat", daemon=True)
    lock._thread.start()
    return lock


def read_lock(storage: Storage, name: str = LOCK) -> tuple[Process, float] | None:
    """The holder and the time of its last heartbeat, or None if there is no lock (or none that can
    be read).
    """
    found = _read(storage, name)
    return found and (found.process, found.beat)


@dataclass(frozen=True)
class Holder:
    """A lock as it stands in the folder.

    beat: time of its last heartbeat.
    part: the part of the sweep that its driver does; None for all of it.
    note: what the driver was doing at its last heartbeat.
    """

    process: Process
    beat: float
    part: Part | None
    note: dict[str, Any]


def holders(storage: Storage, stale_after: float = STALE_AFTER) -> list[Holder]:
    """Return the locks of drivers that may be alive, as far as this machine can tell."""
    found = (_read(storage, name) for name in locks_in(storage))
    return [
        one
        for one in found
        if one is not None
        and not _is_stale(storage, one.process, one.beat, stale_after, lock_name(one.part))
    ]


def locks_in(storage: Storage) -> list[str]:
    """The files of all locks of a folder, stale ones among them."""
    return [name for name in storage.list() if name == LOCK or _PART.fullmatch(name)]


def _read(storage: Storage, name: str) -> Holder | None:
    found = _PART.fullmatch(name)
    try:
        part = Part(int(found[1]), int(found[2])) if found else None
        body = json.loads(storage.read_bytes(name))
        process = Process(
            str(body["host"]), int(body["pid"]), str(body["start"]), str(body.get("address", ""))
        )
        note = body.get("note")
        beat = float(body["heartbeat"])
        return Holder(process, beat, part, note if isinstance(note, dict) else {})
    except (FileNotFoundError, AttributeError, KeyError, TypeError, ValueError):
        return None


def refuse_if_held(
    storage: Storage, stale_after: float = STALE_AFTER, part: Part | None = None
) -> None:
    """Raise LockHeld if a driver that may be alive holds the folder; write nothing.

    A part is held by the same part, by a whole sweep, and by parts of another division.
    """
    if part is None:
        names = locks_in(storage)
    else:
        ours = rf"lock-(?!{part.index}-)\d+-of-{part.count}\.json"
        names = [name for name in locks_in(storage) if not re.fullmatch(ours, name)]
    for name in names:
        found = read_lock(storage, name)
        if found is not None and not _is_stale(storage, *found, stale_after, name):
            raise _held(storage, *found, stale_after, name)


def _is_stale(
    storage: Storage, holder: Process, beat: float, stale_after: float, name: str
) -> bool:
    if holder.alive is None:
        return _silence(storage, beat, name) > stale_after
    return not holder.alive


def _silence(storage: Storage, beat: float, name: str) -> float:
    """Seconds since the holder's last sign of life.

    A heartbeat in the future was made by a clock that is ahead of ours. The storage's own clock
    then says how old the file is; where the storage keeps no times, the holder counts as gone."""
    silence = time.time() - beat
    if silence >= 0:
        return silence
    try:
        age = storage.age(name)
    except FileNotFoundError:  # released a moment ago
        age = None
    return float("inf") if age is None else max(age, 0.0)


def _held(
    storage: Storage, holder: Process, beat: float, stale_after: float, name: str
) -> LockHeld:
    silence = _silence(storage, beat, name)
    known = (
        ""
        if holder.here
        else f"; if that machine is gone, try again in {max(0.0, stale_after - silence):.0f} s"
    )
    found = _PART.fullmatch(name)
    what = f", which does shard {found[1]}/{found[2]} of a sweep," if found else ""
    return LockHeld(
        f"{storage.url} is in use by process {holder.pid} on {holder.place}{what} "
        f"(last sign of life {silence:.0f} s ago). Wait until it is done, stop it, or give another "
        f"output folder"
        f"{known}",
        holder,
    )


def _write(
    storage: Storage, owner: Process, name: str = LOCK, note: dict[str, Any] | None = None
) -> None:
    body = asdict(owner) | {"heartbeat": time.time()} | ({"note": note} if note else {})
    storage.write_bytes(name, (json.dumps(body, indent=2, default=str) + "\n").encode())
