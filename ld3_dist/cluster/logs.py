"""OUT/logs: what happened, as JSON lines. One file a process and segment; a segment is written
whole, again and again until it is full, so that it works on object stores and a killed writer
leaves no half line.

A line:  time (UTC)  event (start, end, note, error, retry, fail)  stage  item  role  node  pid  and
         what else is known: seconds, attempt, reason, traceback. Logs are for reading: nothing in
         the program depends on them, and a log that cannot be written stops nobody."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

from ..store.process import host_name
from ..store.storage import Storage

FULL = 256
"""Lines of a segment."""

DELAY = 2.0
"""Seconds a line may wait for the next write."""


class Log:
    """The log of this process in an output folder."""

    def __init__(self, storage: Storage, role: str) -> None:
        self.storage, self.role = storage, role
        self.lines: list[str] = []
        self.segment, self.dirty, self.since = 0, False, datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
        self.lock = threading.Lock()
        self.timer: threading.Timer | None = None

    def write(
        self, event: str, stage: str, item: str | None = None, now: bool = False, **facts: Any
    ) -> None:
        """Add a line; written within DELAY seconds, or `now`."""
        time_ = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = {"time": time_, "event": event, "stage": stage, "item": item, "role": self.role}
        line |= {"node": host_name(), "pid": os.getpid()}
        line |= {key: value for key, value in facts.items() if value is not None}
        with self.lock:
            self.lines.append(json.dumps(line, default=str))
            self.dirty = True
            if not now and self.timer is None:
                self.timer = threading.Timer(DELAY, self.flush)
                self.timer.daemon = True
                self.timer.start()
        if now:
            self.flush()

    def flush(self) -> None:
        """Write what has not been written."""
        with self.lock:
            if self.timer is not None:
                self.timer.cancel()
                self.timer = None
            if not self.dirty:
                return
            body = "".join(line + "\n" for line in self.lines).encode()
            name = f"logs/{self.since}-{self.role}-{host_name()}-{os.getpid()}-{self.segment:04d}.jsonl"
            with contextlib.suppress(OSError):
                self.storage.write_bytes(name, body)
                self.dirty = False
                if len(self.lines) >= FULL:
                    self.segment += 1
                    self.lines = []


_OPEN: dict[str, Log] = {}


def worker_log(storage: Storage) -> Log:
    """This worker's log; the same for all its tasks in a folder."""
    return _OPEN.setdefault(f"{os.getpid()} {storage.url}", Log(storage, "worker"))


@contextlib.contextmanager
def timed(log: Log, stage: str, item: str | None, **facts: Any) -> Iterator[dict[str, Any]]:
    """Lines for the start and the end of a piece of work, or its error; the block may add facts to
    the last line.
    """
    clock, found = time.perf_counter(), dict[str, Any]()
    log.write("start", stage, item, **facts)
    try:
        yield found
    except BaseException as error:
        reason = f"{type(error).__name__}: {error}"
        log.write(
            "error", stage, item, now=True, seconds=_since(clock), reason=reason, **facts, **found
        )
        raise
    log.write("end", stage, item, now=True, seconds=_since(clock), **facts, **found)


def logged(
    storage: Storage,
    stage: str,
    item: str,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> Any:
    """Call a task on a worker, with its lines in the worker's log."""
    with timed(worker_log(storage), stage, item):
        return function(*arguments)


def _since(clock: float) -> float:
    return round(time.perf_counter() - clock, 3)
