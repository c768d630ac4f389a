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
from ray.tune.search import Searcher
from tiny_sweep import changed

from ld3_dist.cluster.evaluate_stage import evaluation_items, losses_of_baselines
from ld3_dist.cluster.output_folder import claim, with_names_of
from ld3_dist.cluster.search.searcher import CellSearcher
from ld3_dist.experiment import parse_experiment
from ld3_dist.experiment.plan import TrialSpec
from ld3_dist.store import lock as locks
from ld3_dist.store.opening import open_storage
from ld3_dist.store.results import load_results
from ld3_dist.store.storage import Storage
from ld3_dist.store.tables import read_table
from ld3_dist.tasks.baselines import run_baselines
from ld3_dist.tasks.evaluate import finish, sample_part, teacher_item
from ld3_dist.tasks.planning import make_plan
from ld3_dist.tasks.rows import has_baselines
from ld3_dist.tasks.teach import make_shard, missing_shards, seal
from ld3_dist.tasks.trial import finished_outcome, restored_outcome, run_trial

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


def sweep(storage: Storage, experiment: dict[str, Any]) -> None:
    """Every stage, one task after the other; what is there is not done again."""
    plan = make_plan(parse_experiment(experiment))
    with locks.acquire(storage):
        claim(storage, plan)
        plan = with_names_of(storage, plan)
        storage.sweep_temporary()
        (model,) = plan.experiment.models
        for start, stop in missing_shards(plan, model, storage)[0]:
            make_shard(plan, model, storage, start, stop)
        seal(plan, model, storage)
        for cell in plan.cells:
            if not has_baselines(storage, plan, cell):
                run_baselines(plan, cell, storage)
        searcher = CellSearcher(
            plan, lambda spec: finished_outcome(storage, spec), {model.label}, 1
        )
        while isinstance(given := searcher.suggest("now"), dict):
            cell = next(cell for cell in plan.cells if cell.id == given["cell"])
            spec = TrialSpec(cell, json.loads(given["settings"]), given["key"])
            numbers = {"trial": given["trial"], "generation": given["generation"], "attempts": 1}
            outcome = restored_outcome(plan, spec, storage)
            outcome = outcome or run_trial(plan, spec, storage, numbers)
            searcher.on_trial_complete("now", {"objective": outcome.objective})
        assert given == Searcher.FINISHED
        frame, written = load_results(storage), set(read_table(storage, "evaluations")["key"])
        for item in [item for item in evaluation_items(plan, frame) if item.key not in written]:
            for work in (teacher_item(plan, model), item):
                for start, stop in work.parts(plan):
                    sample_part(plan, work, storage, start, stop)
            finish(plan, item, storage, 0.0, losses_of_baselines(frame, item))


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
