"""The kernel distance KID: unbiased squared maximum mean discrepancy (Binkowski et al. 2018,
1801.01401).

    MMD^2 = 1/(m(m-1)) sum_{i != j} k(x_i, x_j) + 1/(m(m-1)) sum_{i != j} k(y_i, y_j)
            - 2/m^2 sum_{i,j} k(x_i, y_j),            k(x, y) = (x . y / F + 1)^3

It is the mean over random subsets of m samples, given with its standard deviation. An unbiased
estimate can be slightly negative.

A subset is a column w in {0, 1}^n, and its sum over pairs is w^T K w. All subsets share one kernel
matrix K, made in blocks: many times less work than a matrix for every subset. From more than POOL
samples the subsets are drawn out of POOL random ones, which bounds the work. The sums within a
large reference are most of it; `Sums` keeps them for the next set that is compared with it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.errors import InputError
from .statistics import checked_features

SUBSETS = 100
SUBSET_SIZE = 1000
POOL = 10_000
BLOCK = 1024
"""Rows of the kernel matrix held at a time."""


Sums = dict[tuple[int, int, int, int], Tensor]
"""Sums [S] within subsets of a set, by (samples of the other set, size, number, seed)."""


@dataclass(frozen=True)
class KernelDistance:
    """Mean and standard deviation over subsets."""

    mean: float
    std: float


def kernel_distance(
    a: Tensor,
    b: Tensor,
    subsets: int = SUBSETS,
    subset_size: int | None = None,
    seed: int = 0,
    known: Sums | None = None,
) -> KernelDistance:
    """KID of features [N, F] and [M, F]; the subsets depend on the seed alone.

    Without a `subset_size` it is SUBSET_SIZE, or all samples of the smaller set where there are
    fewer. Raises InputError for fewer samples than a subset, or than 2.

    Args:
        known: sums within `a`, for this set alone: they are taken from here, and added.
    """
    x, y = checked_features(a, "kernel distance", 2), checked_features(b, "kernel distance", 2)
    if x.shape[1] != y.shape[1]:
        raise InputError(
            f"cannot compare {x.shape[1]} features with {y.shape[1]}: two different extractors?"
        )
    generator = torch.Generator().manual_seed(seed)
    x, y = (
        z[torch.randperm(len(z), generator=generator)[:POOL]] if len(z) > POOL else z
        for z in (x, y)
    )
    size = min(SUBSET_SIZE, len(x), len(y)) if subset_size is None else subset_size
    if subsets < 1 or not 2 <= size <= min(len(x), len(y)):
        raise InputError(
            f"kernel distance: {subsets} subsets of {size} samples cannot be drawn from {len(x)} "
            f"and {len(y)} samples"
        )
    w_x = _subsets(len(x), size, subsets, generator)
    w_y = _subsets(len(y), size, subsets, generator)
    key, known = (len(b), size, subsets, seed), {} if known is None else known
    if key not in known:
        known[key] = _within(x, w_x)
    values = squared_mmd(x, y, w_x, w_y, known[key])
    return KernelDistance(values.mean().item(), values.std(correction=0).item())


def squared_mmd(
    x: Tensor, y: Tensor, w_x: Tensor, w_y: Tensor, within_x: Tensor | None = None
) -> Tensor:
    """The unbiased estimate for S subsets of x [N, F] and y [M, F], given as 0/1 columns [N, S] and
    [M, S] -> [S].

    Args:
        within_x: the sums within the subsets of x [S], where they are known.
    """
    m = w_x.sum(0)
    within = (_within(x, w_x) if within_x is None else within_x) + _within(y, w_y)
    return within / (m * (m - 1)) - 2 * _pair_sums(x, y, w_x, w_y) / m**2


def _within(x: Tensor, w: Tensor) -> Tensor:
    """sum_{i != j} w_i k(x_i, x_j) w_j for every subset."""
    return _pair_sums(x, x, w, w) - _own_sums(x, w)


def _pair_sums(x: Tensor, y: Tensor, w_x: Tensor, w_y: Tensor) -> Tensor:
    """sum_{i,j} w_i k(x_i, y_j) w_j for every subset."""
    total = torch.zeros(w_x.shape[1], dtype=x.dtype)
    for rows, weights in zip(x.split(BLOCK), w_x.split(BLOCK), strict=True):
        total += (weights * (((rows @ y.T) / x.shape[1] + 1) ** 3 @ w_y)).sum(0)
    return total


def _own_sums(x: Tensor, w: Tensor) -> Tensor:
    """sum_i w_i k(x_i, x_i) for every subset."""
    return ((x.square().mean(1) + 1) ** 3) @ w


def _subsets(n: int, size: int, count: int, generator: torch.Generator) -> Tensor:
    """`count` random subsets of `size` out of n, as columns of zeros and ones [n, count]."""
    w = torch.zeros(n, count, dtype=torch.float64)
    for s in range(count):
        w[torch.randperm(n, generator=generator)[:size], s] = 1
    return w
