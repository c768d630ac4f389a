"""Whole sweeps without Ray: every task of every stage, one after the other, in this process."""

from __future__ import annotations

import json
from typing import Any

from ray.tune.search import Searcher

from ld3_dist.cluster.evaluate_stage import evaluation_items, losses_of_baselines
from ld3_dist.cluster.output_folder import check_claim, claim, with_names_of
from ld3_dist.cluster.search.searcher import CellSearcher
from ld3_dist.experiment import Plan, parse_experiment
from ld3_dist.store import lock as locks
from ld3_dist.store.results import load_results
from ld3_dist.store.storage import Storage
from ld3_dist.store.tables import read_table
from ld3_dist.tasks.baselines import missing_baselines, run_baselines
from ld3_dist.tasks.evaluate import compare_again, finish, sample_part, teacher_item
from ld3_dist.tasks.index import RowIndex
from ld3_dist.tasks.planning import make_plan
from ld3_dist.tasks.scored import evaluation_of
from ld3_dist.tasks.teach import make_shard, missing_shards, seal
from ld3_dist.tasks.trial import restored_outcome, run_trial


def sweep(storage: Storage, experiment: dict[str, Any]) -> Plan:
    """Every stage; what is there is not done again. Returns the plan."""
    plan = make_plan(parse_experiment(experiment))
    check_claim(storage)
    plan = with_names_of(storage, plan)
    with locks.acquire(storage):
        lineage = claim(storage, plan)
        storage.sweep_temporary()
        teach(plan, storage)
        rows = RowIndex(plan, storage)
        for cell in plan.cells:
            task = missing_baselines(plan, cell, rows)
            if task is not None:
                run_baselines(plan, cell, storage, task=task)
        ready = {model.label for model in plan.models}
        searcher = CellSearcher(plan, rows.outcome, ready, 1, note=lineage.ask)
        search(plan, storage, searcher)
        lineage.finish()
        evaluate(plan, storage)
    return plan


def teach(plan: Plan, storage: Storage) -> None:
    for model in plan.models:
        for teacher in plan.teachers:
            for start, stop in missing_shards(plan, model, storage, teacher)[0]:
                make_shard(plan, model, storage, start, stop, teacher=teacher)
            seal(plan, model, storage, teacher)


def search(plan: Plan, storage: Storage, searcher: CellSearcher) -> int:
    """Run the trials that a searcher gives; the number of them."""
    done = 0
    while isinstance(given := searcher.suggest("now"), dict):
        cell = plan.cell(given["cell"])
        spec = plan.spec(cell, json.loads(given["settings"]), json.loads(given["members"]))
        outcome = restored_outcome(plan, spec, storage)
        numbers = {"round": given["round"], "attempts": 1}
        outcome = outcome or run_trial(plan, spec, storage, numbers)
        searcher.on_trial_complete("now", {"objective": outcome.objective})
        done += 1
    assert given == Searcher.FINISHED
    return done


def evaluate(plan: Plan, storage: Storage) -> None:
    if not plan.experiment.evaluate.samples:
        return
    frame, table = load_results(storage), read_table(storage, "evaluations")
    written = set(zip(table["key"], table["evaluation"], strict=True))
    losses = read_table(storage, "losses")
    kept = set(zip(losses["key"], losses["evaluation"], strict=True))
    written = {one for one in written if one in kept or one[0].startswith("data:")}
    items = evaluation_items(plan, frame)
    there = [item for item in items if (item.key, evaluation_of(plan, item.model)) in written]
    for item in [item for item in items if item not in there]:
        for work in (teacher_item(plan, item.model), item):
            for start, stop in work.parts(plan):
                sample_part(plan, work, storage, start, stop)
        finish(plan, item, storage, 0.0, losses_of_baselines(frame, item))
    for item in there:
        if item.kind == "learned":
            compare_again(plan, item, storage)
