"""What the evaluation stage works on: which rows are sampled afresh, and which are shown side by
side.
"""

from __future__ import annotations

from typing import Any

from ..experiment.plan import Cell, Plan
from ..tasks.evaluate import Item, teacher_item
from ..tasks.opened import model_of


def evaluation_items(plan: Plan, frame: Any) -> list[Item]:
    """Teachers, data, all baselines, and every member of the best trial of each cell."""
    items = [teacher_item(plan, model) for model in plan.experiment.models]
    if (
        plan.experiment.evaluate.extractor == "auto"
        and plan.experiment.evaluate.reference == "auto"
    ):
        items += [
            Item(f"data:{m.model}", "data", m)
            for m in plan.experiment.models
            if m.model == "digits"
        ][:1]
    for cell in plan.cells:
        here = frame[(frame["cell"] == cell.id) & (frame["status"] == "ok")]
        base = here[(here["kind"] == "baseline") & (here["distance"] == plan.experiment.distance)]
        items += [_item(row, cell) for row in base.to_dict("records")]
        best = here[here["best"]]
        if len(best):
            trial = best.iloc[0]["trial"]
            chosen = here[(here["kind"] == "learned") & (here["trial"] == trial)]
            items += [_item(row, cell) for row in chosen.to_dict("records")]
    return items


def picture_pairs(plan: Plan, frame: Any) -> list[tuple[Cell, Item, Item]]:
    """Best baseline and best learned row of every cell that has both, and whose samples are images."""
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


def others(frame: Any, item: Item) -> dict[str, Any]:
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
