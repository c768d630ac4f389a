"""A trial: schedules learned for one point of a cell's study, as rows and schedule files.

A trial learns the members that are missing, packed. A member's result does not depend on the
members it is packed with, beyond rounding: batches, starts, early stopping and the counts in its
row are its own.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ..core.errors import InputError
from ..core.learning.pairs import Pairs
from ..core.learning.procedure import Progress
from ..experiment.plan import Plan, TrialSpec
from ..schedule.learning import learning
from ..schedule.provenance import where
from ..schedule.sampling import in_loss_space
from ..store.storage import Storage
from ..store.tables import write_table
from .checkpoints import Checkpoints, Course, Note
from .cost import Meter
from .opened import distance_of, model_of, pairs_of
from .rows import judge, row_of, settings_columns, trial_rows
from .rungs import Rungs, log_loss
from .schedules import restore, write_schedule


@dataclass(frozen=True)
class Outcome:
    """The result of a trial, as its study hears it.

    objective: log geometric mean over seeds of the best member's hard held-out loss.
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
    """Learn the members of a trial and write their rows and schedules.

    Goes on from the checkpoint of a killed process if it left one.

    Args:
        spec: with the members to learn, which may be some of the trial's.
        numbers: round, attempts.
        on_progress: called after each epoch.
        note: told what a log should know.
    """
    checkpoints = Checkpoints(storage, spec, plan.experiment.resources.checkpoint_seconds, note)
    rungs, message = Rungs(plan, spec, storage), None
    meter = Meter(plan.experiment.resources, "trial", device)
    last: tuple[Progress, Course] | None = None
    for progress, course in course_of(plan, spec, storage, device, checkpoints):
        last = progress, course
        if on_progress:
            on_progress(progress)
        if rungs.stops(progress):
            message = f"stopped by ASHA after epoch {progress.epoch}"
            note(message)
            break
        checkpoints.keep(course, progress)
    assert last is not None
    seconds = checkpoints.elapsed(last[1]) / len(spec.members)
    common = numbers | where(device) | {"message": message, "seconds": seconds}
    common |= meter.columns(seconds)
    rows = learned_rows(plan, spec, storage, *last, common, device)
    write_table(storage, "rows", spec.task, rows)
    checkpoints.remove()
    return outcome_of(spec, rows)


def restored_outcome(
    plan: Plan, spec: TrialSpec, storage: Storage, device: str | None = None
) -> Outcome | None:
    """The outcome of a task from the rows file that an earlier process wrote before it died.

    Schedule files are made again from the rows where needed. None if there is no such file, or if
    a schedule file can be made again by learning alone.
    """
    rows = trial_rows(storage, spec)
    if not rows or not restore(plan, spec, storage, rows, device):
        return None
    return outcome_of(spec, rows)


def learned_rows(
    plan: Plan,
    spec: TrialSpec,
    storage: Storage,
    progress: Progress,
    course: Course,
    common: dict[str, Any],
    device: str | None,
) -> list[dict[str, Any]]:
    """A row per member; the schedule file of each that came out ok is written."""
    model, cell = model_of(spec.cell.model, device), spec.cell
    ran, work = progress.last.tolist(), progress.work.round().long().tolist()
    train, valid = torch.stack(course.train, 1).tolist(), torch.stack(course.valid, 1).tolist()
    rows = []
    for m, key in enumerate(spec.keys):
        row = row_of(
            plan, cell, model, spec.settings["distance"], progress.best.member(m), spec.teacher
        )
        row |= settings_columns(spec, m) | common
        row |= {
            "key": key,
            "kind": "learned",
            "radius": spec.config.radius(tuple(model.denoiser.shape), cell.nfe),
            "start_loss": valid[m][0],
            "train_loss": progress.train[m].item(),
            "valid_loss": progress.best_valid[m].item(),
            "best_epoch": int(progress.best_epoch[m]),
            "epochs_run": ran[m],
            "network_evals": work[m],
            "train_pairs": spec.train,
            "train_curve": train[m][1 : ran[m] + 1] or train[m][:1],
            "valid_curve": valid[m][: ran[m] + 1],
            "started": course.started,
        }
        rows.append(judge(row))
        if row["status"] == "ok":
            write_schedule(plan, spec, storage, model, row, (progress, m))
    return rows


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
    """The learning of a trial's members, packed; `resume` as for `learning`.

    Starts that follow trajectories use the pairs of seed 0, so that more seeds change nothing.
    """
    settings, cell, count = spec.cell.model, spec.cell, spec.train

    def read(start: int, stop: int) -> Pairs:
        return pairs_of(plan, settings, storage, start, stop, device, spec.teacher)

    seeds = list(dict.fromkeys(seed for seed, _ in spec.members))
    starts = list(dict.fromkeys(start for _, start in spec.members))
    own = [read(*plan.train_range(seed, count)) for seed in seeds]
    yield from learning(
        in_loss_space(model_of(settings, device), plan.experiment.loss_space),
        cell.solver,
        cell.nfe,
        Pairs.joined(own),
        read(*plan.valid_range),
        starts=starts,
        distance=distance_of(plan, spec.settings["distance"], settings, device),
        config=spec.config,
        seeds=seeds,
        subsets=[range(i * count, (i + 1) * count) for i in range(len(seeds))],
        members=[(seeds.index(seed), starts.index(start)) for seed, start in spec.members],
        start_pairs=read(*plan.train_range(0, count)),
        resume=resume,
    )


def outcome_of(spec: TrialSpec, rows: list[dict[str, Any]]) -> Outcome:
    """The objective of a trial from its rows, fresh or read back."""
    valid = [float(row["valid_loss"]) if row["status"] == "ok" else math.inf for row in rows]
    objective = log_loss([int(row["seed"]) for row in rows], valid)
    if not math.isfinite(objective):
        return Outcome(spec.task, math.inf, tuple(valid), "diverged")
    return Outcome(spec.task, objective, tuple(valid), "ok")
