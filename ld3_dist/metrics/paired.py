"""Losses with their confidence: one schedule's, two schedules' on the same samples, many factors'.

The loss of a sample is its distance to the teacher. It is heavy-tailed: the worst hundredth of the
samples may carry half of the mean. Two schedules that are evaluated on the same noise fail on the
same samples, so their difference is known far better than either loss. With x_i and y_i the losses
of sample i, and x, y their means, a ratio of means has

    log x - log y,      se^2 = 1/n mean_i (x_i / x - y_i / y)^2

and its interval is the symmetric bootstrap-t's on this scale: the 95 % quantile of |t*|, with t* =
(log ratio* - log ratio) / se* over resamples of the samples, stands in the place of a normal's 1.96
(Hall 1992, section 3.6). Where tails are heavy it covers better than percentiles and than the
equal-tailed bootstrap-t, and it is the same interval for x / y as for y / x. A mean alone is skewed
and has the equal-tailed one. Intervals of medians and interquartile means are percentiles, since
these statistics hardly feel the tail. All intervals are at 95 %.

Several seeds are strata: their losses are averaged sample by sample (statistic by statistic for
medians), and samples are drawn anew for all of them together. Such an interval speaks about these
seeds; `over_seeds` adds their own spread.

Sources: interquartile mean and probability of improvement as in Agarwal et al. 2021 (2108.13264);
step-down correction of Holm 1979; Friedman test and critical difference as in Demsar 2006.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ..core.errors import InputError, unknown
from .resampling import (
    STATISTICS,
    Array,
    Statistic,
    above_rounding,
    difference_t,
    exponential,
    over,
    paired_t,
    resampled,
    statistic_of,
    sums,
    unpaired_t,
)

REPEATS = 2000
OUTSIDE = 0.05
"""The share of repetitions in which an interval misses the truth."""

TINY = 1e-12
"""Standard errors below this share of the value are rounding."""


class Estimate(NamedTuple):
    """A value and the ends of its interval; NaN where there is none."""

    value: float
    low: float
    high: float


NOTHING = Estimate(math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class Summary:
    """Mean, median and interquartile mean of one schedule's losses."""

    mean: Estimate
    median: Estimate
    iqm: Estimate


@dataclass(frozen=True)
class Comparison:
    """One schedule's losses a against another's b.

    difference: T(a) - T(b) for a statistic T.  ratio: T(a) / T(b), below 1 where a is better.
    p_improvement: probability that a has the smaller loss, on the same sample where `paired`, else
        on two of them; a tie counts half.
    p_value: of the hypothesis that T(a) = T(b), two-sided.
    """

    difference: Estimate
    ratio: Estimate
    p_improvement: float
    p_value: float
    paired: bool
    samples: int


def summary(losses: ArrayLike, repeats: int = REPEATS, seed: int = 0) -> Summary:
    """Mean, median and interquartile mean of losses [M] or [S, M], each with its interval."""
    x = _losses(losses, "losses")
    found = {"mean": _mean(x.mean(0), repeats, seed)}
    for name in STATISTICS[1:]:
        value = float(np.mean([statistic_of(row, name) for row in x]))
        spread = np.mean([resampled(row, name, repeats, seed) for row in x], axis=0)
        found[name] = Estimate(value, *_ends(spread)) if x.shape[1] > 1 else _point(value)
    return Summary(**found)


def compare(
    a: ArrayLike,
    b: ArrayLike,
    statistic: Statistic = "mean",
    repeats: int = REPEATS,
    seed: int = 0,
    paired: bool = True,
) -> Comparison:
    """Compare two schedules by losses [M], or [S, M] over S seeds.

    Args:
        paired: column i of both is the same sample. Otherwise numbers of samples may differ.

    Raises InputError for losses that are not finite, and for paired losses of different samples.
    """
    if statistic not in STATISTICS:
        raise unknown("statistic", statistic, STATISTICS)
    x, y = _losses(a, "a"), _losses(b, "b")
    if paired and x.shape[1] != y.shape[1]:
        raise InputError(
            f"paired losses: {x.shape[1]} and {y.shape[1]} samples; give the same samples, or "
            "paired=False"
        )
    if statistic == "mean":
        made = _means(x.mean(0), y.mean(0), paired, repeats, seed)
    else:
        made = _middles(x, y, statistic, paired, repeats, seed)
    better = improvement(x, y) if paired else _unpaired_better(x, y)
    return Comparison(*made[:2], better, made[2], paired, min(x.shape[1], y.shape[1]))


