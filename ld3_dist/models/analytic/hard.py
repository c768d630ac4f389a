"""Distributions that are hard to sample in few steps, as exact mixtures.

    modes          K narrow Gaussians far apart; their weights may fall off geometrically
    student_t      Student's t: no variance for df <= 2, no mean for df <= 1
    near_singular  a Gaussian whose standard deviations span several orders of magnitude
    rings          two rings, one inside the other, as many small Gaussians
    checkerboard   the dark squares of a board, each a lattice of small Gaussians

Every mixture has labels: the modes that a sampler may lose. One component may be one mode, or many
components together (a ring, a square).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...core.noise import NoiseSchedule
from .mixture import Mixture

DEGREES = 2.0
"""Degrees of freedom of Student's t if none are given: its variance is infinite."""

REFERENCE_DRAWS = 2000
"""Exact samples that samples of these distributions are compared with."""


def modes(
    noise: NoiseSchedule,
    shape: tuple[int, ...],
    components: int = 8,
    radius: float = 4.0,
    std: float = 0.1,
    decay: float = 1.0,
) -> Mixture:
    """`components` Gaussians at distance `radius` from the origin; w_k ~ decay^k, a mode each.

    In two dimensions they lie evenly on a circle; in more, at seeded random directions, which are
    nearly orthogonal.
    """
    if not (components >= 1 and radius >= 0 and std > 0 and 0 < decay <= 1):
        raise ValueError(
            "modes: need components >= 1, radius >= 0, std > 0 and 0 < decay <= 1, got "
            f"{components}, {radius}, {std}, {decay}"
        )
    dim = torch.Size(shape).numel()
    if dim == 2:
        angle = torch.arange(components, dtype=torch.float64) * (2 * math.pi / components)
        unit = torch.stack([angle.cos(), angle.sin()], 1)
    else:
        generator = torch.Generator().manual_seed(0)
        unit = torch.randn(components, dim, generator=generator, dtype=torch.float64)
        unit = unit / unit.norm(dim=1, keepdim=True)
    weights = decay ** torch.arange(components, dtype=torch.float64)
    stds = torch.full((components,), std, dtype=torch.float64)
    labels = torch.arange(components)
    return Mixture(noise, radius * unit.reshape(-1, *shape), stds, weights, labels)


def student_t(
    noise: NoiseSchedule,
    shape: tuple[int, ...],
    df: float = DEGREES,
    std: float = 0.3,
    components: int = 32,
    least: float = 1e-6,
) -> Mixture:
    """A Gaussian scale mixture close to Student's t with `df` degrees of freedom and scale `std`.

        x = std z / sqrt(u),    u = chi2_df / df

    The distribution of u is cut at quantiles falling geometrically from 1/2 to `least`, and evenly
    above 1/2; each piece is replaced by the scale at its middle. Rare wide
    components therefore keep the tail up to probabilities of about `least`, where `heavy_tails`,
    whose pieces are equally likely, ends at one in twice its components.
    """
    from scipy.stats import chi2

    if not (df > 0 and std > 0 and components >= 4 and 0 < least < 0.1):
        raise ValueError(
            "student-t: need df > 0, std > 0, components >= 4 and 0 < least < 0.1, got "
            f"{df}, {std}, {components}, {least}"
        )
    tail = 3 * components // 4
    falling = torch.logspace(math.log10(least), math.log10(0.5), tail, dtype=torch.float64)
    rising = torch.linspace(0.5, 1.0, components - tail + 1, dtype=torch.float64)[1:]
    edges = torch.cat([torch.zeros(1, dtype=torch.float64), falling, rising])  # [components + 1]
    weights, middle = edges.diff(), (edges[1:] + edges[:-1]) / 2
    scale = (df / torch.as_tensor(chi2.ppf(middle.numpy(), df))).sqrt()
    labels = torch.zeros(components, dtype=torch.int64)
    return Mixture(noise, torch.zeros(components, *shape), std * scale, weights, labels)


def near_singular(
    noise: NoiseSchedule, shape: tuple[int, ...], std: float = 1.0, ratio: float = 1e-3
) -> Mixture:
    """A Gaussian whose standard deviations fall from std to std * ratio, evenly in the log."""
    if not (std > 0 and 0 < ratio <= 1):
        raise ValueError(f"near-singular: need std > 0 and 0 < ratio <= 1, got {std}, {ratio}")
    dim = torch.Size(shape).numel()
    stds = std * torch.logspace(0, math.log10(ratio), dim, dtype=torch.float64)
    means = torch.zeros(1, *shape, dtype=torch.float64)
    return Mixture(noise, means, stds.reshape(1, *shape), labels=torch.zeros(1, dtype=torch.int64))


def rings(
    noise: NoiseSchedule, components: int = 64, radius: float = 1.0, std: float = 0.05
) -> Mixture:
    """Rings of radius `radius` and twice that, each a mode of many Gaussians, shape (2,)."""
    angle = torch.arange(components, dtype=torch.float64) * (2 * math.pi / components)
    unit = torch.stack([angle.cos(), angle.sin()], 1)
    means = torch.cat([radius * unit, 2 * radius * unit])
    stds = torch.full((2 * components,), std, dtype=torch.float64)
    return Mixture(noise, means, stds, labels=torch.arange(2).repeat_interleave(components))


def checkerboard(
    noise: NoiseSchedule, side: int = 4, lattice: int = 3, width: float = 1.0
) -> Mixture:
    """The dark squares of a board of side x side squares of `width`, each a mode, shape (2,).

    A square is lattice x lattice Gaussians, whose standard deviations are half their spacing.
    """
    if side < 2 or lattice < 1 or width <= 0:
        raise ValueError(
            f"checkerboard: need side >= 2, lattice >= 1, width > 0, got {side}, {lattice}, {width}"
        )
    dark = [(i, j) for i in range(side) for j in range(side) if (i + j) % 2 == 0]
    inside = (torch.arange(lattice, dtype=torch.float64) + 0.5) / lattice
    points = torch.cartesian_prod(inside, inside).reshape(-1, 2)  # [lattice^2, 2]
    corners = torch.tensor(dark, dtype=torch.float64) - side / 2
    means = width * (corners[:, None] + points).reshape(-1, 2)
    stds = torch.full((len(means),), width / (2 * lattice), dtype=torch.float64)
    return Mixture(noise, means, stds, labels=torch.arange(len(dark)).repeat_interleave(lattice**2))


def mode_of(mixture: Mixture, samples: Tensor) -> Tensor:
    """The most probable label of samples [M, d], int64 [M]."""
    assert mixture.labels is not None
    x = samples.double()
    v = mixture.stds**2  # [K, d] or [K, 1]
    gap = (x[:, None] - mixture.means).square() / v + v.log()
    log_joint = mixture.log_weights - 0.5 * gap.sum(2)  # [M, K]
    return mixture.labels[log_joint.argmax(1)]


def mode_weights(mixture: Mixture) -> Tensor:
    """The probability of each label 0 … L-1, float64 [L]."""
    assert mixture.labels is not None
    count = int(mixture.labels.max()) + 1
    weights = torch.zeros(count, dtype=torch.float64)
    return weights.index_add(0, mixture.labels, mixture.log_weights.exp())
