"""The hand-made grids of a cell as rows.

Every grid has a row for each distance and each teacher that learned rows of the cell may be
measured with; the rows of one teacher share the cost of finding the grid and of its samples. Rows
are keyed one by one, so that a grid, a distance or a teacher that is added leaves the others as
they are. The rows that are measured together stand in one file,
rows/baseline-<cell>-<digest of their keys>.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Container
from dataclasses import dataclass
from typing import Any

from ..core.solver import make_solver
from ..core.user_code import label
from ..experiment.plan import Cell, Plan, TrialSpec, digest
from ..schedule.baselines import hand_made, mean_loss, source_of
from ..schedule.provenance import now, where
from ..schedule.sampling import in_loss_space, make_samples
from ..schedule.starts import search_evals
from ..schedule.teaching import Teacher
from ..store.storage import Storage
from ..store.tables import SUFFIX, read_records, read_table, write_table
from .cost import Meter
from .opened import distance_of, keep, kept, model_of, pairs_of
from .rows import judge, row_of

PREFIX = "baseline-"


@dataclass(frozen=True)
class BaselineTask:
    """Hand-made grids of a cell that are measured together: (row key, grid, distance, teacher)."""

    cell: Cell
    wanted: tuple[tuple[str, str, str, Teacher], ...]

    @property
    def file(self) -> str:
        """Name of the file of its rows."""
        keys = [key for key, *_ in self.wanted]
        return f"{_file_prefix(self.cell)}{digest(keys)}"


def missing_baselines(plan: Plan, cell: Cell, there: Container[str]) -> BaselineTask | None:
    """The hand-made grids of a cell that are still to be measured; None if there are none.

    Args:
        there: the row keys that are there.
    """
    wanted = tuple(one for one in plan.baselines(cell) if one[0] not in there)
    return BaselineTask(cell, wanted) if wanted else None


def run_baselines(
    plan: Plan, cell: Cell, storage: Storage, device: str | None = None,
    task: BaselineTask | None = None,
) -> None:  # fmt: skip
    """Measure hand-made grids of a cell on the held-out pairs and write their rows.

    Args:
        task: the grids to measure; all of them if not given.
    """
    e, meter = plan.experiment, Meter(plan.experiment.resources, "actor", device)
    task = task or BaselineTask(cell, tuple(plan.baselines(cell)))
    model = in_loss_space(model_of(cell.model, device), e.loss_space)
    solver = make_solver(cell.solver)
    rows = []
    for name, teacher in dict.fromkeys((name, teacher) for _, name, _, teacher in task.wanted):
        same = {key: distance for key, n, distance, t in task.wanted if (n, t) == (name, teacher)}
        valid = pairs_of(plan, cell.model, storage, *plan.valid_range, device, teacher)
        train = pairs_of(plan, cell.model, storage, *plan.train_range(0), device, teacher)
        distances = {d: distance_of(plan, d, cell.model, device) for d in same.values()}
        started, clock = now(), time.perf_counter()
        grid, table = hand_made(name, model, solver, cell.nfe, train)
        samples = make_samples(model, table, valid.noise, valid.condition, e.resources.batch)
        losses = {
            d: mean_loss(distance, samples, valid.target) for d, distance in distances.items()
        }
        seconds = (time.perf_counter() - clock) / len(same)
        evals = search_evals(name, cell.steps, len(train)) + len(valid) * cell.nfe
        for key, distance in same.items():
            row = row_of(plan, cell, model, distance, grid, teacher) | {
                "key": key,
                "kind": "baseline",
                "start": label(name),
                "start_loss": losses[distance],
                "valid_loss": losses[distance],
                "network_evals": evals // len(same),
                "seconds": seconds,
                **meter.columns(seconds),
                "attempts": 1,
                "settings": json.dumps({"start": name} | source_of(name, cell.nfe)),
                "started": started,
                **where(device),
            }
            rows.append(judge(row))
    write_table(storage, "rows", task.file, rows)


def cell_baselines(storage: Storage, plan: Plan, cell: Cell) -> list[dict[str, Any]]:
    """The rows of a cell's hand-made grids that are there, of those that the plan asks for.

    A process reads them until they are complete, and then keeps them.
    """
    wanted = {key for key, *_ in plan.baselines(cell)}
    at = f"baselines {storage.url} {plan.fingerprint} {cell.id}"
    found = kept(at)
    if found is None:
        found = _read_baselines(storage, cell, wanted)
        if len(found) == len(wanted):
            keep(at, lambda: found)
    return list(found.values())


def _read_baselines(storage: Storage, cell: Cell, wanted: set[str]) -> dict[str, dict[str, Any]]:
    """The wanted rows by key, from their own files or from larger ones that took them in."""
    found: dict[str, dict[str, Any]] = {}
    prefix = f"rows/{_file_prefix(cell)}"
    for name in storage.list("rows"):
        if name.startswith(prefix):
            rows = read_records(storage, "rows", name.removeprefix("rows/").removesuffix(SUFFIX))
            found |= {row["key"]: row for row in rows or ()}
    if not wanted <= found.keys():
        frame: Any = read_table(storage, "rows")
        for row in frame[frame["key"].isin(list(wanted))].to_dict("records"):
            found.setdefault(row["key"], row)
    return {key: row for key, row in found.items() if key in wanted}


def losses_for(storage: Storage, plan: Plan, spec: TrialSpec) -> dict[str, float | None]:
    """Held-out loss of each hand-made grid that a trial compares with.

    They are those of its cell in its distance, against its teacher. A loss that is not finite is
    None.
    """
    distance = label(spec.settings["distance"])
    teacher = plan.teacher_key(spec.cell.model, spec.teacher)
    found: dict[str, float | None] = {}
    for row in cell_baselines(storage, plan, spec.cell):
        if (row["distance"], row["teacher"]) == (distance, teacher):
            loss = row["valid_loss"]
            finite = loss is not None and math.isfinite(loss)
            found[row["start"]] = loss if finite else None
    return found


def _file_prefix(cell: Cell) -> str:
    return f"{PREFIX}{digest([cell.model.label, cell.solver, cell.nfe])}-"
