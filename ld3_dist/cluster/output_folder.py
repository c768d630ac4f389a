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
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..core.errors import InputError
from ..experiment.plan import FORMAT, Plan
from ..store.process import Process, this_process
from ..store.storage import Storage
from ..store.tables import read_table

CLAIM = "experiment.json"
MOST_TOLD = 12
"""Settings that a message names."""

ABSENT = object()

_SCRATCH = re.compile(r"^ld3-dist~(?P<host>[^~]+)~(?P<pid>\d+)~(?P<start>[^~]+)$")


def check_claim(storage: Storage, plan: Plan) -> bool:
    """Return True if the folder is this experiment's, False if it is still to be claimed.

    A folder whose experiment.json is lost or damaged is to be claimed again, if everything else in
    it is this experiment's. Raises InputError if it is another's, of another format, or if it
    cannot be read."""
    found = read_claim(storage)
    if found is None:
        _check_contents(storage, plan)
        return False
    version = found.get("format", 0)
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
    told = differences(found, plan)
    if told:
        lines = "\n  ".join(told)
        raise InputError(
            f"{storage.url}: holds another experiment ({found.get('name')!r}). What differs:\n"
            f"  {lines}\nChoose another --output, or go back to the settings of that folder"
        )
    return True


def read_claim(storage: Storage) -> dict[str, Any] | None:
    """The content of experiment.json; None where it is not there or damaged.

    Raises InputError if the storage cannot be read."""
    try:
        found = json.loads(storage.read_bytes(CLAIM)) if storage.exists(CLAIM) else None
    except OSError as error:
        raise InputError(
            f"cannot read {storage.url}: {error}. Check the address, the credentials and the "
            f"network"
        ) from error
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and "fingerprint" in found else None


def differences(found: dict[str, Any], plan: Plan) -> list[str]:
    """What an experiment.json says otherwise than a plan, a setting a line; empty if nothing.

    Names that were given to models count, names that follow from paths do not."""
    told = []
    for i, (there, model) in enumerate(zip(_labels(found), plan.experiment.models, strict=False)):
        if model.name is not None and model.name != there:
            told.append(f"models.{i}.name: {there!r} there, {model.name!r} here")
    if found.get("fingerprint") == plan.fingerprint:
        return told
    there = dict(_flat(found.get("identity", {})))
    here = dict(_flat(json.loads(json.dumps(plan.identity))))
    for key in sorted(there.keys() | here.keys()):
        if there.get(key, ABSENT) != here.get(key, ABSENT):
            told.append(f"{key}: {_shown(there, key)} there, {_shown(here, key)} here")
    if not told:
        told = [f"fingerprint: {found.get('fingerprint')} there, {plan.fingerprint} here"]
    if len(told) > MOST_TOLD:
        told[MOST_TOLD:] = [f"and {len(told) - MOST_TOLD} more"]
    return told


def with_names_of(storage: Storage, plan: Plan) -> Plan:
    """The plan with the models called as in the folder that it goes on in.

    A model without a name is called by its path. After a move it keeps the name that its rows
    have."""
    names = _labels(read_claim(storage) or {})
    models = plan.experiment.models
    if len(names) != len(models) or [model.label for model in models] == names:
        return plan
    pairs = list(zip(models, names, strict=True))
    renamed = tuple(model.model_copy(update={"name": name}) for model, name in pairs)
    return replace(
        plan,
        experiment=plan.experiment.model_copy(update={"models": renamed}),
        model_hashes={name: plan.model_hashes[model.label] for model, name in pairs},
        conditionings={
            name: plan.conditionings[model.label]
            for model, name in pairs
            if model.label in plan.conditionings
        },
    )


def claim(storage: Storage, plan: Plan) -> None:
    """Make the folder this experiment's."""
    if check_claim(storage, plan):
        return
    body = {
        "format": FORMAT,
        "name": plan.experiment.name,
        "fingerprint": plan.fingerprint,
        "labels": [model.label for model in plan.experiment.models],
        "models": plan.model_hashes,
        "settings": plan.experiment.model_dump(mode="json"),
        "identity": plan.identity,
    }
    storage.write_bytes(CLAIM, (json.dumps(body, indent=2) + "\n").encode())


def _check_contents(storage: Storage, plan: Plan) -> None:
    """Raise InputError unless everything in a folder without experiment.json is of a plan."""
    missing = f"{storage.url}: holds results, but its {CLAIM} is missing or damaged"
    rows = read_table(storage, "rows")
    owners = {str(owner) for owner in rows["experiment"].dropna()} - {plan.fingerprint}
    if owners:
        raise InputError(
            f"{missing}, and rows of another experiment are in it (fingerprint {min(owners)}; "
            f"this is {plan.fingerprint}); choose another --output"
        )
    labels = {model.label for model in plan.experiment.models}
    others = {str(name) for name in rows["model"].dropna()} - labels
    if others:
        raise InputError(
            f"{missing}, and its models have other names there ({', '.join(sorted(others))}): "
            f"write name: {min(others)} in the YAML, or choose another --output"
        )
    teachers = {plan.teacher_key(model) for model in plan.experiment.models}
    found = {name.split("/")[1] for name in storage.list("pairs", recursive=True)}
    if found - teachers:
        raise InputError(
            f"{missing}, and pairs of another teacher are in it "
            f"({storage.address(f'pairs/{min(found - teachers)}')}); choose another --output"
        )


def _labels(found: dict[str, Any]) -> list[str]:
    names = found.get("labels")
    return [str(name) for name in names] if isinstance(names, list) else []


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by their full keys: models.0.weights, search.grid.gamma, …"""
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        value = {str(i): item for i, item in enumerate(value)}
    if not isinstance(value, dict):
        yield key, value
        return
    for name, item in value.items():
        yield from _flat(item, f"{key}.{name}" if key else str(name))


def _shown(settings: dict[str, Any], key: str) -> str:
    value = settings.get(key)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = json.dumps(value, ensure_ascii=False) if key in settings else "not set"
    return text if len(text) <= 60 else f"{text[:57]}…"


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
