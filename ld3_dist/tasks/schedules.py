"""Schedule files of learned rows: written, compared with their rows, and made again.

A row holds the knots and the network times of its schedule. Where the solver's coefficients were
not learned, the table follows from them, so that a lost file is built from its row in milliseconds
and equals the one that was lost. Learned coefficients stand in the file alone: their trial is
learned again. A procedure whose grids are its own may put more into a table; so is its.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import torch

from ..core.errors import InputError
from ..core.grid import Grid
from ..core.learning.learnable import LearnableGrid
from ..core.learning.problem import Progress
from ..core.learning.procedure import procedures
from ..core.solver import Tableau, make_solver
from ..core.user_code import PREFIX, label
from ..experiment.plan import Plan, TrialSpec
from ..models import Model
from ..schedule.file import Schedule, read_schedule
from ..schedule.making import make_schedule
from ..schedule.starts import begins_later
from ..store.storage import Storage
from ..store.tables import OWN, read_records
from .baselines import losses_for
from .opened import model_of
from .scored import evaluation_name, evaluation_of

METRICS = (
    "eval_loss",
    "eval_loss_sem",
    "eval_loss_median",
    "eval_loss_iqm",
    "fid",
    "kid",
    "inception_score",
    "precision",
    "recall",
    "density",
    "coverage",
)
"""Columns of an evaluation that the schedule file of its row repeats."""


def schedule_name(key: str) -> str:
    """The file of a row's schedule."""
    return f"schedules/{key}.json"


def complaint(storage: Storage, row: dict[str, Any]) -> str | None:
    """Why the schedule file of a row cannot be used, or None if it can."""
    try:
        schedule = read_schedule(storage, schedule_name(row["key"]))
    except InputError as error:
        return str(error)
    return differs(schedule, row)


def differs(schedule: Schedule, row: dict[str, Any]) -> str | None:
    """The first thing in which a schedule is not that of a row, or None."""
    wanted = {"row": row["key"], "solver": row["solver"], "nfe": row["nfe"]}
    named = {"row": schedule.row, "solver": label(schedule.solver), "nfe": schedule.nfe}
    for name, value in wanted.items():
        if named[name] != value:
            return f"its {name} is {named[name]!r}, that of its row is {value!r}"
    for name in ("knots", "evals"):
        if list(getattr(schedule, name)) != list(row[name]):
            return f"its {name} are not those of its row"
    if schedule.losses.get("valid_loss") != row["valid_loss"]:
        return "its held-out loss is not that of its row"
    if not schedule.coefficients and not _is_plain(schedule):
        return "its coefficients do not follow from its knots"
    return None


def _is_plain(schedule: Schedule) -> bool:
    """True where the table is the solver's own for the knots, or that cannot be known here."""
    name = schedule.procedure
    if name is None or name not in procedures or not _plain_procedure(name):
        return True
    if schedule.solver.startswith(PREFIX):
        return True  # a schedule file must not choose code to run
    try:
        table = _plain_table(schedule.noise_schedule, schedule)
    except (InputError, ValueError):
        return True  # a noise schedule of a user's file that is not imported here
    pairs = ((table.state, schedule.state), (table.outputs, schedule.outputs))
    return all(
        torch.allclose(mine, torch.tensor(kept, dtype=mine.dtype), rtol=1e-9, atol=1e-12)
        for mine, kept in pairs
    )


def _plain_procedure(name: str) -> bool:
    return procedures.get(name).Grid is LearnableGrid


def _plain_table(noise: Any, found: Any) -> Tableau:
    """The solver's own table for the knots and network times of a schedule."""
    knots, evals = (torch.tensor(v, dtype=torch.float64) for v in (found.knots, found.evals))
    return make_solver(found.solver).tableau(noise, Grid(knots, evals))


def follows_from_row(spec: TrialSpec) -> bool:
    """True where a trial's tables follow from the knots and network times in its rows."""
    settings = vars(spec.config)
    learned = settings.get("coefficients", False) or settings.get("start_time", False)
    later = any(begins_later(start) for _, start in spec.members)
    return not learned and not later and _plain_procedure(spec.config.procedure)


def restore(
    plan: Plan,
    spec: TrialSpec,
    storage: Storage,
    rows: list[dict[str, Any]],
    device: str | None = None,
) -> bool:
    """Make the schedule files of a trial's rows whole again; False where that takes learning."""
    bad = [row for row in rows if row["status"] == "ok" and complaint(storage, row)]
    if bad and not follows_from_row(spec):
        return False
    for row in bad:
        write_schedule(plan, spec, storage, model_of(spec.cell.model, device), row)
    return True


def mend(
    plan: Plan,
    spec: TrialSpec,
    storage: Storage,
    rows: list[dict[str, Any]],
    device: str | None = None,
) -> None:
    """`restore` as a task of a pool, whose result nobody needs."""
    restore(plan, spec, storage, rows, device)


def write_schedule(
    plan: Plan,
    spec: TrialSpec,
    storage: Storage,
    model: Model,
    row: dict[str, Any],
    learned: tuple[Progress, int] | None = None,
) -> None:
    """Write the schedule file of a learned row.

    Args:
        learned: the last Progress of the run and the position of the member in it. If not given,
            the schedule is built from the row, and completed from its evaluation if there is one.
    """
    progress, member = learned or (_progress_of(model, spec.cell.solver, row), 0)
    schedule = make_schedule(
        model,
        spec.cell.solver,
        spec.cell.nfe,
        progress,
        member,
        spec.config,
        start=row["start"],
        start_loss=math.inf if row["start_loss"] is None else row["start_loss"],
        seed=row["seed"],
        baselines=losses_for(storage, plan, spec),
        experiment=row["experiment"],
        row=row["key"],
    )
    if learned is None:
        name = evaluation_name(row["key"], evaluation_of(plan, spec.cell.model, "cpu"))
        records = read_records(storage, "evaluations", name)
        if records and records[0]["key"] == row["key"]:
            schedule = replace(schedule, metrics=metrics_of(records[0]))
    schedule.write(storage, schedule_name(row["key"]))


def metrics_of(record: dict[str, Any]) -> dict[str, float]:
    """The numbers of an evaluation that a schedule file repeats."""
    found = {name: record.get(name) for name in METRICS}
    found |= json.loads(record.get("own_metrics") or "{}")  # read back from the table
    found |= {name: value for name, value in record.items() if name.startswith(OWN)}
    return {k: value for k, value in found.items() if value is not None and math.isfinite(value)}


def _progress_of(model: Model, solver: str, row: dict[str, Any]) -> Progress:
    """The end of the run of one member, as its row has it."""
    knots, evals = (torch.tensor([row[n]], dtype=torch.float64) for n in ("knots", "evals"))
    grid = Grid(knots, evals)
    train, valid = (
        torch.tensor([math.nan if row[n] is None else row[n]], dtype=torch.float64)
        for n in ("train_loss", "valid_loss")
    )
    table = make_solver(solver).tableau(model.denoiser.noise, grid)
    return Progress(
        epoch=row["epochs_run"],
        train=train,
        valid=valid,
        moved=torch.full_like(valid, math.nan),
        best_valid=valid,
        best_epoch=torch.tensor([row["best_epoch"]]),
        best=grid,
        tableau=table,
        network_evals=row["network_evals"],
        work=torch.tensor([float(row["network_evals"])]),
        last=torch.tensor([row["epochs_run"]]),
        snapshot=dict,
    )
