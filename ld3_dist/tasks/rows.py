"""Rows of the result table: the columns that rows of every kind share, and their status."""

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
from ..schedule.teaching import Teacher
from ..store.columns import learning_columns
from ..store.storage import Storage
from ..store.tables import read_records

COLLAPSED = 1e-4
"""Two knots closer than this fraction of the lambda range: the grid has lost a step."""


def row_of(
    plan: Plan, cell: Cell, model: Model, distance: str, grid: Grid, teacher: Teacher
) -> dict[str, Any]:
    """The columns that rows of every kind have."""
    noise = model.denoiser.noise
    low, high = lam_range(noise)
    return cell_columns(plan, cell, distance, teacher) | {
        "model_hash": model.hash,
        "conditioning": model.conditioning,
        "guidance": model.guidance,
        "status": "ok",
        "message": None,
        "knots": grid.knots.tolist(),
        "evals": grid.evals.tolist(),
        "min_gap": (noise.lam(grid.knots).diff().min() / (high - low)).item(),
    }


def cell_columns(plan: Plan, cell: Cell, distance: str, teacher: Teacher) -> dict[str, Any]:
    """The columns that are known before any work, and versions."""
    return {
        "experiment": plan.fingerprint,
        "cell": cell.id,
        "model": cell.model.label,
        "solver": label(cell.solver),
        "nfe": cell.nfe,
        "steps": cell.steps,
        "distance": label(distance),
        "valid_pairs": plan.experiment.pairs.valid,
        "teacher": plan.teacher_key(cell.model, teacher),
        "teacher_solver": label(teacher.solver),
        "teacher_nfe": teacher.nfe,
        "teacher_start": label(teacher.start),
        **provenance(),
    }


def settings_columns(spec: TrialSpec, member: int) -> dict[str, Any]:
    """The trial and the settings of a learned row: those with a column, and all of them as JSON."""
    seed, start = spec.members[member]
    known = learning_columns(dataclasses.asdict(spec.config))
    known["procedure"] = label(spec.config.procedure)
    settings = spec.settings | {"seed": seed, "start": start}
    known |= {"trial": spec.key, "seed": seed, "start": label(start)}
    return known | {"settings": json.dumps(settings, sort_keys=True)}


def trial_rows(storage: Storage, spec: TrialSpec) -> list[dict[str, Any]] | None:
    """The rows of a task, if its file is there whole and holds them; None if it failed."""
    rows = read_records(storage, "rows", spec.task)
    if not rows or any(row["status"] == "failed" for row in rows):
        return None
    return rows if [row["key"] for row in rows] == list(spec.keys) else None


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
    """The rows of a trial that never finished: its settings, status failed, and the reason."""
    common = cell_columns(plan, spec.cell, spec.settings["distance"], spec.teacher) | numbers
    common |= {"kind": "learned", "train_pairs": spec.train}
    common |= {"status": "failed", "message": message, "started": now()}
    return [common | settings_columns(spec, m) | {"key": key} for m, key in enumerate(spec.keys)]
