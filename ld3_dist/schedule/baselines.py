"""Hand-made grids, measured on held-out pairs; a learned schedule has to beat them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..core.comparison import Distance
from ..core.errors import InputError
from ..core.grid import Grid
from ..core.learning.pairs import Pairs
from ..core.noise import NoiseSchedule
from ..core.solver import Solver, Tableau
from ..core.user_code import FILE, label
from ..models import Model
from .file import Schedule
from .ranges import train_range
from .sampling import BATCH, device_of, draw_inputs, make_samples
from .starts import looks_at_pairs, schedule_in, start_knots

BASELINES = ("uniform", "quadratic", "log_snr", "karras")
"""Grids that are measured if no others are asked for."""

FOLLOWED = 64
"""Trajectories that grids may follow; those of the package use no more."""


@dataclass(frozen=True)
class Baseline:
    """A hand-made grid with its table and its mean held-out loss; None if that is not finite."""

    grid: Grid
    tableau: Tableau
    loss: float | None

    def as_schedule(self, like: Schedule, noise: NoiseSchedule, name: str) -> Schedule:
        """This grid as a schedule of the same cell as a learned one, on the same noise schedule."""
        table = self.tableau
        return replace(
            like,
            knots=tuple(self.grid.knots.tolist()),
            evals=tuple(table.evals.tolist()),
            state=tuple(table.state.tolist()),
            outputs=tuple(map(tuple, table.outputs.tolist())),
            prior_scale=noise.prior_scale,
            coefficients=False,
            procedure=None,
            losses={"valid_loss": self.loss},
            start=label(name),
        )


def to_follow(names: Iterable[str], model: Model, seed: int) -> Pairs | None:
    """Noise and conditions whose trajectories grids follow; None if no grid of these names does.

    They are the first of teaching, so that no grid looks at the samples that it is scored on, and
    it is the same for every set of them. There is no teacher: the targets are the noise.
    """
    if not any(map(looks_at_pairs, names)):
        return None
    z, condition = draw_inputs(model, seed, range(*train_range(0, FOLLOWED)))
    return Pairs(z, z, condition).to(device_of(model))


def hand_made(
    name: str, model: Model, solver: Solver, nfe: int, pairs: Pairs | None = None
) -> tuple[Grid, Tableau]:
    """The coupled grid of a start by name, and the solver's table on it.

    `file:FILE` with a schedule of so many evaluations brings its own grid and table.
    """
    noise, own = model.denoiser.noise, published(name, nfe)
    if own is not None:
        knots, evals = (torch.tensor(v, dtype=torch.float64) for v in (own.knots, own.evals))
        return Grid(knots, evals), replace(own.table_for(model), noise=noise)
    grid = solver.coupled(noise, start_knots(name, model, solver, nfe, pairs), nfe)
    return grid, solver.tableau(noise, grid)


def published(name: str, nfe: int) -> Schedule | None:
    """The schedule of `file:FILE`, which runs as it is; None for any other name.

    A list of noise levels has no table of its own, and a schedule of another number of evaluations
    gives its knots alone: None as well. The file of a curve has a table for every number.
    """
    found = schedule_in(name.removeprefix(FILE)) if name.startswith(FILE) else None
    if found is not None and found.curve is not None:
        return _read_at(name, found, nfe)
    return found if found is not None and found.nfe == nfe else None


def _read_at(name: str, curve: Schedule, nfe: int) -> Schedule:
    """The schedule of an NFE; InputError with the file's name if its solver cannot spend that."""
    try:
        return curve.at(nfe)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error


def source_of(name: str, nfe: int) -> dict[str, str]:
    """The settings of a baseline's row that tell its source; none for a grid by name.

    source: what the file was imported from, or learned for.  schedule: its text, if it runs as it
    is.
    """
    if not name.startswith(FILE):
        return {}
    found = schedule_in(name.removeprefix(FILE))
    if found is None:
        return {"source": f"a list of noise levels: {label(name).removeprefix(FILE)}"}
    own = found.nfe == nfe
    learned = f"{found.solver}, {found.nfe} evaluations, of {found.model}"
    if found.curve is not None:
        told = ", ".join(map(str, found.curve["nfes"]))
        learned = f"{found.solver}, a curve learned on {told} evaluations, of {found.model}"
        found, own = _read_at(name, found, nfe), True
    said = {"source": found.versions.get("imported_from") or learned}
    return said | ({"schedule": found.to_json()} if own else {})


def baselines_of(
    model: Model,
    solver: Solver,
    nfe: int,
    valid: Pairs,
    distance: Distance,
    names: Sequence[str] = BASELINES,
    pairs: Pairs | None = None,
    batch: int = BATCH,
) -> dict[str, Baseline]:
    """Every named grid with its mean distance to the teacher on the held-out pairs.

    Args:
        pairs: what grids that follow trajectories look at.
    """
    found = {}
    for name in names:
        grid, table = hand_made(name, model, solver, nfe, pairs)
        made = make_samples(model, table, valid.noise, valid.condition, batch)
        loss = mean_loss(distance, made, valid.target)
        found[name] = Baseline(grid, table, loss if math.isfinite(loss) else None)
    return found


def mean_loss(distance: Distance, made: Tensor, target: Tensor) -> float:
    """Mean over samples of the distance, in float64."""
    return distance(made, target).cpu().double().mean().item()
