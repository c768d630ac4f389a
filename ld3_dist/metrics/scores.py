"""All scores of one set of features against another, with the column names of the evaluations
table.
"""

from __future__ import annotations

from torch import Tensor

from .kernel import kernel_distance
from .manifold import DENSITY_NEIGHBOURS, PRECISION_NEIGHBOURS, overlap
from .statistics import FeatureMoments as FeatureMoments
from .statistics import FeatureStatistics, frechet_distance

SCORES = ("fid", "kid", "kid_std", "precision", "recall", "density", "coverage")


def score(
    features: Tensor,
    reference: Tensor | FeatureMoments,
    seed: int = 0,
    moments: FeatureMoments | None = None,
) -> dict[str, float | None]:
    """Features of samples [M, F] against a reference's features [N, F], or its moments -> every one
    of SCORES.

    `moments` are of a larger set that the reference's features are drawn from: the Fréchet distance
    is to them.

    None is what cannot be measured: all but the Fréchet distance where the reference is moments
    alone, the overlaps where a set is no larger than the number of neighbours they look at. The
    kernel distance's subsets depend on `seed`. Raises InputError for fewer than 2 samples and for
    features that are not finite."""
    found: dict[str, float | None] = dict.fromkeys(SCORES)
    own = FeatureStatistics.of(features).moments
    if isinstance(reference, FeatureMoments):
        return found | {"fid": frechet_distance(reference, own)}
    found["fid"] = frechet_distance(moments or FeatureStatistics.of(reference).moments, own)
    kernel = kernel_distance(reference, features, seed=seed)
    found |= {"kid": kernel.mean, "kid_std": kernel.std}
    if min(len(features), len(reference)) > max(PRECISION_NEIGHBOURS, DENSITY_NEIGHBOURS):
        shared = overlap(reference, features)
        found |= {"precision": shared.precision, "recall": shared.recall}
        found |= {"density": shared.density, "coverage": shared.coverage}
    return found
