"""Mean and covariance of features, gathered in pieces, and the Fréchet distance between two
Gaussians.

Pieces (n_a, m_a, S_a), (n_b, m_b, S_b), with S = sum (x - m)(x - m)^T, merge exactly (Chan et al.
1979):

    n = n_a + n_b,   d = m_b - m_a,   m = m_a + d n_b / n,   S = S_a + S_b + d d^T n_a n_b / n

in float64, without the cancellation of sums of squares. The Fréchet distance (Heusel et al. 2017,
1706.08500):

    |m_a - m_b|^2 + tr C_a + tr C_b - 2 tr (C_a C_b)^(1/2)
    tr (C_a C_b)^(1/2) = |C_a^(1/2) C_b^(1/2)|_*

The trace is taken as a sum of singular values (the nuclear norm): unlike the square root of a
product that is nearly singular, it is accurate when there are fewer samples than features.

How much the distance of a set of samples x_i to moments (m_b, C_b) depends on the draw follows from
its derivative by the moments. With T the optimal map between the Gaussians, C_b = T C_a T, a sample
moves the distance by 1/n times

    h_i = 2 (x_i - m_a) . (m_a - m_b) + (x_i - m_a)^T (1 - T) (x_i - m_a) - tr (1 - T) C_a
    T = C_b^(1/2) (C_b^(1/2) C_a C_b^(1/2))^(-1/2) C_b^(1/2)

and the standard error is the standard deviation of h over n^(1/2) (the delta method; the derivative
of the trace is in Bhatia, Jain and Lim 2019, section 4)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from ..core.errors import InputError
from ..core.features import FeatureMoments
from .paired import NOTHING, Estimate
from .resampling import exponential

NORMAL = 1.96
"""Standard errors from the value to the ends of a 95 % interval."""


def checked_features(features: Tensor, what: str = "features", at_least: int = 1) -> Tensor:
    """features [N, F] as float64 on the CPU; InputError for another shape, too few samples or
    numbers not finite.
    """
    if features.ndim != 2 or features.shape[1] == 0:
        raise InputError(f"{what}: need [samples, features], got shape {tuple(features.shape)}")
    if len(features) < at_least:
        raise InputError(
            f"{what}: {len(features)} samples are too few, need at least {at_least}; draw more "
            f"samples"
        )
    bad = ~torch.isfinite(features).all(1)
    if bad.any():
        raise InputError(
            f"{what}: sample {int(bad.nonzero()[0, 0])} has features that are not finite"
        )
    return features.detach().cpu().double()


def read_moments(path: str | Path) -> FeatureMoments:
    """Moments from an npz file with `mu` [F] and `sigma` [F, F], as EDM publishes them.

    Raises InputError for a file that is missing or is none.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return FeatureMoments(torch.from_numpy(arrays["mu"]), torch.from_numpy(arrays["sigma"]))
    except FileNotFoundError:
        raise InputError(f"reference statistics {path}: no such file") from None
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"reference statistics {path}: need an npz with mu and sigma ({reason})"
        ) from error


@dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """Count, mean [F] and scatter [F, F] of the features seen so far; a value: update and merge
    make new ones.
    """

    n: int
    mean: Tensor
    scatter: Tensor

    @staticmethod
    def of(features: Tensor) -> FeatureStatistics:
        """Statistics of features [N, F]."""
        x = checked_features(features)
        mean = x.mean(0)
        centered = x - mean
        return FeatureStatistics(len(x), mean, centered.T @ centered)

    @staticmethod
    def empty(size: int) -> FeatureStatistics:
        """Statistics of nothing yet, for features of the given size."""
        return FeatureStatistics(
            0, torch.zeros(size, dtype=torch.float64), torch.zeros(size, size, dtype=torch.float64)
        )

    def merge(self, other: FeatureStatistics) -> FeatureStatistics:
        """Statistics of both sets together. The order of merging shows in the last bits only; merge
        in a fixed one.
        """
        if self.mean.shape != other.mean.shape:
            raise InputError(
                f"cannot merge statistics of {len(self.mean)} and of {len(other.mean)} features"
            )
        n = self.n + other.n
        if n == 0:
            return self
        d = other.mean - self.mean
        scatter = self.scatter + other.scatter + torch.outer(d, d) * (self.n * other.n / n)
        return FeatureStatistics(n, self.mean + d * (other.n / n), scatter)

    def update(self, features: Tensor) -> FeatureStatistics:
        """Statistics with the features [N, F] added."""
        return self.merge(FeatureStatistics.of(features))

    @property
    def moments(self) -> FeatureMoments:
        """Mean and unbiased covariance; InputError for fewer than 2 samples."""
        if self.n < 2:
            raise InputError(
                f"a covariance needs at least 2 samples, got {self.n}; draw more samples"
            )
        return FeatureMoments(self.mean, self.scatter / (self.n - 1))


def frechet_distance(a: FeatureMoments, b: FeatureMoments) -> float:
    """Squared Fréchet (2-Wasserstein) distance of the Gaussians with these moments."""
    if a.mean.shape != b.mean.shape:
        raise InputError(
            f"cannot compare {len(a.mean)} features with {len(b.mean)}: two different extractors?"
        )
    overlap = torch.linalg.svdvals(a.root @ b.root).sum()
    spread = a.covariance.trace() + b.covariance.trace() - 2 * overlap
    return max(0.0, ((a.mean - b.mean).square().sum() + spread).item())


def frechet_parts(features: Tensor, reference: FeatureMoments) -> Tensor | None:
    """The part of a Fréchet distance that each sample adds, the distance + h_i: float64 [N].

    Their mean is the distance and their spread tells its interval; two sets of samples from the
    same noise compare part by part. None with fewer samples than twice the features, where the
    derivative says little.

    Args:
        features: of the samples, [N, F].
        reference: moments of the same F features.

    Raises InputError for another number of features, and for features that are not finite.
    """
    known = FeatureStatistics.of(features)
    if known.n < 2 * features.shape[1]:
        return None
    value = frechet_distance(known.moments, reference)
    centered = checked_features(features) - known.mean
    root = reference.root
    values, vectors = torch.linalg.eigh(root @ known.moments.covariance @ root)
    there = values > values.max() * len(values) * torch.finfo(values.dtype).eps
    inverse = (vectors[:, there] / values[there].sqrt()) @ vectors[:, there].T
    gap = torch.eye(len(root), dtype=root.dtype) - root @ inverse @ root
    moves = 2 * centered @ (known.mean - reference.mean) + ((centered @ gap) * centered).sum(1)
    return value + moves - moves.mean()


def interval_of_parts(parts: Tensor) -> Estimate:
    """A Fréchet distance from its parts [N], with its 95 % interval over other samples.

    It is the interval of the distance of *so many* samples, which is larger than that of infinitely
    many; the reference counts as known.
    """
    value = parts.mean().item()
    half = NORMAL * parts.std().item() / len(parts) ** 0.5
    return Estimate(value, max(0.0, value - half), value + half)


def ratio_of_parts(ours: Tensor, others: Tensor) -> Estimate:
    """A Fréchet distance over another, from parts [N] of samples from the same noise.

    With x_i and y_i the parts, x and y their means, se^2 = 1/n mean (x_i / x - y_i / y)^2 is the
    squared standard error of log x - log y.
    """
    x, y = ours.mean(), others.mean()
    if not (x > 0 and y > 0):
        return NOTHING
    error = ((ours / x - others / y).square().mean() / len(ours)).sqrt().item()
    value = (x / y).item()
    wide = exponential(NORMAL * error)
    return Estimate(value, value / wide, value * wide)
