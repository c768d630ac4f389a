"""The output folder of a sweep: the lineage of experiments that ran in it, and Ray Tune's scratch.

A folder belongs to every version of the experiment that ran in it (`store.lineage`). A version that
starts adds its own file, which lists the rows that it asks for; rows of other versions stay where
they are. Only a folder of an older format is refused: its keys and sample ranges were others.

Tune wants a folder for its own state. That state is never the truth (rows are), nothing reads it
back, and trials write through `Storage`. So it need not be shared: it stays on the driver's
machine, in OUT/.ray where OUT is a folder, among its temporary files where OUT is an object store.
Other nodes never see it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..core.errors import InputError
from ..experiment.plan import FORMAT, Plan, TrialSpec, digest
from ..schedule.provenance import now
from ..store.columns import FORMAT as TABLES
from ..store.lineage import CLAIM, lineage_name, lineages, read_claim, read_lineage
from ..store.process import Process, this_process
from ..store.storage import Storage
from ..store.tables import SUFFIX, format_of
from ..tasks.scored import evaluations_of

log = logging.getLogger("ld3_dist")

SECONDS = 20.0
"""Least time between two writes of a lineage file while a search asks for more."""

EVERY = 50.0
"""Least time between two writes, as a multiple of what the last one took."""

_SCRATCH = re.compile(r"^ld3-dist~(?P<host>[^~]+)~(?P<pid>\d+)~(?P<start>[^~]+)$")


def check_claim(storage: Storage) -> None:
    """Raise InputError if a sweep cannot go on in a folder: it has another format.

    Also where the storage cannot be read.
    """
    try:
        claim = read_claim(storage)
        known = claim or next(reversed(lineages(storage)), None)
        version = (known or {}).get("format", FORMAT if known else _format_of_tables(storage))
    except OSError as error:
        raise InputError(
            f"cannot read {storage.url}: {error}. Check the address, the credentials and the "
            f"network"
        ) from error
    if not isinstance(version, int) or version > FORMAT:
        raise InputError(
            f"{storage.url}: written by a newer ld3_dist (format {version}); update, or use "
            f"another folder"
        )
    if version < FORMAT:
        raise InputError(
            f"{storage.url}: written by an older ld3_dist (format {version}, this one writes "
            f"{FORMAT}). Its results can still be read with `ld3-dist report` and load_results, "
            f"but a sweep cannot go on in it: choose another --output"
        )


def _format_of_tables(storage: Storage) -> int:
    """The format of a folder without any experiment in it, by one of its rows."""
    for name in storage.list("rows"):
        if name.endswith(SUFFIX):
            return FORMAT if format_of(storage, name) >= TABLES else FORMAT - 1
    return FORMAT


def with_names_of(storage: Storage, plan: Plan) -> Plan:
    """The plan with its models called as in the folder that it goes on in.

    A model is the same if its weights, its conditions and its options are. One without a name is
    called by its path, and after a move it keeps the name that its rows have. One that has been
    given another name keeps the old one, too, and a warning says so: otherwise its rows would lie
    in two cells.
    """
    known: dict[str, str] = {}
    for one in lineages(storage):
        models = one.get("identity", {}).get("models", [])
        known |= {
            digest(model): str(name) for model, name in zip(models, _labels(one), strict=False)
        }
    models = plan.experiment.models
    there = [known.get(digest(plan.model_identity(model)), model.label) for model in models]
    if len(set(there)) < len(there):
        return plan
    for model, name in zip(models, there, strict=True):
        if model.name not in (None, name):
            log.warning("model %s is called %s in %s, and stays so", model.name, name, storage.url)
    pairs = [(model, name) for model, name in zip(models, there, strict=True)]
    if all(model.label == name for model, name in pairs):
        return plan
    renamed = tuple(
        model if model.label == name else model.model_copy(update={"name": name})
        for model, name in pairs
    )
    conditionings = plan.conditionings
    return replace(
        plan,
        experiment=plan.experiment.model_copy(update={"models": renamed}),
        model_hashes={name: plan.hash_of(model) for model, name in pairs},
        conditionings={
            name: conditionings[model.label]
            for model, name in pairs
            if model.label in conditionings
        },
    )


class Lineage:
    """The file of one version of an experiment, kept up to date while its search asks for trials.

    A file that is there already is continued, also one that another driver of the same experiment
    has written meanwhile: rows once asked for stay asked for.
    """

    def __init__(self, storage: Storage, plan: Plan) -> None:
        self.storage, self.plan = storage, plan
        self.first_run = now()
        self.trials: dict[str, None] = {}
        self.baselines = [key for cell in plan.cells for key, *_ in plan.baselines(cell)]
        self.complete = False
        self.new = True
        self.next = 0.0
        self.guard = threading.Lock()  # a search asks in a thread of its own

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles what its searcher holds for a restore that never happens."""
        return {}

    def ask(self, spec: TrialSpec) -> None:
        """Note a trial that the search asks for; it is written at the next `write`."""
        with self.guard:
            if spec.key not in self.trials:
                self.trials[spec.key] = None
                self.new = True

    def write(self, at_once: bool = False) -> None:
        """Write the file if there is anything new, now and then unless `at_once`."""
        if not self.new or (time.monotonic() < self.next and not at_once):
            return
        with self.storage.exclusive():  # other drivers may do other parts of the same experiment
            self._write()

    def _write(self) -> None:
        found = read_lineage(self.storage, self.plan.fingerprint) or {}
        asked = found.get("asked", {})
        clock = time.monotonic()
        with self.guard:
            self.trials = dict.fromkeys([*map(str, asked.get("trials", [])), *self.trials])
            self.new = False
        self.complete = self.complete or bool(asked.get("complete"))
        self.first_run = str(found.get("first_run", self.first_run))
        body = json.dumps({**found, **self._body()}, indent=2)
        self.storage.write_bytes(lineage_name(self.plan.fingerprint), f"{body}\n".encode())
        self.next = time.monotonic() + max(SECONDS, EVERY * (time.monotonic() - clock))

    def finish(self) -> None:
        """The search has asked for everything."""
        self.complete = self.new = True
        self.write(at_once=True)

    def _body(self) -> dict[str, Any]:
        e, plan = self.plan.experiment, self.plan
        return {
            "format": FORMAT,
            "name": e.name,
            "fingerprint": plan.fingerprint,
            "first_run": self.first_run,
            "last_run": now(),
            "labels": [model.label for model in e.models],
            "models": plan.model_hashes,
            "settings": e.model_dump(mode="json"),
            "identity": plan.identity,
            "evaluation": evaluations_of(plan),
            "asked": {
                "trials": list(self.trials),
                "members": [list(member) for member in plan.member_labels()],
                "baselines": self.baselines,
                "complete": self.complete,
            },
        }


def claim(storage: Storage, plan: Plan) -> Lineage:
    """Add this version of the experiment to a folder and make it the current one.

    Its own file is written first, so that experiment.json never names a version that is not there.
    """
    check_claim(storage)
    lineage = Lineage(storage, plan)
    lineage.write(at_once=True)
    wanted = {"format": FORMAT, "current": plan.fingerprint}
    if read_claim(storage) != wanted:
        storage.write_bytes(CLAIM, (json.dumps(wanted, indent=2) + "\n").encode())
    return lineage


def _labels(found: dict[str, Any]) -> list[str]:
    names = found.get("labels")
    return [str(name) for name in names] if isinstance(names, list) else []


@contextlib.contextmanager
def scratch(storage: Storage, alone: bool = True) -> Iterator[str]:
    """A folder of this machine for Tune, gone afterwards; what killed drivers left is removed
    first.

    alone: no other driver works in the output folder, whose own scratch is then used.
    """
    if storage.local_path and alone:
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
