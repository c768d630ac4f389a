"""GITS: the steps that cut the fewest corners (Chen et al. 2024, arXiv 2405.11326).

Trajectories of a diffusion model bend in the same places whatever the sample. With cost[i, j] what
one step from knot i to knot j of a fine teacher trajectory loses, the schedule is the shortest path
of N steps,

    V_1[i] = cost[i, n],        V_k[i] = min_{i < j < n} cost[i, j] + coefficient * V_{k-1}[j],

where a coefficient above 1 makes up for errors that grow on the way. The cost is how much further
the step ends from the chord x_T to x_0 than the teacher does (`deviation`, as published), or its
distance to the teacher (`l2`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.denoiser import Condition, Denoiser
from ..core.errors import unknown
from .trajectory import Trajectory, follow


def gits(
    denoiser: Denoiser,
    steps: int,
    x_T: Tensor,
    condition: Condition = None,
    *,
    fine: int | None = None,
    coefficient: float = 1.15,
    metric: str = "deviation",
) -> Tensor:
    """Knots [steps + 1], float64, chosen from a fine grid; costs `fine` evaluations of the batch.

    fine: steps of that grid; 60, or twice as many as are chosen if that is more.
    """
    fine = max(60, 2 * steps) if fine is None else fine
    trajectory = follow(denoiser, x_T, condition, fine, steps)
    path, _ = shortest_path(costs(trajectory, metric), steps, coefficient)
    return trajectory.t[path]


def costs(trajectory: Trajectory, metric: str) -> Tensor:
    """cost [n, n+1] of a step from i to j > i, averaged over the samples; infinite elsewhere."""
    if metric not in ("deviation", "l2"):
        raise unknown("metric of gits", metric, ("deviation", "l2"))
    n = len(trajectory.t) - 1
    cost = torch.full((n, n + 1), torch.inf, dtype=torch.float64)
    teacher = trajectory.y[1:] / trajectory.alpha[1:]  # [n, B, d]; in the variance-exploding frame
    end = teacher[-1]
    # where alpha(t_max) = 0 that frame has no start; the chord's direction is then the noise itself
    chord = (
        trajectory.y[0]
        if trajectory.noise.starts_at_pure_noise
        else trajectory.y[0] / trajectory.alpha[0] - end
    )
    chord = chord / chord.norm(dim=-1, keepdim=True).clamp_min(1e-30)

    def deviation(x: Tensor) -> Tensor:
        away = x - end
        return (away - (away * chord).sum(-1, keepdim=True) * chord).norm(dim=-1).mean(-1)

    eps = trajectory.eps(trajectory.y[:-1], trajectory.m)
    for j in range(1, n + 1):
        made, aim = trajectory.step(trajectory.m[:j], eps[:j], j), teacher[j - 1]
        cost[:j, j] = (
            (made - aim).norm(dim=-1).mean(-1)
            if metric == "l2"
            else deviation(made) - deviation(aim)
        )
    return cost


def shortest_path(cost: Tensor, steps: int, coefficient: float) -> tuple[list[int], float]:
    """The path 0 = i_0 < … < i_steps = n that minimises sum_k coefficient^k cost[i_k, i_{k+1}], and
    that sum.
    """
    n = cost.shape[0]
    value = torch.full((n + 1,), torch.inf, dtype=torch.float64)
    value[n] = 0.0  # of what is left to go, with no step left
    choices = []
    for _ in range(steps):
        best, choice = (cost + coefficient * value).min(1)
        value = torch.cat([best, torch.full((1,), torch.inf, dtype=torch.float64)])
        choices.append(choice)
    path = [0]
    for choice in reversed(choices):
        path.append(int(choice[path[-1]]))
    return path, float(value[0])
