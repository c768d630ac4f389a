"""Discretizations that are computed, neither learned by gradient descent nor made by hand.

    dmn             from the noise schedule alone: a multistep solver's weights of the network's
                    errors are made small
    hso             from the noise schedule alone: the least error of the outputs at the middles of
                    the steps
    gits            from teacher trajectories, by dynamic programming: the path of least curvature
    optimal-steps   from teacher trajectories, by dynamic programming: the student that stays
                    nearest to them
    tors            from teacher trajectories: each step turns by the same angle
    sharp-euler     from teacher trajectories: short steps where the velocity changes fast

DPM-Solver-v3 (arXiv 2310.13268) is not among them: its empirical statistics are coefficients per
coordinate of a sample, which no table of one number per evaluation holds.

They serve as baselines and as starts of LD3. Each module names its source.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from ..core.denoiser import Condition, Denoiser, map_condition
from ..core.errors import InputError, unknown
from ..core.noise import NoiseSchedule
from ..core.sample import draw_noise
from ..core.solver import Solver
from .findings import Findings
from .trajectory import fine_steps

TRAINING_FREE = ("dmn", "hso", "gits", "optimal-steps", "tors", "sharp-euler")
ALONE = ("dmn", "hso")
"""Those that need no network."""
SAMPLES = {"gits": 64, "optimal-steps": 32, "tors": 64, "sharp-euler": 64}
"""The largest number of trajectories that each one uses.

All average over the trajectories, and their results change little beyond a few dozen.
optimal-steps evaluates its samples again in each of N rounds, so it uses fewer.
"""


def evaluations(name: str, steps: int, count: int) -> int:
    """Network evaluations that `find_knots` makes, counted per sample.

    Args:
        count: samples of x_T; each method uses its first SAMPLES of them.

    Raises InputError for an unknown name.
    """
    if name not in TRAINING_FREE:
        raise unknown("training-free discretization", name, TRAINING_FREE)
    if name in ALONE:
        return 0
    fine = fine_steps(name, steps)
    rounds = (steps - 1) * (fine - steps + 1) if name == "optimal-steps" else 0
    return (fine + rounds) * min(count, SAMPLES[name])


def find_knots(
    name: str,
    model: Denoiser | NoiseSchedule,
    solver: Solver,
    nfe: int,
    *,
    x_T: Tensor | None = None,
    condition: Condition = None,
    findings: Findings | None = None,
) -> Tensor:
    """Knots [N+1] of a computed discretization, float64, from t_max to t_min exactly.

    Args:
        name: one of TRAINING_FREE.
        model: a denoiser; those in ALONE take a bare noise schedule as well.
        solver, nfe: solver and network evaluations that the knots are for; N = solver.steps(nfe).
        x_T: starting noise of the trajectories, prior_scale * unit noise [B, *shape], of which the
            first SAMPLES are used; drawn from seed 0 if not given.
        condition: of the trajectories, B rows.
        findings: a dictionary for the same network, noise and conditions: what a method finds there
            for one number of steps serves the others. Nothing is kept if it is not given.

    Raises:
        InputError: unknown name; one that follows trajectories without a denoiser.
    """
    if name not in TRAINING_FREE:
        raise unknown("training-free discretization", name, TRAINING_FREE)
    steps = solver.steps(nfe)
    if name in ALONE:
        noise = model if isinstance(model, NoiseSchedule) else model.noise
        return _alone(name)(noise, steps)
    if isinstance(model, NoiseSchedule):
        raise InputError(
            f"{name} follows teacher trajectories: it needs a denoiser, not the schedule "
            f"{model.name} alone"
        )
    if x_T is None:
        x_T = model.noise.prior_scale * draw_noise(0, range(16), tuple(model.shape))
    first = slice(SAMPLES[name])
    condition = map_condition(lambda c: c[first], condition)
    return _following(name, findings)(model, steps, x_T[first], condition)


def _alone(name: str) -> Callable[[NoiseSchedule, int], Tensor]:
    """The function of a method that needs the noise schedule alone."""
    if name == "dmn":
        from .dmn import dmn as found
    else:
        from .hso import hso as found
    return found


def _following(
    name: str, findings: Findings | None
) -> Callable[[Denoiser, int, Tensor, Condition], Tensor]:
    """The function of a method that follows trajectories."""
    if name == "optimal-steps":  # nearly all that it finds is of one number of steps
        from .optimal_steps import optimal_steps

        return optimal_steps
    if name == "gits":
        from .gits import gits as found
    elif name == "tors":
        from .tors import tors as found
    else:
        from .sharp_euler import sharp_euler as found
    return partial(found, findings=findings)
