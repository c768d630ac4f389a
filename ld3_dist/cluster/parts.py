"""Parts of a sweep that have ended, so that the last of them knows that it is the last.

A part that has done all it can leaves a mark, shards/<fingerprint>-<i>-of-<n>.json. The fingerprint
of the experiment is in the name: after an edit of the YAML the parts run again. Whoever finds the
marks of all n parts may do what is left: evaluate and write the report. That is an ordinary sweep
of the whole, which needs the lock of the whole folder, so that only one does it.
"""

from __future__ import annotations

import json

from ..schedule.provenance import now
from ..store.part import Part
from ..store.storage import Storage

FOLDER = "shards"


def _mark(fingerprint: str, part: Part) -> str:
    return f"{FOLDER}/{fingerprint}-{part.index}-of-{part.count}.json"


def begin(storage: Storage, fingerprint: str, part: Part) -> None:
    """Take back the mark of an earlier run of a part."""
    storage.remove(_mark(fingerprint, part))


def end(storage: Storage, fingerprint: str, part: Part, failures: int) -> None:
    """Leave the mark of a part. failures: tasks that it has given up."""
    body = {"shard": str(part), "ended": now(), "failures": failures}
    storage.write_bytes(_mark(fingerprint, part), (json.dumps(body, indent=2) + "\n").encode())


def unfinished(storage: Storage, fingerprint: str, count: int) -> list[Part]:
    """The parts without a mark."""
    there = set(storage.list(FOLDER))
    parts = [Part(index, count) for index in range(1, count + 1)]
    return [part for part in parts if _mark(fingerprint, part) not in there]