def improvement(a: ArrayLike, b: ArrayLike) -> float:
    """The share of samples on which a is smaller than b; a tie counts half.

    With several seeds, seed by seed where both have as many, else over all pairs of seeds.
    """
    x, y = np.atleast_2d(a), np.atleast_2d(b)
    if len(x) != len(y):
        x, y = x[:, None], y[None]
    return float((x < y).mean() + (x == y).mean() / 2)


def ratios(
    a: ArrayLike, b: ArrayLike, repeats: int = REPEATS, seed: int = 0
) -> tuple[Array, Array, Array]:
    """Paired ratios of means, a [K, M] each against the same b [M] -> value, low, high, each [K].

    As `compare(a[k], b).ratio` for every k, with the resamples of all of them in one product.
    """
    x, y = _losses(a, "a"), _losses(b, "b").mean(0)
    means, mean = x.mean(1), float(y.mean())
    value = np.full(len(x), math.nan)
    low, high = value.copy(), value.copy()
    good = (means > 0) & (mean > 0)
    if good.any():
        value[good] = means[good] / mean
        t, error = paired_t(x[good] / means[good, None], y / mean, repeats, seed)
        half = _half(error, t)
        with np.errstate(over="ignore"):
            low[good], high[good] = (value[good] * np.exp(sign * half) for sign in (-1, 1))
    return value, low, high


