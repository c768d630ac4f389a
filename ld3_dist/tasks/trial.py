"""A trial, and the baselines it is measured against: schedules learned for one point of a cell's
study, as rows.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ..core.errors import InputError
from ..core.grid import Grid, lam_range
from ..core.learning.learn import Progress, learn
from ..core.solver import Tableau, make_solver
from ..experiment.plan import Cell, Plan, TrialSpec
from ..models import Model
from ..schedule.file import Schedule, noise_to_dict
from ..store.storage import Storage
from ..store.tables import write_table
from .checkpoints import Checkpoints, Course, Note
from .context import (
    distance_of,
    make_samples,
    now,
    open_settings,
    pairs_of,
    provenance,
    start_knots,
    where,
)
from .rungs import Rungs, log_loss
from .space import in_loss_space

CONFIG_COLUMNS = (
    "preset",
    "coordinate",
    "gamma",
    "coefficients",
    "lr",
    "lr_times",
    "lr_noise",
    "epochs",
    "batch",
)
"""Fields of LearnConfig that rows have as columns of the same name."""

COLLAPSED = 1e-4
"""Two knots closer than this fraction of the lambda range: the grid has lost a step."""


@dataclass(frozen=True)
class Outcome:
    """What a trial tells its study: log geometric mean over seeds of the best member's hard
    held-out loss.
    """

    key: str
    objective: float
    valid: tuple[float, ...]
    status: str


def run_trial(
    plan: Plan,
    spec: TrialSpec,
    storage: Storage,
    numbers: dict[str, int],
    device: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    note: Note = lambda message: None,
) -> Outcome:
    """Learn the members of a trial, from a killed process's checkpoint if it left one; write their
    rows and schedules.

    numbers: trial, generation, attempts.  on_progress: called after each epoch.  note: told what a
                                           log should know."""
    checkpoints = Checkpoints(storage, spec, plan.experiment.resources.checkpoint_seconds, note)
    rungs, message = Rungs(plan, spec, storage), None
    progress: Progress | None = None
    for progress, course in course_of(plan, spec, storage, device, checkpoints):
        if on_progress:
            on_progress(progress)
        if rungs.stops(progress):
            message = f"stopped by ASHA after epoch {progress.epoch}"
            note(message)
            break
        checkpoints.keep(course, progress)
    assert progress is not None
    seconds = checkpoints.elapsed(course)
    curves = (
        torch.stack(course.train[1:] or course.train, 1).tolist(),
        torch.stack(course.valid, 1).tolist(),
    )
    opened = open_settings(spec.cell.model, device)
    rows = []
    for m, (seed, start) in enumerate(spec.members):
        row = (
            row_of(plan, spec.cell, opened, spec.settings["distance"], progress.best.member(m))
            | numbers
        )
        row |= settings_columns(spec, opened, seed, start)
        row |= {
            "key": f"{spec.key}-{m}",
            "kind": "learned",
            "member": m,
            "start_loss": curves[1][m][0],
            "train_loss": progress.train[m].item(),
            "valid_loss": progress.best_valid[m].item(),
            "best_epoch": int(progress.best_epoch[m]),
            "epochs_run": progress.epoch,
            "message": message,
            "network_evals": progress.network_evals // len(spec.members),
            "train_pairs": plan.experiment.pairs.train,
            "train_curve": curves[0][m],
            "valid_curve": curves[1][m],
            "seconds": seconds / len(spec.members),
            "started": course.started,
            **where(device),
        }
        rows.append(judge(row))
        if row["status"] == "ok":
            schedule_of(row, opened, progress.tableau, m).write(
                storage, f"schedules/{row['key']}.json"
            )
    write_table(storage, "rows", spec.key, rows)
    checkpoints.remove()
    return outcome_of(spec, rows)


def course_of(
    plan: Plan, spec: TrialSpec, storage: Storage, device: str | None, checkpoints: Checkpoints
) -> Iterator[tuple[Progress, Course]]:
    """The epochs still to do, each with all that the trial has behind it."""
    course = checkpoints.load()
    steps = progress_of(plan, spec, storage, device, course.resume)
    try:
        first = next(steps)
    except InputError as error:
        if course.state is None:
            raise
        checkpoints.note(f"the checkpoint is not used: {error}; the trial begins anew")
        course = Course()
        steps = progress_of(plan, spec, storage, device)
        first = next(steps)
    if course.state is not None:
        checkpoints.note(f"goes on after epoch {course.epoch}")
    course.state = None  # taken over; the noise of all members need not be held twice
    for progress in itertools.chain([first], steps):
        course.add(progress)
        yield progress, course


def progress_of(
    plan: Plan, spec: TrialSpec, storage: Storage, device: str | None, resume: Any = None
) -> Iterator[Progress]:
    """The learning of a trial's members, packed; `resume` as for `learn`."""
    cell, model = spec.cell, spec.cell.model
    opened, solver = open_settings(model, device), make_solver(cell.solver)
    train = pairs_of(plan, model, storage, *plan.train_range(), device)
    valid = pairs_of(plan, model, storage, *plan.valid_range, device)
    knots = {s: start_knots(s, opened, solver, cell.nfe, train) for _, s in spec.members}
    count = plan.experiment.pairs.train
    subsets = torch.stack([torch.arange(count) + seed * count for seed, _ in spec.members])
    yield from learn(
        in_loss_space(plan, opened).denoiser,
        solver,
        torch.stack([knots[s] for _, s in spec.members]),
        train,
        valid,
        distance_of(plan, spec.settings["distance"], model, device),
        spec.config,
        nfe=cell.nfe,
        seeds=[plan.experiment.seed * 1000 + seed for seed, _ in spec.members],
        subsets=subsets,
        resume=resume,
    )


