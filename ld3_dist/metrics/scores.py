"""Metrics by name: an entry turns features of samples and a reference into one or several numbers.

    fid                 Fréchet distance to the reference's moments
    kid                 kernel distance, and its standard deviation `kid_std`
    precision, recall, density, coverage
                        overlap with the reference's features, ball by ball
    inception_score     from the extractor's class scores; needs no reference
    clip_score:DIR, pick_score:DIR, hpsv2:DIR, image_reward:DIR, aesthetic:DIR
                        images and their prompts (`judges`); columns metric.clip_score, …
    distance:NAME       another distance to the teacher (`of_samples`); column metric.distance.NAME
    modes, tail_99, tail_999, mmd
                        lost modes and tails of a known distribution (`modes_and_tails`); they are
                        not measured unless they are asked for
    authenticity        samples that are no copies of the reference (`novelty`); likewise

A user's own is registered, or named `python:FILE.py:NAME`:

    @metrics.register("mean_gap")
    def mean_gap(samples: Samples, reference: Reference | None) -> float:
        if reference is None:
            raise NotMeasured("there is no reference")
        return float((samples.features.mean(0) - reference.moments.mean).norm())

Its column is `metric.mean_gap`; one that returns {"a": …, "b": …} fills `metric.mean_gap.a` and
`metric.mean_gap.b`. The columns of the built-in metrics bear their names alone.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from torch import Tensor

from ..core.errors import InputError
from ..core.features import FeatureMoments, Reference
from ..core.registry import Registry
from .inception import inception_score
from .kernel import Sums, kernel_distance
from .manifold import DENSITY_NEIGHBOURS, PRECISION_NEIGHBOURS, Overlap, RealBalls, overlap
from .of_samples import sample_metric
from .statistics import FeatureStatistics, frechet_distance

log = logging.getLogger("ld3_dist")

BUILT_IN = ("fid", "kid", "precision", "recall", "density", "coverage", "inception_score")
SCORES = ("fid", "kid", "kid_std", *BUILT_IN[2:])
"""The columns of the built-in metrics."""


class NotMeasured(Exception):
    """A metric says why it has no value here; the table then has null."""


@dataclass(frozen=True, eq=False)
class Samples:
    """The samples as a metric sees them.

    features: [M, F], float32 or float64.
    class_scores: logits [M, classes], where the extractor is a classifier.
    seed: of random subsets.
    shared: results that several metrics use, with the reference that they belong to.
    """

    features: Tensor
    class_scores: Tensor | None = None
    seed: int = 0
    shared: dict[str, tuple[Reference, Overlap]] = field(default_factory=dict)


@dataclass(frozen=True)
class Scores:
    """Values by column, None where there is none, and the reason for every None."""

    values: dict[str, float | None]
    reasons: dict[str, str]


Metric = Callable[[Samples, Reference | None], float | Mapping[str, float]]
"""(samples, reference) -> a number, or several by name; raises NotMeasured with the reason."""

_BALLS: WeakKeyDictionary[Reference, RealBalls] = WeakKeyDictionary()
"""The balls of each reference that is in use: finding them costs more than comparing with them."""

_SUMS: WeakKeyDictionary[Reference, Sums] = WeakKeyDictionary()
"""Likewise the kernel's sums within each reference."""

metrics: Registry[Metric] = Registry("metric", ("clip_score:DIR", "python:FILE.py:NAME"))


def score(
    samples: Samples | Tensor,
    reference: Reference | FeatureMoments | Tensor | None,
    names: Sequence[str] = BUILT_IN,
) -> Scores:
    """The metrics of these names, for samples (or their features [M, F]).

    A reference is given as such, as moments, or as features [N, F]; None where there is none.
    A value that is not finite is None. So is a value of a user's metric that raises anything but
    InputError; that is logged as a warning.

    Raises InputError for an unknown name, features that are not finite, and too few samples.
    """
    given = samples if isinstance(samples, Samples) else Samples(samples)
    known = as_reference(reference)
    values: dict[str, float | None] = {}
    reasons: dict[str, str] = {}
    for name in names:
        found, reason = _measure(name, given, known)
        for column, value in found.items():
            finite = value is not None and math.isfinite(value)
            values[column] = value if finite else None
            if not finite:
                reasons[column] = reason or f"it is {value}"
    return Scores(values, reasons)


def as_reference(reference: Reference | FeatureMoments | Tensor | None) -> Reference | None:
    """A Reference from moments alone or from features [N, F]."""
    if isinstance(reference, FeatureMoments):
        return Reference(reference)
    if isinstance(reference, Tensor):
        return Reference(FeatureStatistics.of(reference).moments, reference)
    return reference


