"""The experiments that ran in an output folder: every version of the YAML, and what it asks for.

    experiment.json                 {"format": 3, "current": fingerprint} of the latest version
    experiments/<fingerprint>.json  one version: its name, settings and identity, when it first and
                                    last ran, and in `asked` the rows that it asks for:
                                        trials      keys of trials
                                        members     [seed, label of the start] of their members
                                        baselines   row keys of hand-made grids
                                        complete    true once the search has asked for everything

Formats 1 and 2 had one experiment, all of it in experiment.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..core.user_code import label
from .storage import Storage

CLAIM = "experiment.json"
FOLDER = "experiments"


def lineage_name(fingerprint: str) -> str:
    """The file of one version of an experiment."""
    return f"{FOLDER}/{fingerprint}.json"


def read_claim(storage: Storage) -> dict[str, Any] | None:
    """The content of experiment.json; None if it is not there or damaged.

    Raises OSError if the storage cannot be read.
    """
    try:
        found = json.loads(storage.read_bytes(CLAIM))
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and ("current" in found or _is_old(found)) else None


def read_lineage(storage: Storage, fingerprint: str) -> dict[str, Any] | None:
    """One version of an experiment; None if it is not there or damaged."""
    try:
        found = json.loads(storage.read_bytes(lineage_name(fingerprint)))
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    whole = isinstance(found, dict) and found.get("fingerprint") == fingerprint
    return found if whole and isinstance(found.get("asked"), dict) else None


def lineages(storage: Storage) -> list[dict[str, Any]]:
    """Every version that ran in a folder, in the order of their last runs."""
    names = [name for name in storage.list(FOLDER) if name.endswith(".json")]
    stems = [name.removeprefix(f"{FOLDER}/").removesuffix(".json") for name in names]
    read = [read_lineage(storage, stem) for stem in stems]
    found = [one for one in read if one is not None]
    return sorted(found, key=lambda one: str(one.get("last_run")))


def current(storage: Storage) -> dict[str, Any]:
    """The version that ran last, in formats 1 and 2 the only one; {} if there is none.

    Where experiment.json is lost or damaged, the version with the latest run is taken.
    """
    claim = read_claim(storage)
    if claim is not None and _is_old(claim):
        return claim
    if claim is not None:
        found = read_lineage(storage, str(claim["current"]))
        if found is not None:
            return found
    return next(reversed(lineages(storage)), {})


def own_distance(experiment: Mapping[str, Any]) -> str:
    """The label of the distance in which an experiment compares fresh samples; "" if unknown."""
    settings = experiment.get("settings")
    found = settings.get("distance") if isinstance(settings, dict) else None
    return label(found) if isinstance(found, str) else ""


def _is_old(claim: dict[str, Any]) -> bool:
    """True for the content of experiment.json in formats 1 and 2."""
    return "fingerprint" in claim
