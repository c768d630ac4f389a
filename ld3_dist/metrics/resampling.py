"""Bootstrap resamples of per-sample losses, many at a time.

A resample draws n of n samples with replacement. Only the number of times that each sample is
drawn matters, so R resamples are a matrix of counts [n, R], and the mean of every resample is one
matrix product. The statistics of a loss x with order statistics x_(1) <= … <= x_(n):

    mean      the mean of all of them
    median    the mean of the middle one or two
    iqm       interquartile mean: the mean of the middle half, n/4 < rank <= 3n/4; samples at an
              end of the half count by the fraction that is inside

The counts depend on (seed, n) alone: two losses of the same samples share them, which makes a
comparison paired.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Statistic = Literal["mean", "median", "iqm"]
STATISTICS: tuple[Statistic, ...] = ("mean", "median", "iqm")

TOGETHER = 2_500_000
"""Counts that are in memory at a time; up to so many are kept for the next comparison."""

ROUNDING = 1e-13
"""The share of its terms below which the variance of a resample is rounding."""

FAR = 8.0
"""Standard deviations that no count is away from its mean: chances are 1e-15."""


def counts(n: int, repeats: int, seed: int) -> Iterator[Array]:
    """Blocks [n, r] of counts: the times that each of n samples is drawn in a resample."""
    wide = max(1, TOGETHER // n)
    if repeats <= wide:
        yield _kept(n, repeats, seed)
        return
    generator = np.random.default_rng([seed, n])
    for start in range(0, repeats, wide):
        yield _draw(generator, n, min(wide, repeats - start))


@lru_cache(maxsize=4)
def _kept(n: int, repeats: int, seed: int) -> Array:
    return _draw(np.random.default_rng([seed, n]), n, repeats)


def _draw(generator: np.random.Generator, n: int, repeats: int) -> Array:
    drawn = generator.integers(n, size=(n, repeats)) * repeats
    drawn += np.arange(repeats)
    return np.bincount(drawn.ravel(), minlength=n * repeats).reshape(n, repeats).astype(float)


def sums(columns: Array, repeats: int, seed: int) -> Array:
    """Means of columns [n, K] over every resample -> [R, K]."""
    n = len(columns)
    parts = [columns.T @ block for block in counts(n, repeats, seed)]
    return np.concatenate(parts, axis=1).T / n


def statistic_of(x: Array, statistic: Statistic) -> float:
    """A statistic of losses [n]."""
    if statistic != "iqm":
        return float(x.mean() if statistic == "mean" else np.median(x))
    return float(_middle(x, np.ones((len(x), 1)), statistic)[0])


def resampled(x: Array, statistic: Statistic, repeats: int, seed: int) -> Array:
    """A statistic of every resample of losses [n] -> [R]."""
    if statistic == "mean":
        return sums(x[:, None], repeats, seed)[:, 0]
    return np.concatenate([_middle(x, block, statistic) for block in counts(len(x), repeats, seed)])


def _middle(x: Array, counted: Array, statistic: Statistic) -> Array:
    """The mean between the ranks `low` and n - low of resamples given as counts [n, R] -> [R].

    With C_i the draws among the i smallest losses, cut to [low, n - low], the sum over these ranks
    is sum_i x_(i) (C_i - C_(i-1)). C_i is cut for certain further than FAR standard deviations of
    a binomial count from the middle, so only the losses near it are looked at.
    """
    n, order = len(x), np.argsort(x, kind="stable")
    low = n / 4 if statistic == "iqm" else (n - 1) // 2
    margin = 1 + FAR * math.sqrt(n) / 2
    first, stop = max(0, int(low - margin)), min(n, math.ceil(n - low + margin))
    before = np.zeros(n)
    before[order[:first]] = 1
    ranks = counted[order[first:stop]]
    ranks[0] += before @ counted
    np.cumsum(ranks, axis=0, out=ranks)
    np.clip(ranks, low, n - low, out=ranks)
    near = x[order[first:stop]]
    ends = near[-1] * ranks[-1] - near[0] * low
    return (ends - np.diff(near) @ ranks[:-1]) / (n - 2 * low)


def above_rounding(variance: Array, terms: Array) -> Array:
    """Variances that are differences of terms of this size; 0 where only rounding is left.

    A resample that draws one sample n times has no spread.
    """
    return np.where(variance > ROUNDING * terms, variance, 0.0)


def over(deviation: Array, error: Array) -> Array:
    """t* = deviation / error*; infinite where a resample has no spread of its own."""
    with np.errstate(divide="ignore", invalid="ignore"):
        t = deviation / error
    return np.where(np.isnan(t), 0.0, t)


def exponential(x: float) -> float:
    """e^x; infinite where it is more than a number can be, as intervals of two samples are."""
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf


def difference_t(x: Array, y: Array, paired: bool, repeats: int, seed: int) -> tuple[Array, float]:
    """t* [R] of the difference of means, and its standard error."""
    deviation, variance, found = np.zeros(repeats), np.zeros(repeats), 0.0
    parts = [x - y] if paired else [x, -y]
    for i, part in enumerate(parts):
        centred = part - part.mean()
        drawn = sums(np.stack([centred, centred**2], 1), repeats, seed + i)
        deviation += drawn[:, 0]
        square = drawn[:, 1]
        variance += above_rounding(square - drawn[:, 0] ** 2, square) / len(part)
        found += float(centred.var()) / len(part)
    return over(deviation, np.sqrt(variance)), math.sqrt(found)


def paired_t(x: Array, y: Array, repeats: int, seed: int) -> tuple[Array, Array]:
    """t* [R, K] of log mean(x) - log mean(y), x [K, n] and y [n] of mean 1, and its errors [K].

    With e = x - y, whose mean is 0, a resample has log(1 + e* / y*). Sums of e keep their digits
    where x and y are nearly equal, differences of sums would not.
    """
    count, n = x.shape
    e = (x - y).T  # [n, K]
    columns = np.concatenate([y[:, None], (y * y)[:, None], e, e * e, e * y[:, None]], 1)
    drawn = sums(columns, repeats, seed)
    y1, y2 = drawn[:, :1], drawn[:, 1:2]
    e1, e2, ey = (drawn[:, 2 + i * count : 2 + (i + 1) * count] for i in range(3))
    terms = e2 * y1**2 + y2 * e1**2
    variance = above_rounding(terms - 2 * ey * y1 * e1, terms) / n
    t = over(np.log1p(e1 / y1), np.sqrt(variance) / (y1 * (y1 + e1)))
    return t, np.sqrt((e * e).mean(0) / n)


def unpaired_t(x: Array, y: Array, repeats: int, seed: int) -> tuple[Array, float]:
    """t* [R] of log mean(x) - log mean(y) with independent resamples, both of mean 1."""
    deviation, variance, found = np.zeros(repeats), np.zeros(repeats), 0.0
    for i, (z, sign) in enumerate(((x, 1), (y, -1))):
        drawn = sums(np.stack([z, z * z], 1), repeats, seed + i)
        deviation += sign * np.log(drawn[:, 0])
        square = drawn[:, 1] / drawn[:, 0] ** 2
        variance += above_rounding(square - 1, square) / len(z)
        found += float(z.var()) / len(z)
    return over(deviation, np.sqrt(variance)), math.sqrt(found)
