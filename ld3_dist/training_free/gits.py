"""GITS: long steps where trajectories are straight (Chen et al. 2024, arXiv 2405.11326).

The trajectories of a diffusion model bend at the same times for every sample. Let cost[i, j] be the
error of one step from knot i to knot j of a fine teacher trajectory with n steps. The schedule is
the shortest path of N steps from knot 0 to knot n:

    V_1[i] = cost[i, n],        V_k[i] = min_{i < j < n} cost[i, j] + coefficient * V_{k-1}[j]

A coefficient above 1 makes up for errors that grow on the way. There are two costs:

    deviation   the step's distance to the chord from x_T to x_0, less the teacher's (as published)
    l2          the step's distance to the teacher
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.denoiser import Condition, Denoiser
from ..core.errors import unknown
from .findings import Findings, found
from .trajectory import Trajectory, fine_knots, fine_steps, follow


def gits(
    denoiser: Denoiser,
    steps: int,
    x_T: Tensor,
    condition: Condition = None,
    *,
    fine: int | None = None,
    coefficient: float = 1.15,
    metric: str = "deviation",
    findings: Findings | None = None,
) -> Tensor:
    """Knots [steps + 1], float64, chosen from a fine grid.

    It costs `fine` evaluations of the batch x_T [B, *shape], unless its finding is known.

    Args:
        fine: steps n of the fine grid; if not given, 60 or 2 * steps, whichever is more.
        coefficient: see the top of this file.
        metric: the cost, "deviation" or "l2".
        findings: of these trajectories; this one's is kept there.

    Raises InputError for another metric and for fewer fine steps than steps.
    """
    fine = fine_steps("gits", steps, fine)
    cost = found(
        findings,
        (f"gits {metric}", fine),
        lambda: costs(follow(denoiser, x_T, condition, fine), metric),
    )
    path, _ = shortest_path(cost, steps, coefficient)
    return fine_knots(denoiser.noise, fine)[path]


def costs(trajectory: Trajectory, metric: str) -> Tensor:
    """cost [n, n+1] of a step from i to j, averaged over the samples; infinite unless i < j."""
    if metric not in ("deviation", "l2"):
        raise unknown("metric of gits", metric, ("deviation", "l2"))
    n = len(trajectory.t) - 1
    cost = torch.full((n, n + 1), torch.inf, dtype=torch.float64)
    teacher = trajectory.y[1:] / trajectory.alpha[1:]  # [n, B, d]; in the variance-exploding frame
    end = teacher[-1]
    if trajectory.noise.starts_at_pure_noise:  # x_T / alpha is infinite, in the direction of x_T
        chord = trajectory.y[0]
    else:
        chord = trajectory.y[0] / trajectory.alpha[0] - end
    chord = chord / chord.norm(dim=-1, keepdim=True).clamp_min(1e-30)

    def deviation(x: Tensor) -> Tensor:
        away = x - end
        return (away - (away * chord).sum(-1, keepdim=True) * chord).norm(dim=-1).mean(-1)

    eps = trajectory.eps(trajectory.y[:-1], trajectory.m)
    for j in range(1, n + 1):
        made, aim = trajectory.step(trajectory.m[:j], eps[:j], j), teacher[j - 1]
        if metric == "l2":
            cost[:j, j] = (made - aim).norm(dim=-1).mean(-1)
        else:
            cost[:j, j] = deviation(made) - deviation(aim)
    return cost


def shortest_path(cost: Tensor, steps: int, coefficient: float) -> tuple[list[int], float]:
    """The path 0 = i_0 < … < i_steps = n with the least sum_k coefficient^k cost[i_k, i_{k+1}].

    Returns the path and that sum.
    """
    n = cost.shape[0]
    value = torch.full((n + 1,), torch.inf, dtype=torch.float64)
    value[n] = 0.0  # with no step left, only the end itself is reached
    choices = []
    for _ in range(steps):
        best, choice = (cost + coefficient * value).min(1)
        value = torch.cat([best, torch.full((1,), torch.inf, dtype=torch.float64)])
        choices.append(choice)
    path = [0]
    for choice in reversed(choices):
        path.append(int(choice[path[-1]]))
    return path, float(value[0])
