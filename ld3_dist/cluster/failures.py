"""The failures table: every attempt that went wrong, with reason, machine, process and traceback.

Whoever sees a failure first writes it down: a worker its own exceptions, the driver the death of a
worker."""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

from ..core.text import file_name
from ..schedule.provenance import now
from ..store.credentials import masked
from ..store.process import node_name
from ..store.storage import Storage
from ..store.tables import read_records, write_table

_COLOUR = re.compile(r"\x1b\[\d*m")


def record_failure(
    storage: Storage, stage: str, item: str, attempt: int, reason: str, trace: str | None = None,
    node: str | None = None, pid: int | None = None,
) -> None:  # fmt: skip
    """One row of the failures table."""
    record = {
        "stage": stage,
        "item": item,
        "attempt": attempt,
        "reason": reason,
        "traceback": trace,
        "time": now(),
    }
    record |= {"node": node or node_name(), "pid": pid or os.getpid()}
    record |= {"reason": masked(reason), "traceback": trace and masked(trace)}
    write_table(
        storage,
        "failures",
        f"{stage}-{file_name(item)}-{attempt}-{time.time_ns():x}",
        [record],
    )


def failures_of(storage: Storage, key: str) -> list[str]:
    """Names of the failure records of a trial, oldest first."""
    names = [Path(name).stem for name in storage.list("failures") if f"search-{key}-" in name]
    return sorted(names, key=lambda name: int(name.rsplit("-", 1)[1], 16))


def attempts_so_far(storage: Storage) -> Counter[str]:
    """The number of failed attempts of every trial, by its key."""
    names = (Path(name).stem for name in storage.list("failures"))
    found = (name.removeprefix("search-") for name in names if name.startswith("search-"))
    return Counter(name.rsplit("-", 2)[0] for name in found)


def last_failure(storage: Storage, key: str) -> str:
    """Return the reason of a trial's last failure, from the failures table."""
    names = failures_of(storage, key)
    records = read_records(storage, "failures", names[-1]) if names else None
    return str(records[0]["reason"]) if records else "the worker died"


def death_of(trial: Any) -> dict[str, Any]:
    """Return what Tune knows of a trial that failed: reason, trace, node and pid.

    It is needed where the worker died and left no record of its own."""
    file = trial.error_file
    text = Path(file).read_text(errors="replace") if file and Path(file).exists() else ""
    text = _COLOUR.sub("", text).rpartition("Failure # ")[2].partition("\n")[2].strip()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    reason = (
        (lines[-1] if lines[0].startswith("ray::") else f"the worker died: {lines[0]}")
        if lines
        else ""
    )
    pid, node = (
        re.search(r"pid[=:] ?(\d+)", text),
        re.search(r"ip[=:] ?([0-9a-fA-F.:]+[0-9a-fA-F])", text),
    )
    return {
        "reason": reason or "the worker died", "trace": text or None,
        "node": node[1] if node else None, "pid": int(pid[1]) if pid else None,
    }  # fmt: skip
