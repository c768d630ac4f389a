"""Schedules that others published, as schedule files of ours.

    sigmas comfyui ays     lists of noise levels: the grid, with the table of a solver of ours
    dyweight epd           checkpoint files: the grid, network times and coefficients, all of it

The file that comes out runs anywhere, and can be a baseline beside one's own (`file:FILE`). Its
`versions` say what it was imported from.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...core.errors import InputError, unknown
from ...core.solver import Solver, make_solver
from ...core.user_code import absolute
from ...models import Model
from ..file import Schedule, noise_to_dict
from ..provenance import provenance
from .checkpoints import Settings, read_dyweight, read_epd
from .lists import LISTS, knots_of, levels_at, read_levels
from .tables import Table, dyweight_table, epd_table

CHECKPOINTS = ("dyweight", "epd")
FORMS = (*LISTS, *CHECKPOINTS)
PUBLISHED = {
    "ays": "Align Your Steps (arXiv 2404.14507)",
    "dyweight": "DyWeight (arXiv 2603.11607)",
    "epd": "EPD (arXiv 2507.14797)",
}


@dataclass(frozen=True)
class Imported:
    """A schedule, and sentences about what differs from its source."""

    schedule: Schedule
    notes: tuple[str, ...] = ()


def import_schedule(
    file: str | os.PathLike[str],
    form: str,
    model: Model,
    solver: str = "ipndm-3",
    nfe: int | None = None,
    shift: float | None = None,
) -> Imported:
    """A published schedule as one of ours, for a model.

    Args:
        form: one of FORMS.
        solver: whose table a list gets. Checkpoints bring their own table; the solver is then the
            name that the file is kept under.
        nfe: network evaluations of a list, if not those that its numbers give; it is then
            interpolated linearly in log(level).
        shift: of the flow model's grid, for checkpoints that do not say it; the model's own if not
            given.

    Raises InputError naming the file, the key and the value for anything that cannot be used.
    """
    if form not in FORMS:
        raise unknown("--as", form, FORMS)
    path, rule = Path(os.fspath(file)).expanduser(), make_solver(solver)
    source = _source(path, form)
    if form in LISTS:
        if shift is not None:
            raise InputError(f"--shift {shift:g}: a list holds its shift already; leave it out")
        levels = read_levels(path, form)
        try:
            knots = knots_of(levels, model.noise, None if nfe is None else rule.steps(nfe))
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        nfe = rule.stages * (len(knots) - 1) if nfe is None else nfe
        made = from_knots(knots, model, rule, nfe, solver, source)
        return Imported(made, _notes_of_list(levels, knots, model))
    if nfe is not None:
        raise InputError(
            f"--nfe {nfe}: a checkpoint has as many evaluations as it was learned for; leave it out"
        )
    shift = model.settings.get("shift") if shift is None else shift
    try:
        settings, table = _table(path, form, model, shift)
    except InputError as error:
        raise error if str(path) in str(error) else InputError(f"{path}: {error}") from error
    about = f"{source}, learned for {settings.data}" if settings.data else source
    made = _schedule(model, solver, table, about, procedure=form, coefficients=True)
    return Imported(made, _notes_of_checkpoint(settings, table, model))


def from_knots(
    knots: Tensor, model: Model, rule: Solver, nfe: int, solver: str, source: str
) -> Schedule:
    """The schedule of a list's knots [N+1], with the table of a solver; network times coupled."""
    noise = model.noise
    grid = rule.coupled(noise, knots, nfe)
    table = rule.tableau(noise, grid)
    return _schedule(
        model,
        solver,
        Table(
            tuple(knots.tolist()),
            tuple(table.evals.tolist()),
            tuple(table.state.tolist()),
            tuple(map(tuple, table.outputs.tolist())),
            first_scale(model, float(knots[0])),
            (),
        ),
        source,
    )


def first_scale(model: Model, t: float) -> float:
    """The scale of the noise to begin with at a time: the model's own at t_max."""
    noise = model.noise
    if t >= noise.t_max * (1 - 1e-9):
        return noise.prior_scale
    return float(noise.sigma(torch.tensor(t, dtype=torch.float64)))


def _table(path: Path, form: str, model: Model, shift: float | None) -> tuple[Settings, Table]:
    if form == "dyweight":
        weights = read_dyweight(path)
        return weights.settings, dyweight_table(weights, model.noise, shift)
    points = read_epd(path)
    return points.settings, epd_table(points, model.noise, shift)


def _schedule(
    model: Model,
    solver: str,
    table: Table,
    source: str,
    procedure: str | None = None,
    coefficients: bool = False,
) -> Schedule:
    shape: dict[str, Any] = {
        "knots": table.knots,
        "evals": table.evals,
        "state": table.state,
        "outputs": table.outputs,
        "prior_scale": table.prior_scale,
    }
    return Schedule(
        **shape,
        noise=noise_to_dict(model.noise),
        solver=absolute(solver),
        order=make_solver(solver).order,
        nfe=len(table.evals),
        model=model.id,
        model_hash=model.hash,
        conditioning=model.conditioning,
        guidance=model.guidance,
        shift=model.settings.get("shift"),
        prediction=model.prediction,
        coefficients=coefficients,
        procedure=procedure,
        versions={**provenance(), "imported_from": source[:1000]},
    )


def _source(path: Path, form: str) -> str:
    """A file in words: its kind, its name and the beginning of its hash."""
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else "none"
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give another file") from error
    return f"{PUBLISHED.get(form, f'a list of {form}')}: {path.name}, sha256 {digest}"


def _notes_of_list(levels: list[float], knots: Tensor, model: Model) -> tuple[str, ...]:
    if levels[-1] != 0:
        return ()
    end = float(levels_at(model.noise, knots[-1]))
    if levels[-2] <= end * 1.01:
        return (
            f"the last step of the list, from {levels[-2]:.3g} to 0, is left out: schedules end "
            f"at the model's smallest level",
        )
    return (f"the last step goes to {end:.3g}, the model's smallest level, instead of 0",)


def _notes_of_checkpoint(settings: Settings, table: Table, model: Model) -> tuple[str, ...]:
    found = []
    if table.moved:
        shown = ", ".join(f"{level:.4g}" for level in table.moved[:4])
        found.append(
            f"the network was asked at {shown}, outside the model's range; its end is asked instead"
        )
    if settings.guidance is not None and model.guidance not in (None, settings.guidance):
        found.append(
            f"it was learned with guidance {settings.guidance:g}, the model has {model.guidance:g}"
        )
    if settings.data:
        found.append(f"it was learned for {settings.data}; on another model it is only a start")
    return tuple(found)