def run_baselines(plan: Plan, cell: Cell, storage: Storage, device: str | None = None) -> None:
    """Measure every hand-made grid of a cell on the held-out pairs and write their rows."""
    started, clock = now(), time.perf_counter()
    opened, solver = (
        in_loss_space(plan, open_settings(cell.model, device)),
        make_solver(cell.solver),
    )
    valid = pairs_of(plan, cell.model, storage, *plan.valid_range, device)
    train = pairs_of(plan, cell.model, storage, *plan.train_range(), device)
    rows = []
    for name in plan.experiment.baselines:
        knots = start_knots(name, opened, solver, cell.nfe, train)
        grid = solver.coupled(opened.denoiser.noise, knots, cell.nfe)
        made = make_samples(
            opened,
            solver.tableau(opened.denoiser.noise, grid),
            valid,
            plan.experiment.resources.batch,
        )
        for distance_name in plan.experiment.distances:
            distance = distance_of(plan, distance_name, cell.model, device)
            loss = (
                distance.between(distance.features(made), distance.features(valid.target))
                .double()
                .mean()
                .item()
            )
            row = row_of(plan, cell, opened, distance_name, grid) | {
                "key": f"{plan.baseline_key(cell)}-{name}-{distance_name}",
                "kind": "baseline",
                "start": name,
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


def row_of(plan: Plan, cell: Cell, opened: Model, distance: str, grid: Grid) -> dict[str, Any]:
    """What rows of every kind have in common."""
    lam = opened.denoiser.noise.lam(grid.knots)
    low, high = lam_range(opened.denoiser.noise)
    return {
        "experiment": plan.fingerprint,
        "cell": cell.id,
        "model": cell.model.label,
        "model_hash": opened.hash,
        "conditioning": opened.conditioning,
        "guidance": opened.guidance,
        "solver": cell.solver,
        "nfe": cell.nfe,
        "steps": cell.steps,
        "distance": distance,
        "valid_pairs": plan.experiment.pairs.valid,
        "teacher": plan.teacher_key(cell.model),
        "status": "ok",
        "message": None,
        "knots": grid.knots.tolist(),
        "evals": grid.evals.tolist(),
        "min_gap": (lam.diff().min() / (high - low)).item(),
        **provenance(),
    }


def settings_columns(spec: TrialSpec, opened: Model, seed: int, start: str) -> dict[str, Any]:
    """The settings of a learned row."""
    config = spec.config
    return {name: getattr(config, name) for name in CONFIG_COLUMNS} | {
        "radius": config.radius(tuple(opened.denoiser.shape), spec.cell.nfe),
        "seed": seed, "start": start,
        "settings": json.dumps(spec.settings | {"seed": seed, "start": start}, sort_keys=True),
    }  # fmt: skip


def judge(row: dict[str, Any]) -> dict[str, Any]:
    """Set the status of a row from its numbers."""
    if not math.isfinite(row["valid_loss"]):
        row |= {
            "status": "diverged",
            "message": f"the held-out loss was {row['valid_loss']} from the start on",
        }
    elif row["kind"] == "learned" and not math.isfinite(row["train_loss"]):
        row |= {
            "status": "diverged",
            "message": f"the training loss of the last epoch was {row['train_loss']}",
        }
    elif row["kind"] == "learned" and row["min_gap"] < COLLAPSED:
        row |= {
            "status": "collapsed",
            "message": f"two knots are {row['min_gap']:.1e} of the lambda range apart",
        }
    return row


def outcome_of(spec: TrialSpec, rows: list[dict[str, Any]]) -> Outcome:
    """The objective of a trial from its rows, fresh or read back."""
    valid = [float(row["valid_loss"]) if row["status"] == "ok" else math.inf for row in rows]
    objective = log_loss([int(row["seed"]) for row in rows], valid)
    if not math.isfinite(objective):
        return Outcome(spec.key, math.inf, tuple(valid), "diverged")
    return Outcome(spec.key, objective, tuple(valid), "ok")


def failed_rows(
    plan: Plan, spec: TrialSpec, numbers: dict[str, int], message: str
) -> list[dict[str, Any]]:
    """The rows of a trial that never finished: its settings, status failed, and why."""
    cell = spec.cell
    return [
        {name: getattr(spec.config, name) for name in CONFIG_COLUMNS}
        | numbers
        | provenance()
        | {
            "key": f"{spec.key}-{m}",
            "experiment": plan.fingerprint,
            "kind": "learned",
            "cell": cell.id,
            "member": m,
            "model": cell.model.label,
            "solver": cell.solver,
            "nfe": cell.nfe,
            "steps": cell.steps,
            "train_pairs": plan.experiment.pairs.train,
            "valid_pairs": plan.experiment.pairs.valid,
            "distance": spec.settings["distance"],
            "seed": seed,
            "start": start,
            "status": "failed",
            "message": message,
            "settings": json.dumps(spec.settings | {"seed": seed, "start": start}, sort_keys=True),
            "started": now(),
        }
        for m, (seed, start) in enumerate(spec.members)
    ]


def schedule_of(row: dict[str, Any], opened: Model, tableau: Tableau, m: int) -> Schedule:
    """The schedule file of a learned row."""
    noise = opened.denoiser.noise
    return Schedule(
        knots=row["knots"],
        evals=row["evals"],
        state=tuple(tableau.state[m].tolist()),
        outputs=tuple(map(tuple, tableau.outputs[m].tolist())),
        noise=noise_to_dict(noise),
        prior_scale=noise.prior_scale,
        solver=row["solver"],
        nfe=row["nfe"],
        model=opened.id,
        model_hash=opened.hash,
        conditioning=opened.conditioning,
        guidance=opened.guidance,
        shift=opened.settings.get("shift"),
        coefficients=bool(row.get("coefficients")),
        prediction=opened.prediction,
        losses={
            n: row[n] if math.isfinite(row[n]) else None
            for n in ("start_loss", "train_loss", "valid_loss")
        },
        seeds={"seed": row["seed"]},
        versions=provenance(),
        experiment=row["experiment"],
        row=row["key"],
    )
