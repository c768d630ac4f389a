"""Trials of five epochs, with their teacher pairs."""

from __future__ import annotations

from typing import Any

from tiny_sweep import changed

from ld3_dist.experiment import Plan, TrialSpec, parse_experiment
from ld3_dist.store.storage import Storage
from ld3_dist.tasks.planning import make_plan
from ld3_dist.tasks.teach import make_shard, missing_shards, seal

EPOCHS = 5
NUMBERS = {"round": 0, "attempts": 1}
VALUES = {"default": {"gamma": 0.01, "lr": 0.1}, "paper": {"gamma": 0.01, "lr": 0.005}}


def plan_of(procedure: str = "default", seconds: float = 0.0, **settings: Any) -> Plan:
    learn = {"procedure": procedure, "epochs": EPOCHS, "batch": 4} | settings
    return make_plan(
        parse_experiment(changed(learn=learn, resources={"checkpoint_seconds": seconds}))
    )


def taught(plan: Plan, storage: Storage, **values: Any) -> TrialSpec:
    """A trial of the plan, with its pairs in the storage."""
    (model,) = plan.experiment.models
    for start, stop in missing_shards(plan, model, storage)[0]:
        make_shard(plan, model, storage, start, stop)
    seal(plan, model, storage)
    return plan.trial(plan.cells[1], VALUES[str(plan.experiment.learn["procedure"])] | values)
