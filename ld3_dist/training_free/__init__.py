"""Discretizations that are computed, neither learned by gradient descent nor made by hand.

    dmn             from the noise schedule alone: a multistep solver's weights of the network's
                    errors are made small
    gits            from teacher trajectories, by dynamic programming: the path of least curvature
    optimal-steps   from teacher trajectories, by dynamic programming: the student that stays
                    nearest to them

They serve as baselines and as starts of LD3. Each module names its source.
"""

from __future__ import annotations

from torch import Tensor

from ..core.denoiser import Condition, Denoiser
from ..core.errors import InputError, unknown
from ..core.noise import NoiseSchedule
from ..core.sample import draw_noise
from ..core.solver import Solver

TRAINING_FREE = ("dmn", "gits", "optimal-steps")
SAMPLES = {"gits": 64, "optimal-steps": 32}
"""The largest number of trajectories that each one uses.

Both average over the trajectories, and their results change little beyond a few dozen.
optimal-steps evaluates its samples again in each of N rounds, so it uses fewer.
"""


def find_knots(
    name: str,
    model: Denoiser | NoiseSchedule,
    solver: Solver,
    nfe: int,
    *,
    x_T: Tensor | None = None,
    condition: Condition = None,
) -> Tensor:
    """Knots [N+1] of a computed discretization, float64, from t_max to t_min exactly.

    Args:
        name: one of TRAINING_FREE.
        model: a denoiser; dmn takes a bare noise schedule as well.
        solver, nfe: solver and network evaluations that the knots are for; N = solver.steps(nfe).
        x_T: starting noise of the trajectories, prior_scale * unit noise [B, *shape], of which the
            first SAMPLES are used; drawn from seed 0 if not given.
        condition: of the trajectories, B rows.

    Raises:
        InputError: unknown name; gits or optimal-steps without a denoiser.
    """
    if name not in TRAINING_FREE:
        raise unknown("training-free discretization", name, TRAINING_FREE)
    steps = solver.steps(nfe)
    if name == "dmn":
        from .dmn import dmn

        return dmn(model if isinstance(model, NoiseSchedule) else model.noise, steps)
    if isinstance(model, NoiseSchedule):
        raise InputError(
            f"{name} follows teacher trajectories: it needs a denoiser, not the schedule "
            f"{model.name} alone"
        )
    from ..core.denoiser import map_condition
    from .gits import gits
    from .optimal_steps import optimal_steps

    if x_T is None:
        x_T = model.noise.prior_scale * draw_noise(0, range(16), tuple(model.shape))
    first = slice(SAMPLES[name])
    condition = map_condition(lambda c: c[first], condition)
    return (gits if name == "gits" else optimal_steps)(model, steps, x_T[first], condition)
