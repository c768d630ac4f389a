"""OUT/logs: the story of a sweep as JSON lines, written by one handler of the standard library's
logging.

The handler sits on the logger "ld3_dist" in the driver and in every worker. It takes the lines of
the stages and tasks (`write`, `timed`) and whatever the rest of the package logs, such as the
core's warnings about memory. Warnings are also kept for the terminal: a worker sends its warnings
to the driver along with its next result, and the driver shows each text once.

A line:  time (UTC)  event (start, end, note, warning, error, retry, fail)  stage  item  role  node
         address  pid  and what else is known: seconds, attempt, reason, message. Logs are for
         reading: nothing in the program depends on them, and a log that cannot be written stops
         nobody.

One file per process and segment. A segment is written whole, again and again until it is full, so
that it works on object stores and a killed writer leaves no half line."""

from __future__ import annotations

import contextlib
import contextvars
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import ray

from ..store.credentials import masked
from ..store.process import host_name, node_address, set_node_address
from ..store.storage import Storage

FULL = 256
"""Lines of a segment."""

DELAY = 2.0
"""Seconds a line may wait for the next write."""

LOGGER = logging.getLogger("ld3_dist")

_work: contextvars.ContextVar[tuple[str, str | None]] = contextvars.ContextVar("work")


class SweepHandler(logging.Handler):
    """The log of this process in an output folder, and its warnings on their way to the terminal.

    role: driver or worker."""

    def __init__(self, storage: Storage, role: str) -> None:
        super().__init__()
        self.storage, self.role = storage, role
        self.lines: list[str] = []
        self.segment, self.dirty, self.since = 0, False, datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
        self.guard = threading.RLock()
        self.timer: threading.Timer | None = None
        self.warnings: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Add a line; it is written within DELAY seconds, or at once if the record asks for it."""
        found = getattr(record, "ld3_dist", None)
        if found is None:
            found = self._plain(record)
        time_ = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": time_} | {key: found.pop(key) for key in ("event", "stage", "item")}
        line |= {"role": self.role, "node": host_name(), "address": node_address()}
        line |= {"pid": os.getpid()}
        line |= {key: value for key, value in found.items() if value is not None}
        with self.guard:
            self.lines.append(masked(json.dumps(line, default=str)))
            self.dirty = True
            if self.timer is None:
                self.timer = threading.Timer(DELAY, self.flush)
                self.timer.daemon = True
                self.timer.start()
        if getattr(record, "at_once", False):
            self.flush()

    def _plain(self, record: logging.LogRecord) -> dict[str, Any]:
        """The line of a record that knows nothing of sweeps; it belongs to the work at hand."""
        stage, item = _work.get(("sweep", None))
        text = record.getMessage()
        if record.levelno < logging.WARNING:
            return {"event": "note", "stage": stage, "item": item, "message": text}
        self.show(f"{stage} {item} on {host_name()} ({node_address()}): {text}" if item else text)
        return {"event": "warning", "stage": stage, "item": item, "message": text}

    def show(self, warning: str) -> None:
        """Keep a warning for the terminal."""
        with self.guard:
            self.warnings.append(masked(warning))

    def take_warnings(self) -> list[str]:
        """The warnings since the last call."""
        with self.guard:
            taken, self.warnings = self.warnings, []
        return taken

    def flush(self) -> None:
        """Write what has not been written."""
        with self.guard:
            if self.timer is not None:
                self.timer.cancel()
                self.timer = None
            if not self.dirty:
                return
            body = "".join(line + "\n" for line in self.lines).encode()
            # names of hosts and numbers of processes coincide in containers; addresses do not
            host = f"{host_name()}-{node_address().replace(':', '.')}"
            name = f"{self.since}-{self.role}-{host}-{os.getpid()}-{self.segment:04d}"
            with contextlib.suppress(OSError):
                self.storage.write_bytes(f"logs/{name}.jsonl", body)
                self.dirty = False
                if len(self.lines) >= FULL:
                    self.segment += 1
                    self.lines = []


@contextlib.contextmanager
def driver_log(storage: Storage) -> Iterator[SweepHandler]:
    """Log into the folder while the block runs."""
    level = LOGGER.level
    handler = _attach(storage, "driver")
    try:
        yield handler
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(level)
        handler.flush()


_WORKERS: dict[int, SweepHandler] = {}


def worker_log(storage: Storage) -> SweepHandler:
    """The log of this worker in a folder: one for all its tasks there."""
    handler = _WORKERS.get(os.getpid())
    if handler is None or handler.storage != storage:
        if handler is not None:
            LOGGER.removeHandler(handler)
            handler.flush()
        handler = _WORKERS[os.getpid()] = _attach(storage, "worker")
    return handler


def _attach(storage: Storage, role: str) -> SweepHandler:
    if ray.is_initialized():
        set_node_address(ray.util.get_node_ip_address())
    handler = SweepHandler(storage, role)
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    return handler


def write(
    event: str, stage: str, item: str | None = None, at_once: bool = False, **facts: Any
) -> None:
    """Log what happened to a stage or a task; `facts` that are None are left out."""
    level = logging.WARNING if event in ("error", "retry", "fail") else logging.INFO
    line = {"event": event, "stage": stage, "item": item, **facts}
    LOGGER.log(
        level,
        "%s: %s %s",
        event,
        stage,
        item or "",
        extra={"ld3_dist": line, "at_once": at_once},
    )


@contextlib.contextmanager
def timed(
    stage: str, item: str | None, later: bool = False, **facts: Any
) -> Iterator[dict[str, Any]]:
    """Log the start and the end of a piece of work, or its error.

    The block may add facts to the last line. What else is logged meanwhile belongs to this work.
    later: the end may wait for the next write; without it, a process that is killed after its work
    leaves the line."""
    clock, found = time.perf_counter(), dict[str, Any]()
    write("start", stage, item, **facts)
    before = _work.set((stage, item))
    try:
        yield found
    except BaseException as error:
        reason = f"{type(error).__name__}: {error}"
        more = facts | found | {"seconds": _since(clock), "reason": reason}
        write("error", stage, item, at_once=True, **more)
        raise
    finally:
        with contextlib.suppress(ValueError):  # a generator may be closed in another context
            _work.reset(before)
    write("end", stage, item, at_once=not later, seconds=_since(clock), **facts, **found)


@dataclass(frozen=True)
class Logged:
    """The result of a task on a worker, and the worker's warnings since its last result."""

    result: Any
    warnings: list[str]


def logged(
    storage: Storage,
    stage: str,
    item: str,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> Logged:
    """Call a task on a worker, with its lines in the worker's log."""
    handler = worker_log(storage)
    with timed(stage, item):
        result = function(*arguments)
    return Logged(result, handler.take_warnings())


def _since(clock: float) -> float:
    return round(time.perf_counter() - clock, 3)