def holm(p_values: ArrayLike) -> Array:
    """p-values corrected for their number, step by step; NaN stays NaN and is not counted."""
    p = np.asarray(p_values, dtype=float)
    found = np.full(p.shape, math.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    factors = len(order) - np.arange(len(order))
    found[order] = np.maximum.accumulate(factors * p[order]).clip(max=1.0)
    return found


def interval_over_sets(values: ArrayLike) -> Estimate:
    """The mean of a score over R disjoint sets of samples with Student's t interval.

    One set has no interval; NaN values are left out.
    """
    x = np.asarray(values, dtype=float)
    x = x[np.isfinite(x)]
    if len(x) == 0:
        return NOTHING
    if len(x) == 1:
        return Estimate(float(x[0]), math.nan, math.nan)
    from scipy.special import stdtrit

    half = float(stdtrit(len(x) - 1, 1 - OUTSIDE / 2)) * float(x.std(ddof=1)) / math.sqrt(len(x))
    return Estimate(float(x.mean()), float(x.mean()) - half, float(x.mean()) + half)


def over_seeds(
    a: Sequence[ArrayLike], b: Sequence[ArrayLike], repeats: int = REPEATS, seed: int = 0
) -> tuple[Estimate, float]:
    """The geometric mean over cells of the ratio of mean losses, a against b, and its p-value.

    a and b hold a matrix [S, M] per cell: row s is a seed and column i a sample, the same for a
    and b and in every cell. With l_s the mean over cells of log mean(a_s) - log mean(b_s),

        variance = var_s(l_s) / S + v

    v is the variance of the mean of l_s over resamples of the samples, drawn for all cells and
    seeds together. Student's t has the degrees of freedom of Welch and Satterthwaite. With one
    seed the interval speaks about that seed alone.
    """
    pairs = [(_losses(x, "a"), _losses(y, "b")) for x, y in zip(a, b, strict=True)]
    if any(x.shape != y.shape for x, y in pairs) or len({x.shape for x, _ in pairs}) != 1:
        raise InputError("paired losses over seeds: every cell needs the same seeds and samples")
    means = np.array([[np.log(z.mean(1)) for z in pair] for pair in pairs])  # [cells, 2, S]
    by_seed = (means[:, 0] - means[:, 1]).mean(0)
    if not np.isfinite(by_seed).all():
        return NOTHING, math.nan
    samples = _variance_over_samples(pairs, repeats, seed)
    seeds = len(by_seed)
    between = float(by_seed.var(ddof=1)) / seeds if seeds > 1 else 0.0
    value, error = float(by_seed.mean()), math.sqrt(between + samples)
    if error <= TINY:
        return _point(exponential(value)), float(abs(value) <= TINY)
    from scipy.special import stdtr, stdtrit

    n = pairs[0][0].shape[1]
    spread = sum(v**2 / (k - 1) for v, k in ((samples, n), (between, seeds)) if k > 1)
    freedom = (between + samples) ** 2 / spread
    half = float(stdtrit(freedom, 1 - OUTSIDE / 2)) * error
    p = 2 * float(stdtr(freedom, -abs(value) / error))
    return Estimate(*(exponential(value + sign * half) for sign in (0, -1, 1))), p


def average_ranks(scores: ArrayLike) -> Array:
    """Mean rank of each of k treatments over N cells, from scores [N, k], the smallest first."""
    from scipy.stats import rankdata

    return rankdata(np.asarray(scores, dtype=float), axis=1).mean(0)


def friedman(scores: ArrayLike) -> float:
    """p-value of Friedman's test that k >= 3 treatments do equally well in N cells, [N, k]."""
    from scipy.stats import friedmanchisquare

    x = np.asarray(scores, dtype=float)
    if x.ndim != 2 or x.shape[1] < 3 or x.shape[0] < 2:
        return math.nan
    return float(friedmanchisquare(*x.T).pvalue)


def critical_difference(treatments: int, cells: int, alpha: float = OUTSIDE) -> float:
    """Nemenyi's: mean ranks of two of k treatments over N cells that differ by more do differ."""
    from scipy.stats import studentized_range

    if treatments < 2 or cells < 1:
        return math.nan
    q = float(studentized_range.ppf(1 - alpha, treatments, np.inf)) / math.sqrt(2)
    return q * math.sqrt(treatments * (treatments + 1) / (6 * cells))


def _losses(given: ArrayLike, name: str) -> Array:
    """Losses as [S, M] in float64."""
    x = np.atleast_2d(np.asarray(given, dtype=np.float64))
    if x.ndim != 2 or x.shape[1] == 0:
        raise InputError(f"losses {name}: need [samples] or [seeds, samples], got {x.shape}")
    if not np.isfinite(x).all():
        row, sample = np.argwhere(~np.isfinite(x))[0]
        raise InputError(f"losses {name}: sample {sample} of row {row} is {x[row, sample]}")
    return x


def _point(value: float) -> Estimate:
    return Estimate(value, value, value)


def _ends(spread: Array) -> tuple[float, float]:
    """The percentiles that enclose all but OUTSIDE of a bootstrap distribution."""
    low, high = np.quantile(spread, [OUTSIDE / 2, 1 - OUTSIDE / 2])
    return float(low), float(high)


def _studentized(value: Array, error: Array, t: Array) -> tuple[Array, Array]:
    """Ends of the bootstrap-t interval of values [K] from t* [R, K]."""
    low, high = np.quantile(t, [OUTSIDE / 2, 1 - OUTSIDE / 2], axis=0, method="inverted_cdf")
    return value - error * high, value - error * low


def _half(error: Array, t: Array) -> Array:
    """Half the width of the symmetric bootstrap-t interval of values [K], from t* [R, K]."""
    return error * np.quantile(np.abs(t), 1 - OUTSIDE, axis=0, method="inverted_cdf")


def _p_value(value: float, error: float, t: Array) -> float:
    """Two-sided: the smallest OUTSIDE at which the symmetric interval of a value leaves out 0."""
    if error <= TINY:
        return float(abs(value) <= TINY)
    return (1 + int((np.abs(t) >= abs(value) / error).sum())) / (len(t) + 1)


def _mean(x: Array, repeats: int, seed: int) -> Estimate:
    """The mean of losses [n], its interval on the logarithmic scale where none is negative."""
    n, mean = len(x), float(x.mean())
    error = float(x.std()) / math.sqrt(n)
    if error <= TINY * abs(mean):
        return _point(mean)
    drawn = sums(np.stack([x, x * x], 1), repeats, seed)
    errors = np.sqrt(above_rounding(drawn[:, 1] - drawn[:, 0] ** 2, drawn[:, 1]) / n)
    if x.min() < 0:
        t = over(drawn[:, 0] - mean, errors)
        low, high = _studentized(np.array(mean), np.array(error), t)
        return Estimate(mean, float(low), float(high))
    with np.errstate(divide="ignore", invalid="ignore"):
        t = over(np.log(drawn[:, 0] / mean), errors / drawn[:, 0])
    low, high = _studentized(np.log(mean), np.array(error / mean), t)
    return Estimate(mean, exponential(float(low)), exponential(float(high)))


def _means(
    x: Array, y: Array, paired: bool, repeats: int, seed: int
) -> tuple[Estimate, Estimate, float]:
    """Difference and ratio of two means, and the p-value of the ratio where there is one."""
    mean_x, mean_y = float(x.mean()), float(y.mean())
    value = mean_x - mean_y
    t, error = difference_t(x, y, paired, repeats, seed)
    p = _p_value(value, error, t)
    half = float(_half(np.array(error), t))
    difference = Estimate(value, value - half, value + half)
    if min(mean_x, mean_y) <= 0:
        return difference, NOTHING, p
    if paired:
        ts, errors = paired_t(x[None] / mean_x, y / mean_y, repeats, seed)
        t, error = ts[:, 0], float(errors[0])
    else:
        t, error = unpaired_t(x / mean_x, y / mean_y, repeats, seed)
    ratio = mean_x / mean_y
    factor = exponential(float(_half(np.array(error), t)))
    p = _p_value(math.log(ratio), error, t)
    return difference, Estimate(ratio, ratio / factor, ratio * factor), p


def _middles(
    x: Array, y: Array, statistic: Statistic, paired: bool, repeats: int, seed: int
) -> tuple[Estimate, Estimate, float]:
    """Difference and ratio of medians or interquartile means, and the p-value."""
    a, b = (float(np.mean([statistic_of(row, statistic) for row in z])) for z in (x, y))
    a_drawn, b_drawn = (
        np.mean([resampled(row, statistic, repeats, number) for row in z], axis=0)
        for z, number in ((x, seed), (y, seed if paired else seed + 1))
    )
    gap = a_drawn - b_drawn
    beyond = 1 + min(int((gap >= 0).sum()), int((gap <= 0).sum()))
    p = min(1.0, 2 * beyond / (repeats + 1))
    difference = Estimate(a - b, *_ends(gap))
    if min(b, b_drawn.min()) <= 0:
        return difference, NOTHING, p
    return difference, Estimate(a / b, *_ends(a_drawn / b_drawn)), p


def _unpaired_better(x: Array, y: Array) -> float:
    """Share of pairs of any two samples in which x is smaller."""
    ordered = np.sort(y, axis=None)
    flat = x.ravel()
    at_most = np.searchsorted(ordered, flat, "right")
    below = np.searchsorted(ordered, flat, "left")
    return float(1 - (at_most + below).mean() / (2 * ordered.size))


def _variance_over_samples(pairs: Sequence[tuple[Array, Array]], repeats: int, seed: int) -> float:
    """Variance of the mean over cells and seeds of the log ratio, over resamples of samples."""
    total = np.zeros(repeats)
    for x, y in pairs:
        drawn = sums(np.concatenate([x, y]).T, repeats, seed)
        with np.errstate(divide="ignore"):
            logs = np.log(drawn[:, : len(x)]) - np.log(drawn[:, len(x) :])
        total += logs.mean(1) / len(pairs)
    return float(total[np.isfinite(total)].var())
