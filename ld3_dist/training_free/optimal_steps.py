"""OptimalSteps: the student that stays nearest to its teacher (Pei et al. 2025, arXiv 2503.21774).

The student's own states are carried along. Let x_j be the teacher's state at knot j of a fine grid
with n steps, and z_k[j] the best state that k steps can reach there:

    z_k[j] = step(z_{k-1}[i], i -> j),    i = argmin_{i < j} |step(z_{k-1}[i], i -> j) - x_j|

The schedule is the chain of choices that leads to z_N[n]. If states nearer to the teacher stay
nearer, it is the N-step student with the smallest error at the end point. Each of the N rounds
costs one evaluation of the batch per knot.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.denoiser import Condition, Denoiser
from .trajectory import Trajectory, fine_steps, follow


def optimal_steps(
    denoiser: Denoiser,
    steps: int,
    x_T: Tensor,
    condition: Condition = None,
    *,
    fine: int | None = None,
) -> Tensor:
    """Knots [steps + 1], float64, chosen from a fine grid.

    It costs about steps * fine evaluations of the batch x_T [B, *shape].

    Args:
        fine: steps n of the fine grid; if not given, 40 or 2 * steps, whichever is more.

    Raises InputError for fewer fine steps than steps.
    """
    fine = fine_steps("optimal-steps", steps, fine)
    trajectory = follow(denoiser, x_T, condition, fine)
    return trajectory.t[nearest_chain(trajectory, steps)[0]]


def nearest_chain(trajectory: Trajectory, steps: int) -> tuple[list[int], float]:
    """Knots 0 = i_0 < … < i_steps = n of the best student, and its mean squared error at the end.

    States are compared over alpha.
    """
    n, teacher = len(trajectory.t) - 1, trajectory.y / trajectory.alpha.clamp_min(1e-30)
    # a round starts from the states z and outputs m at the knots first, first + 1, …
    z, m = trajectory.y[:1], trajectory.m[:1]
    choices: list[list[int]] = []
    error = torch.inf
    for first in range(steps):
        eps = trajectory.eps(z, m, first)
        came_from, reached = [], []
        last = n - (steps - first) + 1  # behind it, too few knots are left for the other steps
        for j in range(first + 1, last + 1):
            before = slice(j - first)
            options = trajectory.step(m[before], eps[before], j)
            errors = ((options - teacher[j]) ** 2).mean((1, 2)).nan_to_num(torch.inf)
            error = float(errors.min())
            came_from.append(first + int(errors.argmin()))
            reached.append(options[came_from[-1] - first] * trajectory.alpha[j])
        choices.append(came_from)
        z = torch.stack(reached)
        if first < steps - 1:
            m = trajectory.outputs(z, trajectory.t[first + 1 :])
    path = [n]
    for first in reversed(range(steps)):
        path.insert(0, choices[first][path[0] - first - 1])
    return path, error
