"""A trial: schedules learned for one point of a cell's study, as rows and schedule files.

A trial learns the members that are missing, packed. A member's result does not depend on the
members it is packed with, beyond rounding: batches, starts, early stopping and the counts in its
row are its own. With a procedure of families it is learned together with its siblings, the trials
of the same point at other NFEs, and writes their rows too (see `experiment.families`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ..core.errors import InputError
from ..core.learning.family import FamilyProgress
from ..core.learning.pairs import Pairs
from ..core.learning.problem import Progress
from ..experiment.families import nfes_of, siblings
from ..experiment.plan import Plan, TrialSpec
from ..schedule.learning import learning
from ..schedule.provenance import where
from ..schedule.sampling import in_loss_space
from ..store.storage import Storage
from ..store.tables import write_table
from .checkpoints import Checkpoints, Course, Note
from .cost import Meter
from .curves import curves_are_there, write_curves
from .opened import distance_of, model_of, pairs_of
from .rows import judge, row_of, settings_columns, trial_rows
from .rungs import Rungs, log_loss, mean_log
from .schedules import restore, write_schedule


@dataclass(frozen=True)
class Outcome:
    """The result of a trial, as its study hears it.

    objective: log geometric mean over seeds of the best member's hard held-out loss; of a family
        the mean over its NFEs.
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
    family = siblings(plan, spec)
    checkpoints = Checkpoints(
        storage, family[0], plan.experiment.resources.checkpoint_seconds, note
    )
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
    progress, course = last
    seconds = checkpoints.elapsed(course) / len(spec.members)
    total = sum(one.cell.nfe for one in family)
    if isinstance(progress, FamilyProgress):
        model = model_of(spec.cell.model, device)
        write_curves(plan, spec, storage, model, progress, course)
    losses: list[list[dict[str, Any]]] = []
    for one in sorted(family, key=lambda one: one.task == spec.task):  # its own rows come last
        share = seconds * one.cell.nfe / total
        common = numbers | where(device) | {"message": message, "seconds": share}
        common |= meter.columns(share)
        ends = progress.at(one.cell.nfe), course.at(one.cell.nfe)
        losses.append(learned_rows(plan, one, storage, *ends, common, device))
        write_table(storage, "rows", one.task, losses[-1])
    checkpoints.remove()
    return outcome_of(spec, losses)


def restored_outcome(
    plan: Plan, spec: TrialSpec, storage: Storage, device: str | None = None
) -> Outcome | None:
    """The outcome of a task from the rows file that an earlier process wrote before it died.

    Schedule files are made again from the rows where needed. None if there is no such file, or if
    a schedule file can be made again by learning alone.
    """
    family = siblings(plan, spec)
    rows = [trial_rows(storage, one) or [] for one in family]
    if not all(rows) or not curves_are_there(spec, storage):
        return None
    for one, own in zip(family, rows, strict=True):
        if not restore(plan, one, storage, own, device):
            return None
    own = [one.task for one in family].index(spec.task)
    return outcome_of(spec, [*rows[:own], *rows[own + 1 :], rows[own]])


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
            "family": spec.curves[m] if spec.curves else None,
            "radius": spec.config.radius(tuple(model.denoiser.shape), cell.nfe),
            "noise_moved": progress.moved[m].item(),
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
        nfes_of(spec.settings) or cell.nfe,
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


def outcome_of(spec: TrialSpec, rows: list[list[dict[str, Any]]]) -> Outcome:
    """The objective of a trial from its rows, fresh or read back.

    Args:
        rows: of all its siblings, its own last.
    """
    seeds = [seed for seed, _ in spec.members]
    losses = [
        [float(row["valid_loss"]) if row["status"] == "ok" else math.inf for row in found]
        for found in rows
    ]
    objective = mean_log([log_loss(seeds, one) for one in losses])
    if not math.isfinite(objective):
        return Outcome(spec.task, math.inf, tuple(losses[-1]), "diverged")
    return Outcome(spec.task, objective, tuple(losses[-1]), "ok")
