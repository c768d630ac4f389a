"""The evaluation stage: samples of the rows that count are made in parts, merged, and scored.

Parts of all rows stand in one queue. When they are there, hand-made grids, teachers and data are
scored, then the learned rows, which are compared with the grids. Rows that have an evaluation with
the experiment's settings are left alone.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from ..core.user_code import label
from ..experiment.plan import Cell, Plan, TrialSpec
from ..store.results import comparable, load_results, own_first
from ..store.storage import Storage
from ..store.tables import read_table
from ..tasks.evaluate import (
    Item,
    compare_again,
    finish,
    has_pictures,
    pictures,
    sample_part,
    teacher_item,
)
from ..tasks.opened import model_of
from ..tasks.schedules import complaint, mend
from ..tasks.scored import evaluation_of, grids_of, learned_of
from .events import Event
from .ray.pool import Done, Task

log = logging.getLogger("ld3_dist")

Work = Callable[[str, list[Task], Callable[[Done], None] | None], Iterator[Event]]
"""Runs the tasks of a stage on a pool, and reports them as events."""


class Evaluation:
    """Everything that is not evaluated yet.

    Args:
        work: runs tasks of a stage (evaluate, score) and calls back for each that is done.
    """

    def __init__(self, plan: Plan, storage: Storage, work: Work) -> None:
        self.plan, self.storage, self.work = plan, storage, work
        self.frame = load_results(storage)
        self.lost = 0
        """Items without a usable schedule."""
        self.parts_done: Counter[str] = Counter()
        table = read_table(storage, "evaluations")
        written = set(zip(table["key"], table["evaluation"], strict=True))
        losses = read_table(storage, "losses", ["key", "evaluation"])
        kept = set(zip(losses["key"], losses["evaluation"], strict=True))
        written = {one for one in written if one in kept or str(one[0]).startswith("data:")}
        wanted = evaluation_items(plan, self.frame)
        self.names = {item.key: evaluation_of(plan, item.model, "cpu") for item in wanted}
        self.items = [item for item in wanted if (item.key, self.names[item.key]) not in written]
        self.known = [item for item in wanted if (item.key, self.names[item.key]) in written]
        self.teachers = [teacher_item(plan, model) for model in plan.models]
        self.seconds = {item.key: 0.0 for item in (*self.items, *self.teachers)}

    def run(self) -> Iterator[Event]:
        """Sample, score, draw, and remove the parts."""
        yield from self._mend()
        yield from self.work("evaluate", self._parts(), self._count)
        complete = [item for item in self.items if self._is_sampled(item)]
        first = [item for item in complete if item.kind != "learned"]
        learned = [item for item in complete if item.kind == "learned"]
        yield from self.work("score", self._scores(first), None)
        again = self._comparisons()
        yield from self.work("score", [*self._scores(learned), *again, *self._pictures()], None)
        if len(complete) == len(self.items):
            for name in self.storage.list("parts", recursive=True):
                self.storage.remove(name)

    def _mend(self) -> Iterator[Event]:
        """Make schedule files of rows to be evaluated again, where that takes no learning.

        A search has done it already. What cannot be made again is left out and said."""
        rows = {row["key"]: row for row in self.frame.to_dict("records")}
        bad = {
            item.key: reason
            for item in self.items
            if item.kind == "learned" and (reason := complaint(self.storage, rows[item.key]))
        }
        specs: dict[str, TrialSpec] = {}
        for item in [item for item in self.items if item.key in bad]:
            assert item.cell is not None
            settings = json.loads(rows[item.key]["settings"])
            member = settings.pop("seed"), settings.pop("start")
            specs[item.key] = self.plan.spec(item.cell, settings, [member])
        tasks = [
            Task("evaluate", f"schedules-{key}", mend, (self.plan, spec, self.storage, [rows[key]]))
            for key, spec in specs.items()
        ]
        yield from self.work("evaluate", tasks, None)
        lost = {key for key in bad if complaint(self.storage, rows[key])}
        for key in sorted(lost):
            log.warning("%s; not evaluated: a sweep learns its trial again", bad[key])
        self.lost = len(lost)
        self.items = [item for item in self.items if item.key not in lost]

    def _parts(self) -> list[Task]:
        """One task per part; every score compares with the teacher, so its parts come along."""
        sampled = [*self.items, *self.teachers] if self.items else []
        tasks = [
            Task(
                "evaluate",
                f"{item.key}-{start}",
                sample_part,
                (self.plan, item, self.storage, start, stop),
            )
            for item in sampled
            for start, stop in item.parts(self.plan)
        ]
        return list({task.item: task for task in tasks}.values())

    def _count(self, done: Done) -> None:
        key = done.task.arguments[1].key
        self.seconds[key] += done.result
        self.parts_done[key] += 1

    def _is_sampled(self, item: Item) -> bool:
        """True if all parts of an item, and of the teacher that it is compared with, are there."""
        teacher = teacher_item(self.plan, item.model)
        parts = [(one.key, len(one.parts(self.plan))) for one in (item, teacher)]
        return all(self.parts_done[key] == count for key, count in parts)

    def _scores(self, items: list[Item]) -> list[Task]:
        return [
            Task(
                "score",
                item.key,
                finish,
                (
                    self.plan,
                    item,
                    self.storage,
                    self.seconds[item.key],
                    losses_of_baselines(self.frame, item),
                ),
            )
            for item in items
        ]

    def _comparisons(self) -> list[Task]:
        """Learned rows that were compared with a hand-made grid that is not the best any more."""
        table = read_table(self.storage, "evaluations")
        named = list(zip(table["key"], table["evaluation"], strict=True))
        means = dict(zip(named, table["eval_loss"].tolist(), strict=True))
        overs = dict(zip(named, table["eval_gain_over"], strict=True))
        tasks = []
        for item in self.known:
            places = [(key, self.names[key]) for key in item.rivals if key in self.names]
            known = {place: means[place] for place in places if means.get(place) is not None}
            then = overs.get((item.key, self.names[item.key]))
            if item.kind == "learned" and known and min(known, key=known.__getitem__)[0] != then:
                arguments = (self.plan, item, self.storage)
                tasks.append(Task("score", f"gain-{item.key}", compare_again, arguments))
        return tasks

    def _pictures(self) -> list[Task]:
        rows = {row["key"]: row for row in self.frame.to_dict("records")}
        return [
            Task(
                "score",
                f"pictures-{learned.key}",
                pictures,
                (self.plan, baseline, learned, self.storage),
            )
            for _, baseline, learned in picture_pairs(self.plan, self.frame)
            if not has_pictures(self.plan, baseline, learned, self.storage)
            and not complaint(self.storage, rows[learned.key])
        ]


def evaluation_items(plan: Plan, frame: Any) -> list[Item]:
    """Teachers, data, all hand-made grids, and the learned rows that are asked for."""
    e = plan.experiment
    items = [teacher_item(plan, model) for model in plan.models]
    items += data_items(plan)
    for cell in plan.cells:
        here = frame[frame["cell"] == cell.id].to_dict("records")
        grids = grids_of(here, label(e.distance), [plan.teacher_key(cell.model)])
        items += [_item(row, cell) for row in grids]
        rivals = tuple(row["key"] for row in grids)
        items += [_item(row, cell, rivals) for row in learned_of(here, e.evaluated_rows)]
    return items


def data_items(plan: Plan) -> list[Item]:
    """The data of every model that brings them, one half against the other."""
    evaluate = plan.experiment.evaluate
    if (evaluate.extractor, evaluate.reference) != ("auto", "auto"):
        return []
    found: dict[str, Item] = {}
    for settings in plan.models:
        model = model_of(settings, "cpu")
        if model.data is not None or (model.reference and model.reference.features is not None):
            name = f"data:{model.hash[:16]}"
            found.setdefault(name, Item(name, "data", settings))
    return list(found.values())


def picture_pairs(plan: Plan, frame: Any) -> list[tuple[Cell, Item, Item]]:
    """Best baseline and best learned row of every cell that has both and samples images.

    Both are best by the same held-out losses: in the experiment's own distance and from its own
    teacher, where anything was learned so.
    """
    pairs, experiment = [], {"settings": plan.experiment.model_dump(mode="json")}
    for cell in plan.cells if plan.experiment.evaluate.pictures else []:
        if len(model_of(cell.model, "cpu").image_shape) != 3:
            continue
        here = frame[(frame["cell"] == cell.id) & (frame["status"] == "ok")]
        best = here[here["best"]]
        if best.empty:
            continue
        learned = own_first(best, experiment).iloc[0].to_dict()
        same = comparable(here[here["kind"] == "baseline"], learned)
        if len(same):
            baseline = same.sort_values("valid_loss").iloc[0].to_dict()
            pairs.append((cell, _item(baseline, cell), _item(learned, cell)))
    return pairs


def losses_of_baselines(frame: Any, item: Item) -> dict[str, Any]:
    """Losses of the cell's baselines, for a learned row's schedule file."""
    own = frame[frame["key"] == item.key]
    if item.kind != "learned" or not len(own):
        return {}
    grids = frame[(frame["kind"] == "baseline") & (frame["status"] == "ok")]
    here = comparable(grids, own.iloc[0])
    return {row["start"]: {"valid_loss": row["valid_loss"]} for row in here.to_dict("records")}


def _item(row: dict[str, Any], cell: Cell, rivals: tuple[str, ...] = ()) -> Item:
    grid = {name: tuple(float(v) for v in row[name]) for name in ("knots", "evals")}
    own = None
    if row["kind"] == "baseline":
        own = json.loads(row.get("settings") or "{}").get("schedule")
    return Item(row["key"], row["kind"], cell.model, cell, grid, rivals, own)
