"""Versions of a tiny experiment, and what a folder holds for one of them.

    python growing.py SEED KILLS OUT REFERENCE

makes a folder in one go, and another through all versions under random kills; prints how the
processes ended, as JSON.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
from typing import Any

import pandas as pd
import torch
from faulty_storage import WRITE_POINTS, open_faulty
from plain_sweep import sweep
from tiny_sweep import PASSING, changed

from ld3_dist.experiment import Plan
from ld3_dist.store import lock as locks
from ld3_dist.store.lineage import current
from ld3_dist.store.opening import open_storage
from ld3_dist.store.storage import Storage
from ld3_dist.store.tables import read_table

START: dict[str, Any] = {
    "solvers": ["ddim"],
    "pairs": {"train": 6, "valid": 6},
    "learn": {"epochs": 1, "batch": 3},
    "evaluate": {"samples": 6},
    "baselines": ["karras"],
    "search": {
        "grid": {"gamma": [0, 0.01]},
        "optuna": {},
        "rounds": 1,
        "members": {"seeds": 1, "starts": ["log_snr"]},
    },
}
"""The first version."""

PARTS = ("experiment", *PASSING)
"""Columns that tell which version and which run made a row first."""


def version(**settings: Any) -> dict[str, Any]:
    """The first version with other settings; those of the search are merged."""
    search = START["search"] | settings.pop("search", {})
    return changed(**START | {"search": search} | settings)


def members(**settings: Any) -> dict[str, Any]:
    """The members of a search with other settings."""
    return {"members": START["search"]["members"] | settings}


CHAIN = [
    version(),
    version(search=members(seeds=2)),
    version(search=members(seeds=3) | {"grid": {"gamma": [0, 0.003, 0.01]}}),
    version(
        search=members(seeds=3, starts=["log_snr", "karras"]) | {"grid": {"gamma": [0.01, 0.003]}},
        baselines=["karras", "uniform"],
        nfe=[3, 4],
    ),
]
"""An experiment that grows, step by step, and at last asks for less of one axis."""


def asked_rows(storage: Storage) -> pd.DataFrame:
    """The rows that the current version asks for, by key, without what may differ between runs."""
    frame, asked = read_table(storage, "rows"), current(storage)["asked"]
    members = {(seed, start) for seed, start in asked["members"]}
    pairs = zip(frame["seed"], frame["start"], strict=True)
    known = pd.Series([pair in members for pair in pairs], frame.index, dtype=bool)
    learned = frame["trial"].isin(asked["trials"]) & known
    mine = frame[learned | frame["key"].isin(asked["baselines"])]
    return mine.drop(columns=list(PARTS), errors="ignore").sort_values("key", ignore_index=True)


def quick(experiment: dict[str, Any], storage: Storage) -> Plan:
    """A sweep by nobody else, in one thread."""
    locks.SETTLE = 0.01
    torch.set_num_threads(1)
    return sweep(storage, experiment)


def forked(place: str, experiment: dict[str, Any], fault: str) -> int:
    """Exit code of a process that does the sweep; minus the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        os.environ["LD3_DIST_FAULT"] = fault
        code = 1
        try:
            quick(experiment, open_faulty(place))
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main() -> None:
    seed, kills, out, reference = sys.argv[1:]
    os.environ["LD3_DIST_COMMIT"] = "none"  # asking git takes as long as a sweep
    with tempfile.TemporaryDirectory() as folder:
        quick(CHAIN[0], open_storage(folder))  # so that no child imports anything
    codes = [forked(reference, CHAIN[-1], "")]
    chance, killed = random.Random(int(seed)), 0
    for i, experiment in enumerate(CHAIN):
        share = int(kills) * (i + 1) // len(CHAIN)
        code = -signal.SIGKILL
        while code != 0:
            fault = f"{chance.choice(WRITE_POINTS)}:{chance.randint(1, 4)}"
            code = forked(out, experiment, fault if killed < share else "")
            killed += code == -signal.SIGKILL
            codes.append(code)
    print(json.dumps(codes))


if __name__ == "__main__":
    main()