def find_metric(name: str) -> Metric:
    """The metric of a name, those that are means over samples among them.

    Raises InputError for an unknown name.
    """
    return metrics.get(name) if sample_metric(name) is None else _of_samples


def metric_columns(name: str) -> tuple[str, ...]:
    """The columns of a built-in metric; for a user's own, the one that a single number goes to."""
    if name == "kid":
        return ("kid", "kid_std")
    return (name,) if name in BUILT_IN else (f"metric.{sample_metric(name) or _short(name)}",)


def _measure(
    name: str, samples: Samples, reference: Reference | None
) -> tuple[Mapping[str, float | None], str]:
    """Values by column, and the reason where they are None."""
    metric, columns = find_metric(name), metric_columns(name)
    try:
        found = metric(samples, reference)
        if isinstance(found, Mapping):
            prefix = "" if name in BUILT_IN else f"{columns[0]}."
            return {f"{prefix}{key}": float(value) for key, value in found.items()}, ""
        return {columns[0]: float(found)}, ""
    except NotMeasured as error:
        return dict.fromkeys(columns), str(error)
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001, a user's code must not cost the others' values
        reason = f"{type(error).__name__}: {error}"
        log.warning("metric %r fails and is left empty (%s)", name, reason)
        return dict.fromkeys(columns), reason


def _of_samples(samples: Samples, reference: Reference | None) -> float:
    """A metric that is a mean over samples, and has no value from their features."""
    raise NotMeasured("it looks at the samples themselves; a judge needs its weights: NAME:DIR")


def _short(name: str) -> str:
    """The last part of `python:FILE.py:NAME`, and any other name as it is."""
    return name.rpartition(":")[2]


for _name in ("modes", "tail_99", "tail_999", "mmd"):
    metrics.register(_name, lazily=f"ld3_dist.metrics.modes_and_tails:{_name}")
metrics.register("authenticity", lazily="ld3_dist.metrics.novelty:authenticity")


@metrics.register("fid")
def _fid(samples: Samples, reference: Reference | None) -> float:
    _finite(reference, 2, "a Fréchet distance compares variances")
    moments = _needed(reference).moments
    return frechet_distance(moments, FeatureStatistics.of(samples.features).moments)


@metrics.register("kid")
def _kid(samples: Samples, reference: Reference | None) -> Mapping[str, float]:
    _finite(reference, 3, "the kernel is cubic")
    known = _SUMS.setdefault(_needed(reference), {})
    features = features_of(reference)
    found = kernel_distance(features, samples.features, seed=samples.seed, known=known)
    return {"kid": found.mean, "kid_std": found.std}


@metrics.register("precision")
def _precision(samples: Samples, reference: Reference | None) -> float:
    return _overlap(samples, reference).precision


@metrics.register("recall")
def _recall(samples: Samples, reference: Reference | None) -> float:
    return _overlap(samples, reference).recall


@metrics.register("density")
def _density(samples: Samples, reference: Reference | None) -> float:
    return _overlap(samples, reference).density


@metrics.register("coverage")
def _coverage(samples: Samples, reference: Reference | None) -> float:
    return _overlap(samples, reference).coverage


@metrics.register("inception_score")
def _inception_score(samples: Samples, reference: Reference | None) -> float:
    if samples.class_scores is None:
        raise NotMeasured("the extractor has no class scores")
    return inception_score(samples.class_scores)


def _overlap(samples: Samples, reference: Reference | None) -> Overlap:
    given, features = _needed(reference), features_of(reference)
    least = max(PRECISION_NEIGHBOURS, DENSITY_NEIGHBOURS) + 1
    if min(len(samples.features), len(features)) < least:
        raise NotMeasured(
            f"it needs {least} samples and as many in the reference, there are "
            f"{len(samples.features)} and {len(features)}"
        )
    kept = samples.shared.get("overlap")
    if kept is None or kept[0] is not given:
        if given not in _BALLS:
            _BALLS[given] = RealBalls.of(features)
        kept = samples.shared["overlap"] = given, overlap(_BALLS[given], samples.features)
    return kept[1]


def _needed(reference: Reference | None) -> Reference:
    if reference is None:
        raise NotMeasured("there is no reference")
    return reference


def _finite(reference: Reference | None, power: int, why: str) -> None:
    """Raise NotMeasured if the distribution has no finite moment of this power."""
    order = _needed(reference).finite_moments
    if order <= power:
        raise NotMeasured(
            f"{why}, and the distribution has finite moments below the power {order:g} alone"
        )


def features_of(reference: Reference | None) -> Tensor:
    """Features of the reference's images one by one, [N, F]; raises NotMeasured without them."""
    features = _needed(reference).features
    if features is None:
        raise NotMeasured("the reference has moments alone; it needs images")
    return features
