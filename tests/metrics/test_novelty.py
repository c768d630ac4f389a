"""Authenticity against its definition, point by point."""

from __future__ import annotations

import math

import pytest
import torch

from ld3_dist.core.features import Reference
from ld3_dist.metrics.scores import Samples, as_reference, metrics, score
from ld3_dist.metrics.statistics import FeatureStatistics


def draw(count: int, features: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, features, generator=torch.Generator().manual_seed(seed))


def of(samples: torch.Tensor, real: torch.Tensor) -> float | None:
    return score(Samples(samples), as_reference(real), ["authenticity"]).values[
        "metric.authenticity"
    ]


def test_every_sample_is_judged_as_defined() -> None:
    real, samples = draw(40), draw(30, seed=1)
    new = 0
    for s in samples.double():
        gaps = [float((s - r).norm()) for r in real.double()]
        r = min(range(len(real)), key=gaps.__getitem__)
        others = [float((real[r].double() - q).norm()) for q in real.double() if q is not real[r]]
        new += gaps[r] > sorted(others)[1]  # the first is r itself
    assert of(samples, real) == new / 30


def test_sets_scored_one_after_the_other_do_not_touch_each_other() -> None:
    real, sets = draw(60, 2), [draw(30, 2, seed) for seed in (1, 2)]
    shared = as_reference(real)
    found = [score(Samples(one), shared, ["authenticity"]).values for one in (*sets, *sets)]
    alone = [{"metric.authenticity": of(one, real)} for one in sets]
    assert found == alone * 2
    other = score(Samples(sets[0]), as_reference(real[:20]), ["authenticity"]).values
    assert other == {"metric.authenticity": of(sets[0], real[:20])}


def test_copies_are_found_and_strangers_are_new() -> None:
    real = draw(3000, 2)
    assert of(real[:50], real) == 0
    assert of(real[:50] + 100, real) == 1
    half = of(torch.cat([real[:1000], draw(1000, 2, seed=2)]), real)
    assert half == pytest.approx(0.3785 / 2, abs=0.02)


@pytest.mark.parametrize(
    ("features", "outside"), [(1, 1 / 2), (2, 1 / 3 + math.sqrt(3) / (2 * math.pi))]
)
def test_fresh_points_have_what_geometry_says(features: int, outside: float) -> None:
    """Points of a Poisson process: the nearest one, at distance u, has no other within u with
    probability exp(-outside * v), where v is the volume of its ball and has the density exp(-v).
    """
    fresh = of(draw(2000, features, seed=1), draw(4000, features))
    assert fresh == pytest.approx(outside / (1 + outside), abs=0.04)


def test_without_samples_one_by_one_it_is_null_with_the_reason() -> None:
    moments = Reference(FeatureStatistics.of(draw(20)).moments)
    for reference, reason in ((None, "no reference"), (moments, "moments alone")):
        found = score(Samples(draw(20)), reference, ["authenticity"])
        assert found.values == {"metric.authenticity": None}
        assert reason in found.reasons["metric.authenticity"]
    assert "authenticity" in metrics
