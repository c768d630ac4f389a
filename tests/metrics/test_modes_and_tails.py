"""Lost modes and lost tails: a metric sees what was taken away, and says when it cannot."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ld3_dist.core.features import FeatureMoments, Modes, Reference
from ld3_dist.metrics.scores import Samples, score
from ld3_dist.metrics.statistics import FeatureStatistics

NAMES = ("modes", "tail_99", "tail_999", "mmd")


def draw(count: int, seed: int, kept: int = 4) -> Tensor:
    """Samples of `kept` of four Gaussians at (10 k, 0)."""
    generator = torch.Generator().manual_seed(seed)
    k = torch.randint(0, kept, (count,), generator=generator)
    x = torch.randn(count, 2, generator=generator)
    x[:, 0] += 10.0 * k
    return x


def nearest(f: Tensor) -> Tensor:
    return (f[:, 0] / 10).round().long().clamp(0, 3)


def reference(order: float = math.inf, modes: bool = True) -> Reference:
    features = draw(6000, 1)
    moments = FeatureStatistics.of(features).moments
    known = Modes(nearest, torch.full((4,), 0.25, dtype=torch.float64)) if modes else None
    return Reference(moments, features, "known", known, order)


def test_samples_of_the_distribution_itself_are_faultless() -> None:
    found = score(Samples(draw(6000, 2)), reference(), NAMES).values
    assert found["metric.modes.recall"] == 1
    assert found["metric.modes.shift"] == pytest.approx(0, abs=0.03)
    assert found["metric.tail_99"] == pytest.approx(1, abs=0.03)
    assert found["metric.tail_999"] == pytest.approx(1, abs=0.05)
    assert found["metric.mmd"] == pytest.approx(0, abs=0.003)


def test_lost_modes_are_counted() -> None:
    found = score(Samples(draw(2000, 2, kept=3)), reference(), ("modes", "mmd")).values
    assert found["metric.modes.recall"] == 0.75
    assert found["metric.modes.shift"] == pytest.approx(0.25, abs=0.01)
    assert (found["metric.mmd"] or 0) > 0.01


def test_shrunken_tails_are_seen() -> None:
    known, near = reference(), draw(2000, 2)
    assert known.features is not None
    middle = known.features.median(0).values
    shrunken = Samples(middle + 0.5 * (near - middle))
    found = score(shrunken, known, ("tail_99",)).values
    assert found["metric.tail_99"] == pytest.approx(0.5, abs=0.05)


def test_what_cannot_be_measured_is_null_with_its_reason() -> None:
    few = score(Samples(draw(100, 2)), reference(modes=False), NAMES)
    assert few.values == {
        "metric.modes": None,
        "metric.tail_99": None,
        "metric.tail_999": None,
        "metric.mmd": few.values["metric.mmd"],
    }
    assert few.reasons["metric.modes"] == "the modes of the reference are not known"
    assert "needs 500 samples" in few.reasons["metric.tail_99"]
    assert score(Samples(draw(100, 2)), None, ("mmd",)).values == {"metric.mmd": None}


def test_scores_that_need_moments_are_null_where_there_are_none() -> None:
    found = score(Samples(draw(200, 2)), reference(order=2.0), ("fid", "kid", "mmd"))
    assert found.values["fid"] is None
    assert found.values["kid"] is None
    assert found.values["metric.mmd"] is not None
    assert "compares variances" in found.reasons["fid"]
    three = score(Samples(draw(200, 2)), reference(order=3.0), ("fid", "kid"))
    assert three.values["fid"] is not None
    assert three.values["kid"] is None


def test_mmd_is_the_sum_over_all_pairs() -> None:
    x, y = draw(7, 3).double(), draw(9, 4).double()
    known = Reference(FeatureMoments(torch.zeros(2), torch.eye(2)), y)
    h = torch.pdist(y).median()
    k = lambda a, b: sum(
        math.exp(-float((a - b).square().sum()) / (2 * (c * float(h)) ** 2)) for c in (0.25, 1, 4)
    ) / 3  # fmt: skip
    within = lambda z: sum(k(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j)
    between = sum(k(a, b) for a in x for b in y)
    expected = within(x) / (7 * 6) + within(y) / (9 * 8) - 2 * between / 63
    found = score(Samples(x), known, ("mmd",)).values["metric.mmd"]
    assert found == pytest.approx(float(expected), rel=1e-5)
