"""The table of a schedule where it was not learned: another solver, another noise schedule.

    its own solver and noise schedule    its own table, learned coefficients included
    another solver                       that solver's table on its knots and network times
    another noise schedule               its knots and network times at the same lam, if asked for

Times mean noise levels. Two noise schedules agree at equal lam = log(alpha / sigma), so a time t of
the one is lam_there^-1(lam_here(t)) of the other. The first and the last knot go to the ends of
the other model's range, where they are at the ends of their own. A network time stays where it is
between its two knots, as a fraction of their distance in lam. With a learned start the noise at t_0
is scaled by alpha: y / alpha is the same in both. Where network times are the knots', the samples
then differ by their scale alone; where they are not, the two networks see different inputs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..core.errors import InputError
from ..core.grid import Grid, lam_range
from ..core.noise import NoiseSchedule
from ..core.solver import Solver, Tableau, make_solver
from ..core.user_code import absolute
from ..models import Model
from .file import Schedule
from .noise import check_same_noise, same_noise


def table_in(
    schedule: Schedule, model: Model, solver: str | None = None, mapped: bool = False
) -> Tableau:
    """The table of a schedule for a model, in units of the model's prior_scale.

    Args:
        solver: name of the solver to run; the schedule's own if not given.
        mapped: map the times in lam if the model has another noise schedule.

    Raises InputError for a model of another noise schedule unless `mapped`, for a solver that takes
    other steps, and for what cannot be mapped.
    """
    noise = model.denoiser.noise
    own = solver is None or absolute(solver) == schedule.solver
    same = same_noise(schedule, noise)
    if same and own:
        return schedule.table_for(model)
    if not same and not mapped:
        try:
            check_same_noise(schedule, noise, model.id)
        except InputError as error:
            raise InputError(
                f"{error}, or have its times mapped to the same noise levels (--map lambda)"
            ) from error
    student = _fitting(schedule, make_solver(schedule.solver if solver is None else solver))
    if same:
        knots, evals = (_float64(times) for times in (schedule.knots, schedule.evals))
        grid, level = Grid(knots, evals), schedule.prior_scale / noise.prior_scale
        if math.isclose(schedule.knots[0], noise.t_max, rel_tol=1e-9):
            level = 1.0  # an imported table may hold another scale among its coefficients
    else:
        grid, level = _mapped(schedule, noise, model.id)
    table = student.tableau(noise, grid)
    return Tableau(table.evals, level * table.state, table.outputs, noise)


def left_behind(schedule: Schedule, model: Model, solver: str | None = None) -> list[str]:
    """Sentences on what of a schedule its table at this model does not have."""
    same = same_noise(schedule, model.denoiser.noise)
    own = solver is None or absolute(solver) == schedule.solver
    said = []
    if not own and schedule.coefficients:
        said.append(f"coefficients of {solver}, not the learned ones")
    if not same:
        said.append(f"times mapped in lambda from {schedule.noise['name']}")
    return said


def _fitting(schedule: Schedule, solver: Solver) -> Solver:
    """The solver, if knots and network times of the schedule are such as it takes."""
    steps, nfe = len(schedule.knots) - 1, schedule.nfe
    if nfe < solver.stages or solver.steps(nfe) != steps:
        needs = f"{solver.steps(nfe)} steps" if nfe >= solver.stages else "more"
        raise InputError(
            f"solver {solver.name} needs {needs} for {nfe} evaluations, the schedule has {steps}: "
            "give a solver of as many evaluations a step, or learn from it as --start"
        )
    if solver.stages > 1 and not schedule.solver.startswith("python:"):
        inside = make_solver(schedule.solver).interior
        if inside != solver.interior:
            raise InputError(
                f"solver {solver.name} evaluates at {solver.interior:g} of a step, that of the "
                f"schedule ({schedule.solver}) at {inside:g}: its network times do not fit; learn "
                "from it as --start"
            )
    return solver


def _mapped(schedule: Schedule, noise: NoiseSchedule, model: str) -> tuple[Grid, float]:
    """The grid at the same noise levels of another noise schedule, and the level of y_0 there."""
    if schedule.coefficients:
        raise InputError(
            "its learned coefficients belong to its own noise schedule and cannot be mapped; learn "
            "one without coefficients, or for this model"
        )
    source = schedule.noise_schedule
    knots, evals = _float64(schedule.knots), _float64(schedule.evals)
    here = _knots_there(knots, source, noise, model)
    there = _between(evals, knots, here, source, noise)
    level = 1.0
    if here[0] < noise.t_max:
        grown = float(noise.alpha(here[0]) / source.alpha(knots[0]))
        level = schedule.prior_scale * grown / noise.prior_scale
    return Grid(here, there).within(noise), level


def _knots_there(knots: Tensor, source: NoiseSchedule, noise: NoiseSchedule, model: str) -> Tensor:
    """Knots at the same lam; those at the ends of their own range at the ends of the other's."""
    lam = source.lam(knots)
    low, high = noise.lam(torch.tensor([noise.t_max, noise.t_min], dtype=torch.float64)).tolist()
    ends = {0: (source.t_max, noise.t_max), len(knots) - 1: (source.t_min, noise.t_min)}
    found = []
    for i, (t, level) in enumerate(zip(knots.tolist(), lam.tolist(), strict=True)):
        own, other = ends.get(i, (math.nan, math.nan))
        if math.isclose(t, own, rel_tol=1e-9, abs_tol=1e-12):
            found.append(other)
        elif low < level < high:
            found.append(float(noise.inverse(lam[i])))
        else:
            raise InputError(
                f"knots[{i}] = {t:g} lies at lambda {level:.3g}, outside the {low:.3g} to "
                f"{high:.3g} of {model}: it cannot be mapped; learn a schedule for this model"
            )
    return _float64(found)


def _between(
    evals: Tensor, knots: Tensor, here: Tensor, source: NoiseSchedule, noise: NoiseSchedule
) -> Tensor:
    """Network times at the same fraction, in lam, of the step that each lies in."""
    old, new = _soft(source, knots), _soft(noise, here)
    i = torch.searchsorted(-knots, -evals, right=True).clamp(1, len(knots) - 1)
    share = (_soft(source, evals) - old[i - 1]) / (old[i] - old[i - 1])
    share = share.clamp(0, 1)
    times = noise.inverse(torch.lerp(new[i - 1], new[i], share))
    times = torch.where(evals == knots[i - 1], here[i - 1], times)
    return torch.where(evals == knots[i], here[i], times).clamp(noise.t_min, noise.t_max)


def _soft(noise: NoiseSchedule, t: Tensor) -> Tensor:
    """lam at times t, finite at an end of pure noise or pure data."""
    return noise.lam(t).clamp(*lam_range(noise))


def _float64(numbers: object) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)
