"""The output folder of a sweep: the experiment it belongs to, and the scratch of Ray Tune.

Tune wants a folder for its own state. That state is never the truth (rows are), nothing reads it
back, and trials write through `Storage`. So it need not be shared: it stays on the driver's
machine, in OUT/.ray where OUT is a folder, among its temporary files where OUT is an object store.
Other nodes never see it."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..core.errors import InputError
from ..experiment.plan import FORMAT, Plan
from ..store.process import Process, this_process
from ..store.storage import Storage

_SCRATCH = re.compile(r"^ld3-dist~(?P<host>[^~]+)~(?P<pid>\d+)~(?P<start>[^~]+)$")


def check_claim(storage: Storage, plan: Plan) -> bool:
    """Return True if the folder is this experiment's, False if it is nobody's.

    Raises InputError if it is another's or of a newer format, or if it cannot be read."""
    try:
        found = (
            json.loads(storage.read_bytes("experiment.json"))
            if storage.exists("experiment.json")
            else None
        )
        used = found is None and (storage.exists("rows") or storage.exists("pairs"))
    except OSError as error:
        raise InputError(
            f"cannot read {storage.url}: {error}. Check the address, the credentials and the "
            f"network"
        ) from (error)
    except ValueError as error:
        raise InputError(
            f"{storage.address('experiment.json')}: is damaged ({error}); choose another --output"
        ) from (error)
    if found is None:
        if used:
            raise InputError(
                f"{storage.url}: holds results but no experiment.json; choose another --output"
            )
        return False
    if found.get("format", 0) > FORMAT:
        raise InputError(
            f"{storage.url}: written by a newer ld3_dist (format {found['format']}); update, or "
            f"use another folder"
        )
    if found.get("fingerprint") != plan.fingerprint:
        raise InputError(
            f"{storage.url}: holds another experiment ({found.get('name')!r}, fingerprint "
            f"{found.get('fingerprint')}; "
            f"this is {plan.fingerprint}); choose another --output, or remove that folder"
        )
    return True


def claim(storage: Storage, plan: Plan) -> None:
    """Make the folder this experiment's."""
    if check_claim(storage, plan):
        return
    body = {
        "format": FORMAT, "name": plan.experiment.name, "fingerprint": plan.fingerprint,
        "models": plan.model_hashes, "settings": plan.experiment.model_dump(mode="json"),
    }  # fmt: skip
    storage.write_bytes("experiment.json", (json.dumps(body, indent=2) + "\n").encode())


@contextlib.contextmanager
def scratch(storage: Storage) -> Iterator[str]:
    """A folder of this machine for Tune, gone afterwards; what killed drivers left is removed
    first.
    """
    if storage.local_path:
        folder = Path(storage.local_path, ".ray")
        shutil.rmtree(folder, ignore_errors=True)  # we hold the lock: nobody else's
    else:
        me, top = this_process(), Path(tempfile.gettempdir())
        for old in top.glob("ld3-dist~*"):
            owner = _SCRATCH.match(old.name)
            if owner and Process(owner["host"], int(owner["pid"]), owner["start"]).alive is False:
                shutil.rmtree(old, ignore_errors=True)
        folder = top / f"ld3-dist~{me.host}~{me.pid}~{me.start}"
    try:
        yield str(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
