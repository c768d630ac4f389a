"""TORS: steps that each turn by the same angle (arXiv 2603.00763, constant total rotation).

The trajectories of a diffusion model are nearly plane curves. Each is projected on the plane of its
two leading principal directions. Between two times its tangent turns there by

    Theta = int kappa ds,        kappa the curvature, s the length along the curve,

which is the total rotation of its Frenet frame. Theta(t) is averaged over the trajectories, and the
knots divide it into equal parts. The trajectories have 100 steps.

Made from the authors' abstract and a summary of their text, not from their code. They partition
curvature and torsion over the length of the curve. Here a plane has no torsion, and the rotation is
added up per time, so that no map from length to time is needed. The method is made for flow
matching. Other noise schedules are read as the flow that they are equivalent to (see `trajectory`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.denoiser import Condition, Denoiser
from .findings import Findings
from .trajectory import Trajectory, equal_shares

LEAST = 1e-2
"""Rotation in radians that is added evenly: a straight flow gives equal steps."""


def tors(
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
        fine: steps of the trajectories; if not given, 100 or 2 * steps, whichever is more.
        findings: of these trajectories; this one's is kept there.

    Raises InputError for fewer fine steps than steps.
    """
    return equal_shares("tors", cumulative, denoiser, steps, x_T, condition, fine, findings)


def cumulative(trajectory: Trajectory) -> Tensor:
    """The mean total rotation from knot 0 to each knot, in radians, [n+1]."""
    s, turned = trajectory.s, turns(in_plane(trajectory.path)).mean(1)
    # the turn at a knot happens half before it and half behind it
    half = torch.cat([s.new_zeros(1), turned, s.new_zeros(1)]) / 2
    rotation = torch.cat([s.new_zeros(1), (half[1:] + half[:-1]).cumsum(0)])
    return rotation + LEAST * (s[0] - s) / (s[0] - s[-1])


def in_plane(path: Tensor) -> Tensor:
    """Coordinates [n+1, B, 2] of paths [n+1, B, d] in the plane of their principal directions."""
    centred = (path - path.mean(0)).transpose(0, 1)  # [B, n+1, d]
    values, vectors = torch.linalg.eigh(centred @ centred.transpose(1, 2))
    return (vectors[..., -2:] * values[:, None, -2:].clamp_min(0).sqrt()).transpose(0, 1)


def turns(path: Tensor) -> Tensor:
    """Angles [n-1, B] between the pieces of plane paths [n+1, B, 2], at their inner points."""
    before, after = path.diff(dim=0)[:-1], path.diff(dim=0)[1:]
    cross = before[..., 0] * after[..., 1] - before[..., 1] * after[..., 0]
    return torch.atan2(cross.abs(), (before * after).sum(-1))
