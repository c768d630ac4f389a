"""Novelty: whether samples are new, or copies of the data.

    authenticity   fraction of samples s that are further from their nearest real point r than r is
                   from the real point nearest to it (Alaa et al. 2022, 2102.08921, section 3.2)

Copies of the reference have 0, samples far from all data have 1. Fresh points of the data's own
distribution have c / (1 + c), where c is the part of a ball that lies outside another ball of the
same size around a point of its surface: 1/3 on a line, 0.38 on a plane, and towards 1/2 in many
dimensions. Copies are found of the images in the reference alone: to find copies of what a model
was trained on, name its training images as the reference.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

from torch import Tensor

from ..core.features import Reference
from .manifold import BLOCK, neighbour_radii, squared_distances
from .scores import NotMeasured, Samples, features_of
from .statistics import checked_features

_APART: WeakKeyDictionary[Reference, Tensor] = WeakKeyDictionary()
"""Squared distances [N] from the points of each reference in use to their nearest neighbours."""


def authenticity(samples: Samples, reference: Reference | None) -> float:
    """The fraction of authentic samples, see the top of this file."""
    features = features_of(reference)
    assert reference is not None
    if len(features) < 2:
        raise NotMeasured("the reference has one sample, which has no neighbour")
    real = checked_features(features, "real features", 2)
    made = checked_features(samples.features, "sample features", 1)
    center = real.mean(0)
    real, made = real - center, made - center
    if reference not in _APART:
        _APART[reference] = neighbour_radii(real, 1)
    apart, new = _APART[reference], 0
    for block in made.split(BLOCK):
        nearest, which = squared_distances(block, real).min(1)
        new += int((nearest > apart[which]).sum())
    return new / len(made)
