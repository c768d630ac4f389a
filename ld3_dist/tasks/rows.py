"""Rows of the result table: what rows of every kind have in common, and how a row is judged."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

from ..core.grid import Grid, lam_range
from ..core.user_code import label
from ..experiment.plan import Cell, Plan, TrialSpec
from ..models import Model
from ..schedule.provenance import now, provenance
from ..store.columns import learning_columns
from ..store.storage import Storage
from ..store.tables import read_records

COLLAPSED = 1e-4
"""Two knots closer than this fraction of the lambda range: the grid has lost a step."""


def row_of(plan: Plan, cell: Cell, model: Model, distance: str, grid: Grid) -> dict[str, Any]:
    """The columns that rows of every kind have."""
    noise = model.denoiser.noise
    low, high = lam_range(noise)
    return cell_columns(plan, cell, distance) | {
        "model_hash": model.hash,
        "conditioning": model.conditioning,
        "guidance": model.guidance,
        "teacher": plan.teacher_key(cell.model),
        "status": "ok",
        "message": None,
        "knots": grid.knots.tolist(),
        "evals": grid.evals.tolist(),
        "min_gap": (noise.lam(grid.knots).diff().min() / (high - low)).item(),
    }


def cell_columns(plan: Plan, cell: Cell, distance: str) -> dict[str, Any]:
    """The columns that follow from the cell alone, and versions."""
    return {
        "experiment": plan.fingerprint,
        "cell": cell.id,
        "model": cell.model.label,
        "solver": label(cell.solver),
        "nfe": cell.nfe,
        "steps": cell.steps,
        "distance": label(distance),
        "valid_pairs": plan.experiment.pairs.valid,
        **provenance(),
    }


def settings_columns(spec: TrialSpec, seed: int, start: str) -> dict[str, Any]:
    """The settings of a learned row: those that have a column, and all of them as JSON."""
    known = learning_columns(dataclasses.asdict(spec.config))
    known["procedure"] = label(spec.config.procedure)
    settings = spec.settings | {"seed": seed, "start": start}
    known |= {"seed": seed, "start": label(start)}
    return known | {"settings": json.dumps(settings, sort_keys=True)}


def trial_rows(storage: Storage, spec: TrialSpec) -> list[dict[str, Any]] | None:
    """The rows of a trial, if its file is there whole and holds them; None if it failed."""
    rows = read_records(storage, "rows", spec.key)
    if not rows or any(row["status"] == "failed" for row in rows):
        return None
    wanted = [f"{spec.key}-{member}" for member in range(len(spec.members))]
    return rows if [row["key"] for row in rows] == wanted else None


def baseline_keys(plan: Plan, cell: Cell) -> list[str]:
    """Keys of the rows of a cell's hand-made grids, in the order of their file."""
    e, key = plan.experiment, plan.baseline_key(cell)
    names = [(label(name), label(distance)) for name in e.baselines for distance in e.distances]
    return [f"{key}-{name}-{distance}" for name, distance in names]


def has_baselines(storage: Storage, plan: Plan, cell: Cell) -> bool:
    """True if the file of a cell's hand-made grids is there whole and holds them."""
    rows = read_records(storage, "rows", plan.baseline_key(cell))
    return [row["key"] for row in rows or ()] == baseline_keys(plan, cell)


def judge(row: dict[str, Any]) -> dict[str, Any]:
    """Set the status of a row from its numbers."""
    if not math.isfinite(row["valid_loss"]):
        message = f"the held-out loss was {row['valid_loss']} from the start on"
        row |= {"status": "diverged", "message": message}
    elif row["kind"] == "learned" and not math.isfinite(row["train_loss"]):
        message = f"the training loss of the last epoch was {row['train_loss']}"
        row |= {"status": "diverged", "message": message}
    elif row["kind"] == "learned" and row["min_gap"] < COLLAPSED:
        message = f"two knots are {row['min_gap']:.1e} of the lambda range apart"
        row |= {"status": "collapsed", "message": message}
    return row


def failed_rows(
    plan: Plan, spec: TrialSpec, numbers: dict[str, int], message: str
) -> list[dict[str, Any]]:
    """The rows of a trial that never finished: its settings, status failed, and why."""
    common = cell_columns(plan, spec.cell, spec.settings["distance"]) | numbers
    common |= {"kind": "learned", "train_pairs": plan.experiment.pairs.train}
    common |= {"status": "failed", "message": message, "started": now()}
    return [
        common | settings_columns(spec, seed, start) | {"key": f"{spec.key}-{m}", "member": m}
        for m, (seed, start) in enumerate(spec.members)
    ]
