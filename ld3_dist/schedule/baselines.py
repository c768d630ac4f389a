"""Hand-made grids, measured on held-out pairs; a learned schedule has to beat them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from ..core.comparison import Distance
from ..core.grid import Grid
from ..core.learning.pairs import Pairs
from ..core.noise import NoiseSchedule
from ..core.solver import Solver, Tableau
from ..core.user_code import label
from ..models import Model
from .file import Schedule
from .sampling import BATCH, make_samples
from .starts import start_knots

BASELINES = ("uniform", "quadratic", "log_snr", "karras")
"""Grids that are measured if no others are asked for."""


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


def hand_made(
    name: str, model: Model, solver: Solver, nfe: int, pairs: Pairs | None = None
) -> tuple[Grid, Tableau]:
    """The coupled grid of a start by name, and the solver's table on it."""
    noise = model.denoiser.noise
    grid = solver.coupled(noise, start_knots(name, model, solver, nfe, pairs), nfe)
    return grid, solver.tableau(noise, grid)


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
