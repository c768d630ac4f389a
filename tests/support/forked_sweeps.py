"""Whole sweeps without Ray, each in a forked process that a fault kills; then again without the
fault.

    python forked_sweeps.py PLACE POINT...     PLACE holds a %s; prints how every process ended, as
    JSON

Forking spares the seconds that importing PyTorch takes. The parent uses one thread and no network.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from typing import Any

import torch
from faulty_storage import open_faulty
from plain_sweep import sweep
from tiny_sweep import changed

from ld3_dist.store import lock as locks
from ld3_dist.store.opening import open_storage

SMALL: dict[str, Any] = {
    "solvers": ["ddim"],
    "learn": {"epochs": 1, "batch": 8},
    "evaluate": {"samples": 8},
    "baselines": ["karras"],
    "search": {
        "grid": {"lr": [0.1, 0.2]},
        "optuna": {},
        "rounds": 1,
        "members": {"seeds": 1, "starts": ["log_snr"]},
    },
}


def forked(place: str, fault: str) -> int:
    """Exit code of a process that does the sweep under a fault ("" for none); minus the signal that
    ended it.
    """
    pid = os.fork()
    if pid == 0:
        os.environ["LD3_DIST_FAULT"] = fault
        code = 1
        try:
            sweep(open_faulty(place), changed(**SMALL))
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main() -> None:
    place, *points = sys.argv[1:]
    locks.SETTLE = 0.01  # nobody else is after this lock
    os.environ["LD3_DIST_COMMIT"] = "none"  # asking git takes as long as a sweep
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        sweep(open_storage(folder), changed(**SMALL))  # so that no child imports anything
    ended = {"": [forked(place % "reference", "")]}
    for i, point in enumerate(points):
        ended[point] = [forked(place % i, point), forked(place % i, "")]
    print(json.dumps(ended))


if __name__ == "__main__":
    main()
