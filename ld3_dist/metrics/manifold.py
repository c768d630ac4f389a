"""Precision, recall, density and coverage: how two sets of features overlap, ball by ball.

B_k(x, X) is the ball around x that reaches to its k-th nearest neighbour among the other points of
X.

    precision   fraction of samples in at least one B_k(r, real)
    recall      fraction of real points in at least one B_k(s, samples)
    density     mean over samples of |{r : s in B_k(r, real)}| / k
    coverage    fraction of real points r with a sample in B_k(r, real)

Precision and recall are from Kynkaanniemi et al. 2019 (1904.06991), density and coverage from Naeem
et al. 2020 (2002.09797).

Balls are closed for the first two and open for the last two, as in the authors' definitions of
each; then a set compared with itself scores 1 in all four (density in the mean over a set without
ties)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.errors import InputError
from .statistics import checked_features

PRECISION_NEIGHBOURS = 3
DENSITY_NEIGHBOURS = 5
TIE = 1e-10
"""Squared distances that differ by less than this fraction are equal: products of blocks round
differently.
"""

BLOCK = 1024
"""Rows of the distance matrix held at a time."""


@dataclass(frozen=True)
class Overlap:
    """The four numbers; all but density lie in [0, 1]."""

    precision: float
    recall: float
    density: float
    coverage: float


@dataclass(frozen=True, eq=False)
class RealBalls:
    """The balls around real data, made once for many sets of samples.

    center [F]: their mean; distances do not change without it, and rounding gets smaller.
    points [N, F]: without their mean.
    narrow, wide [N]: squared radii to the k_precision-th and the k_density-th neighbour.
    """

    center: Tensor
    points: Tensor
    narrow: Tensor
    wide: Tensor
    k_precision: int
    k_density: int

    @staticmethod
    def of(
        real: Tensor,
        k_precision: int = PRECISION_NEIGHBOURS,
        k_density: int = DENSITY_NEIGHBOURS,
    ) -> RealBalls:
        """The balls of features [N, F]; InputError unless N > k >= 1."""
        if min(k_precision, k_density) < 1:
            raise InputError(f"need at least 1 neighbour, got {k_precision} and {k_density}")
        real = checked_features(real, "real features", max(k_precision, k_density) + 1)
        center = real.mean(0)
        points = real - center
        narrow, wide = (neighbour_radii(points, k) for k in (k_precision, k_density))
        return RealBalls(center, points, narrow, wide, k_precision, k_density)


def overlap(
    real: Tensor | RealBalls,
    samples: Tensor,
    k_precision: int = PRECISION_NEIGHBOURS,
    k_density: int = DENSITY_NEIGHBOURS,
) -> Overlap:
    """Features of real data [N, F] and of samples [M, F] -> Overlap.

    Args:
        real: features, or the balls around them, which then say how many neighbours count.

    Raises InputError unless N, M > k, and for another number of features.
    """
    balls = real if isinstance(real, RealBalls) else RealBalls.of(real, k_precision, k_density)
    k_precision, k_density = balls.k_precision, balls.k_density
    samples = checked_features(samples, "sample features", max(k_precision, k_density) + 1)
    if balls.points.shape[1] != samples.shape[1]:
        raise InputError(
            f"cannot compare {balls.points.shape[1]} features with {samples.shape[1]}: two "
            f"different extractors?"
        )
    samples = samples - balls.center
    points, narrow, wide = balls.points, balls.narrow, balls.wide
    around_samples = neighbour_radii(samples, k_precision)

    precise = inside = 0
    nearest = torch.full((len(points),), torch.inf, dtype=torch.float64)
    recalled = torch.zeros(len(points), dtype=torch.bool)
    for start in range(0, len(samples), BLOCK):
        d2 = squared_distances(samples[start : start + BLOCK], points)  # [block, N]
        precise += int((d2 <= narrow * (1 + TIE)).any(1).sum())
        inside += int((d2 < wide * (1 - TIE)).sum())
        nearest = torch.minimum(nearest, d2.amin(0))
        recalled |= (d2 <= around_samples[start : start + BLOCK, None] * (1 + TIE)).any(0)
    return Overlap(
        precision=precise / len(samples),
        recall=recalled.double().mean().item(),
        density=inside / (k_density * len(samples)),
        coverage=(nearest < wide * (1 - TIE)).double().mean().item(),
    )


def neighbour_radii(x: Tensor, k: int) -> Tensor:
    """Squared distance of every point of x [N, F] to its k-th nearest other point -> [N]."""
    radii = []
    for start in range(0, len(x), BLOCK):
        d2 = squared_distances(x[start : start + BLOCK], x)
        rows = torch.arange(len(d2))
        d2[rows, rows + start] = torch.inf  # not its own neighbour
        radii.append(d2.kthvalue(k, dim=1).values)
    return torch.cat(radii)


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """[N, F] x [M, F] -> [N, M] by matrix products; values below their rounding become zero."""
    scale = x.square().sum(1)[:, None] + y.square().sum(1)[None]
    d2 = scale - 2 * x @ y.T
    return torch.where(d2 > 1e-13 * scale, d2, 0.0)
