"""Metrics of lost modes and lost tails, for distributions that are known.

    modes     recall   fraction of the modes that get at least half of their due
              shift    1/2 sum_k |share_k - w_k|, the total variation of the modes' shares
    tail_99, tail_999
              quantile of |f - m| at 99 % (99.9 %) over that of the reference; m is the reference's
              median, coordinate by coordinate. Below 1 the tail is lost, above 1 it is too heavy
    mmd       maximum mean discrepancy (Gretton et al. 2012), the unbiased estimate of its square,
              with k(x, y) = mean over c of exp(-|x - y|^2 / (2 c^2 h^2)), c = 1/4, 1, 4, where h is
              the median distance in the reference

Modes come with the reference; a mode counts if DUE of its samples are expected. A Gaussian kernel
is bounded, so that `mmd` and quantiles need no moments of the distribution: they measure heavy
tails where a Fréchet distance and a polynomial kernel cannot.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..core.features import Reference
from .scores import NotMeasured, Samples, features_of

DUE = 5.0
"""Expected samples that a mode needs in order to count."""

BEYOND = 5
"""Samples that a quantile needs beyond it."""

MOST = 1000
"""Samples of each side that the kernel is taken of; their matrix has as many rows."""

WIDTHS = (0.25, 1.0, 4.0)
"""Widths of the kernels, in median distances of the reference."""


def modes(samples: Samples, reference: Reference | None) -> Mapping[str, float]:
    """Recall and shift of the modes, see the top of this file."""
    if reference is None or reference.modes is None:
        raise NotMeasured("the modes of the reference are not known")
    weights, count = reference.modes.weights, len(samples.features)
    counted = weights * count >= DUE
    if not bool(counted.any()):
        raise NotMeasured(f"{count} samples are too few: no mode expects {DUE:g} of them")
    found = torch.bincount(reference.modes.of(samples.features), minlength=len(weights)) / count
    kept = found >= weights / 2
    return {
        "recall": float(kept[counted].double().mean()),
        "shift": float((found - weights).abs().sum() / 2),
    }


def tail_99(samples: Samples, reference: Reference | None) -> float:
    """The ratio of the distances from the middle that one sample in 100 exceeds."""
    return _tail(samples, reference, 0.99)


def tail_999(samples: Samples, reference: Reference | None) -> float:
    """The ratio of the distances from the middle that one sample in 1000 exceeds."""
    return _tail(samples, reference, 0.999)


def mmd(samples: Samples, reference: Reference | None) -> float:
    """The unbiased squared discrepancy, see the top of this file; it can be below 0."""
    y, x = features_of(reference).double()[:MOST], samples.features.double()[:MOST]
    if min(len(x), len(y)) < 2:
        raise NotMeasured("it needs at least 2 samples and 2 of the reference")
    apart = torch.cdist(y, y)
    upper = torch.triu(torch.ones_like(apart, dtype=torch.bool), 1)
    h = float(apart[upper].median())
    if h == 0:
        raise NotMeasured("more than half of the reference's samples are equal")
    inside = _kernel(apart, h).fill_diagonal_(0).sum() / (len(y) * (len(y) - 1))
    own = _kernel(torch.cdist(x, x), h).fill_diagonal_(0).sum() / (len(x) * (len(x) - 1))
    return float(inside + own - 2 * _kernel(torch.cdist(x, y), h).mean())


def _kernel(distance: Tensor, h: float) -> Tensor:
    scaled = (distance / h).square()
    return torch.stack([torch.exp(-scaled / (2 * c**2)) for c in WIDTHS]).mean(0)


def _tail(samples: Samples, reference: Reference | None, level: float) -> float:
    y, x = features_of(reference).double(), samples.features.double()
    least = round(BEYOND / (1 - level))
    if min(len(x), len(y)) < least:
        raise NotMeasured(
            f"a quantile at {level:.1%} needs {least} samples and as many in the reference, there "
            f"are {len(x)} and {len(y)}"
        )
    middle = y.median(0).values
    ours, theirs = (torch.quantile((f - middle).norm(dim=1), level) for f in (x, y))
    if float(theirs) == 0:
        raise NotMeasured("the reference's quantile is 0")
    return float(ours / theirs)
