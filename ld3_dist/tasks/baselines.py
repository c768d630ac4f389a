"""The hand-made grids of a cell as rows."""

from __future__ import annotations

import json
import math
import time
from typing import Any

from ..core.solver import make_solver
from ..core.user_code import label
from ..experiment.plan import Cell, Plan
from ..schedule.baselines import hand_made, mean_loss
from ..schedule.provenance import now, where
from ..schedule.sampling import in_loss_space, make_samples
from ..store.storage import Storage
from ..store.tables import write_table
from .opened import distance_of, model_of, pairs_of
from .rows import judge, row_of


def run_baselines(plan: Plan, cell: Cell, storage: Storage, device: str | None = None) -> None:
    """Measure every hand-made grid of a cell on the held-out pairs and write their rows."""
    started, clock = now(), time.perf_counter()
    e = plan.experiment
    model, solver = (
        in_loss_space(model_of(cell.model, device), e.loss_space),
        make_solver(cell.solver),
    )
    valid = pairs_of(plan, cell.model, storage, *plan.valid_range, device)
    train = pairs_of(plan, cell.model, storage, *plan.train_range(), device)
    rows = []
    for name in e.baselines:
        grid, table = hand_made(name, model, solver, cell.nfe, train)
        made = make_samples(model, table, valid.noise, valid.condition, e.resources.batch)
        for distance_name in e.distances:
            distance = distance_of(plan, distance_name, cell.model, device)
            loss = mean_loss(distance, made, valid.target)
            row = row_of(plan, cell, model, distance_name, grid) | {
                "key": f"{plan.baseline_key(cell)}-{label(name)}-{label(distance_name)}",
                "kind": "baseline",
                "start": label(name),
                "start_loss": loss,
                "valid_loss": loss,
                "network_evals": len(valid) * cell.nfe,
                "attempts": 1,
                "settings": json.dumps({"start": name}),
                "started": started,
                **where(device),
            }
            rows.append(judge(row))
    seconds = (time.perf_counter() - clock) / len(rows)
    write_table(
        storage, "rows", plan.baseline_key(cell), [row | {"seconds": seconds} for row in rows]
    )


def losses_of(rows: list[dict[str, Any]], distance: str) -> dict[str, float | None]:
    """Held-out loss of each hand-made grid in a distance, None where it is not finite."""
    distance = label(distance)
    found: dict[str, float | None] = {}
    for row in rows:
        if row["kind"] == "baseline" and row["distance"] == distance:
            loss = row["valid_loss"]
            finite = loss is not None and math.isfinite(loss)
            found[row["start"]] = loss if finite else None
    return found
