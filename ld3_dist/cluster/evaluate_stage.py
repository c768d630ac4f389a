"""The evaluation stage: samples of the rows that count are made in parts, merged, and scored.

Parts of all rows stand in one queue; a row is scored when all of its parts are there, and then its
parts are removed. Rows that have their evaluation are left alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ..core.user_code import label
from ..experiment.plan import Cell, Plan
from ..store.results import load_results
from ..store.storage import Storage
from ..store.tables import read_table
from ..tasks.evaluate import Item, finish, part_name, pictures, sample_part, teacher_item
from ..tasks.opened import model_of
from .events import Event
from .ray.pool import Done, Task

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
        written = set(read_table(storage, "evaluations")["key"])
        wanted = evaluation_items(plan, self.frame)
        self.items = [item for item in wanted if item.key not in written]
        self.teachers = [teacher_item(plan, model) for model in plan.experiment.models]
        self.seconds = {item.key: 0.0 for item in (*self.items, *self.teachers)}

    def run(self) -> Iterator[Event]:
        """Sample, score, draw, and remove the parts."""
        yield from self.work("evaluate", self._parts(), self._count)
        yield from self.work("score", [*self._scores(), *self._pictures()], None)
        for item in (*self.items, *self.teachers):
            for start, stop in item.parts(self.plan):
                self.storage.remove(part_name(item, start, stop))

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
        self.seconds[done.task.arguments[1].key] += done.result

    def _scores(self) -> list[Task]:
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
            for item in self.items
        ]

    def _pictures(self) -> list[Task]:
        return [
            Task(
                "score",
                f"pictures-{learned.key}",
                pictures,
                (self.plan, baseline, learned, self.storage),
            )
            for cell, baseline, learned in picture_pairs(self.plan, self.frame)
            if not self.storage.exists(f"samples/{cell.id.replace('/', '_')}.safetensors")
        ]


def evaluation_items(plan: Plan, frame: Any) -> list[Item]:
    """Teachers, data, all baselines, and every member of the best trial of each cell."""
    items = [teacher_item(plan, model) for model in plan.experiment.models]
    items += data_items(plan)
    distance = label(plan.experiment.distance)
    for cell in plan.cells:
        here = frame[(frame["cell"] == cell.id) & (frame["status"] == "ok")]
        base = here[(here["kind"] == "baseline") & (here["distance"] == distance)]
        items += [_item(row, cell) for row in base.to_dict("records")]
        best = here[here["best"]]
        if len(best):
            trial = best.iloc[0]["trial"]
            chosen = here[(here["kind"] == "learned") & (here["trial"] == trial)]
            items += [_item(row, cell) for row in chosen.to_dict("records")]
    return items


def data_items(plan: Plan) -> list[Item]:
    """The data of every model that brings them, one half against the other."""
    evaluate = plan.experiment.evaluate
    if (evaluate.extractor, evaluate.reference) != ("auto", "auto"):
        return []
    found: dict[str, Item] = {}
    for settings in plan.experiment.models:
        if model_of(settings, "cpu").data is not None:
            name = f"data:{label(settings.model)}"
            found.setdefault(name, Item(name, "data", settings))
    return list(found.values())


def picture_pairs(plan: Plan, frame: Any) -> list[tuple[Cell, Item, Item]]:
    """Best baseline and best learned row of every cell that has both and samples images."""
    pairs = []
    for cell in plan.cells if plan.experiment.evaluate.pictures else []:
        if len(model_of(cell.model, "cpu").image_shape) != 3:
            continue
        here = frame[(frame["cell"] == cell.id) & (frame["status"] == "ok")]
        base = here[here["kind"] == "baseline"].sort_values("valid_loss")
        best = here[here["best"]]
        if len(base) and len(best):
            pairs.append(
                (cell, _item(base.iloc[0].to_dict(), cell), _item(best.iloc[0].to_dict(), cell))
            )
    return pairs


def losses_of_baselines(frame: Any, item: Item) -> dict[str, Any]:
    """Losses of the cell's baselines, for a learned row's schedule file."""
    if item.kind != "learned" or item.cell is None:
        return {}
    here = frame[
        (frame["cell"] == item.cell.id) & (frame["kind"] == "baseline") & (frame["status"] == "ok")
    ]
    return {row["start"]: {"valid_loss": row["valid_loss"]} for row in here.to_dict("records")}


def _item(row: dict[str, Any], cell: Any) -> Item:
    grid = {name: tuple(float(v) for v in row[name]) for name in ("knots", "evals")}
    return Item(row["key"], row["kind"], cell.model, cell, grid)
