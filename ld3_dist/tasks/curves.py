"""Curves of a sweep: a schedule file for any NFE beside those of its rows, schedules/<curve>.json.

The column `family` of the rows names the file. It is written before the rows. It does not follow
from them, so that a family whose file is lost is learned again.
"""

from __future__ import annotations

from dataclasses import replace

from ..core.errors import InputError
from ..core.learning.family import FamilyProgress
from ..experiment.families import siblings
from ..experiment.plan import Plan, TrialSpec
from ..models import Model
from ..schedule.curves import curve_body
from ..schedule.file import read_schedule
from ..schedule.making import make_schedule
from ..store.storage import Storage
from .baselines import losses_for
from .checkpoints import Course
from .schedules import schedule_name


def write_curves(
    plan: Plan,
    spec: TrialSpec,
    storage: Storage,
    model: Model,
    progress: FamilyProgress,
    course: Course,
) -> None:
    """Write the file of every member's curve: the schedule of the most evaluations, and the curve.

    A member whose losses are not finite has none.
    """
    family = siblings(plan, spec)
    baselines = {one.cell.nfe: losses_for(storage, plan, one) for one in family}
    most = family[-1].cell
    ends, start_losses = progress.at(most.nfe), course.at(most.nfe).valid[0]
    for m, (seed, start) in enumerate(spec.members):
        if not bool(progress.each_best[:, m].isfinite().all()):
            continue
        made = make_schedule(
            model,
            most.solver,
            most.nfe,
            ends,
            m,
            spec.config,
            start=start,
            start_loss=start_losses[m].item(),
            seed=seed,
            baselines=baselines[most.nfe],
            experiment=plan.fingerprint,
            row=spec.curves[m],
        )
        made = replace(made, curve=curve_body(progress, m, baselines))
        made.write(storage, schedule_name(spec.curves[m]))


def curves_are_there(spec: TrialSpec, storage: Storage) -> bool:
    """True if the file of every member's curve can be read; also for a trial without curves."""
    return all(curve_is_there(storage, key) for key in spec.curves)


def curve_is_there(storage: Storage, key: str) -> bool:
    """True if the file of a curve can be read and is its own."""
    try:
        found = read_schedule(storage, schedule_name(key))
    except InputError:
        return False
    return found.row == key and found.curve is not None
