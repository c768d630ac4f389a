"""SharpEuler: short steps where the velocity changes fast (Gupta et al. 2026, arXiv 2605.11547).

Euler's error in a step of length h is h^2 / 2 ||dv/ds|| to leading order. With N steps of density
p(s), the error is about a sum of h = 1 / (N p), least in the sense of the authors at

    p(s) ~ (mean over samples of ||dv/ds||)^(1/2)

The knots are the N + 1 quantiles of p. v is the velocity along dense trajectories of the network,
dv/ds its finite difference. The profile is smoothed by a Gaussian one step wide, as the authors do.

The method is made for flow matching. Other noise schedules are read as the flow that they are
equivalent to (see `trajectory`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.denoiser import Condition, Denoiser
from .findings import Findings
from .trajectory import Trajectory, equal_shares

POWER = 0.5
SMOOTHING = 1.0
"""Standard deviation of the Gaussian, in steps of the fine grid."""
LEAST = 0.01
"""The least density, as a fraction of (mean ||v||)^(1/2): a straight flow gives equal steps."""


def sharp_euler(
    denoiser: Denoiser,
    steps: int,
    x_T: Tensor,
    condition: Condition = None,
    *,
    fine: int | None = None,
    findings: Findings | None = None,
) -> Tensor:
    """Knots [steps + 1], float64.

    It costs `fine` evaluations of the batch x_T [B, *shape], unless its finding is known.

    Args:
        fine: steps of the dense trajectories; if not given, 100 or 2 * steps, whichever is more.
        findings: of these trajectories; this one's is kept there.

    Raises InputError for fewer fine steps than steps.
    """
    return equal_shares("sharp-euler", cumulative, denoiser, steps, x_T, condition, fine, findings)


def cumulative(trajectory: Trajectory) -> Tensor:
    """The integral of the density p from knot 0 to each knot, [n+1]."""
    s, density = trajectory.s, profile(trajectory)
    # known at the middle of every step but the last; constant beyond the first and the last middle
    middle = (s[:-2] + s[1:-1]) / 2
    at = torch.cat([s[:1], middle, s[-1:]])
    padded = torch.cat([density[:1], density, density[-1:]])
    total = torch.cat([s.new_zeros(1), (-at.diff() * (padded[1:] + padded[:-1]) / 2).cumsum(0)])
    # read at the knots: linear between the places where the integral is known
    right = torch.searchsorted(-at, -s).clamp(1, len(at) - 1)
    share = (at[right - 1] - s) / (at[right - 1] - at[right])
    return total[right - 1] + share * (total[right] - total[right - 1])


def profile(trajectory: Trajectory) -> Tensor:
    """The density p at the middles of all steps but the last, [n-1]; not normalised."""
    v, s = trajectory.velocity, trajectory.s
    change = v.diff(dim=0) / s[:-1].diff()[:, None, None]
    sharpness = change.norm(dim=-1).mean(-1) ** POWER
    return smoothed(sharpness) + LEAST * v.norm(dim=-1).mean() ** POWER


def smoothed(values: Tensor) -> Tensor:
    """Values [n] after a Gaussian, reflected at the ends."""
    radius = min(int(3 * SMOOTHING), len(values) - 1)
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / SMOOTHING) ** 2).to(values)
    wide = torch.nn.functional.pad(values[None, None], (radius, radius), mode="reflect")
    return torch.nn.functional.conv1d(wide, (kernel / kernel.sum())[None, None])[0, 0]
