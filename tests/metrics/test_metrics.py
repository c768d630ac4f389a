"""Metrics against closed forms, brute force, and independent implementations."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor, nn

from ld3_dist.core.errors import InputError
from ld3_dist.core.features import FeatureMoments
from ld3_dist.metrics import kernel
from ld3_dist.metrics.kernel import kernel_distance, squared_mmd
from ld3_dist.metrics.manifold import neighbour_radii, overlap, squared_distances
from ld3_dist.metrics.scores import SCORES, Samples, as_reference, score
from ld3_dist.metrics.statistics import (
    FeatureStatistics,
    frechet_distance,
    frechet_parts,
    interval_of_parts,
    ratio_of_parts,
    read_moments,
)


def normal(seed: int, n: int, size: int = 6) -> Tensor:
    return torch.randn(n, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def zero(size: int) -> Tensor:
    return torch.zeros(size, dtype=torch.float64)


def moments(x: Tensor) -> FeatureMoments:
    return FeatureStatistics.of(x).moments


def test_statistics_equal_numpy_however_they_are_cut() -> None:
    x = normal(0, 101) * 3 + 1e6  # a large mean is where sums of squares lose their digits
    whole = FeatureStatistics.of(x)
    assert torch.allclose(
        whole.moments.covariance, torch.from_numpy(np.cov(x.numpy() - 1e6, rowvar=False)), rtol=1e-8
    )
    for cuts in ([1, 100], [50, 51], [30, 30, 30, 11]):
        merged = FeatureStatistics.empty(6)
        for part in x.split(cuts):
            merged = merged.merge(FeatureStatistics.of(part))
        assert merged.n == 101
        assert torch.allclose(merged.mean, whole.mean, rtol=1e-14)
        assert torch.allclose(merged.moments.covariance, whole.moments.covariance, rtol=1e-8)
    updated = FeatureStatistics.of(x[:40]).update(x[40:].float().double())
    assert updated.n == 101
    empty = FeatureStatistics.empty(6)
    assert empty.merge(empty).n == 0


def test_frechet_of_gaussians_in_closed_form() -> None:
    s, r = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([3.0, 0.1, 0.0])
    m = torch.tensor([1.0, -1.0, 0.5])
    a, b = FeatureMoments(torch.zeros(3), torch.diag(s**2)), FeatureMoments(m, torch.diag(r**2))
    expected = (m**2).sum() + ((s - r) ** 2).sum()  # commuting covariances
    assert frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-6)
    assert frechet_distance(b, a) == pytest.approx(expected.item(), rel=1e-6)
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-12)


def test_frechet_of_general_covariances_equals_the_matrix_square_root() -> None:
    x, y = normal(0, 200) @ normal(2, 6), normal(1, 300) @ normal(3, 6) + 1
    a, b = moments(x), moments(y)
    root = scipy.linalg.sqrtm(a.covariance.numpy() @ b.covariance.numpy()).real
    trace = a.covariance.trace() + b.covariance.trace() - 2 * np.trace(root)
    expected = ((a.mean - b.mean) ** 2).sum() + trace
    assert frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-9)


def test_the_interval_of_a_frechet_distance_in_one_dimension_is_the_closed_form() -> None:
    """The distance is (m - m_b)^2 + (s - s_b)^2; mean and variance of a normal are independent."""
    n, m, s = 100_000, 0.7, 1.5
    parts = frechet_parts(m + s * normal(0, n, 1), FeatureMoments(zero(1), torch.eye(1)))
    assert parts is not None
    found = interval_of_parts(parts)
    error = (4 * m**2 * s**2 / n + (1 - 1 / s) ** 2 * 2 * s**4 / n) ** 0.5
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * error, rel=0.02)


@pytest.mark.parametrize(("shift", "scale"), [(0.3, 0.8), (0.05, 1.0), (0.5, 1.5)])
def test_the_interval_of_a_frechet_distance_has_the_spread_of_other_samples(
    shift: float, scale: float
) -> None:
    """The spread of the distances of many sets of samples is that which one of them predicts."""
    reference = FeatureMoments(zero(8), torch.diag(torch.logspace(0, -2, 8)))
    sets = [shift + scale * normal(seed, 400, 8) @ reference.root for seed in range(200)]
    found = [interval_of_parts(frechet_parts(x, reference)) for x in sets]
    assert found[0].value == pytest.approx(frechet_distance(moments(sets[0]), reference))
    spread = np.std([one.value for one in found])
    predicted = np.mean([one.high - one.low for one in found]) / 2 / 1.96
    assert predicted == pytest.approx(spread, rel=0.15)


def test_a_frechet_distance_of_few_samples_has_no_interval() -> None:
    reference = FeatureMoments(zero(8), torch.eye(8))
    assert frechet_parts(normal(0, 15, 8), reference) is None
    assert frechet_parts(normal(0, 16, 8), reference) is not None


def test_distances_from_the_same_noise_compare_more_surely_than_each_is_known() -> None:
    """The spread of the ratio over many sets is what one of them predicts from its parts."""
    reference = FeatureMoments(zero(4), torch.eye(4))
    found, alone = [], []
    for seed in range(200):
        noise = normal(seed, 400, 4)
        a, b = (frechet_parts(x, reference) for x in (noise * 0.8 + 0.30, noise * 0.78 + 0.33))
        found.append(ratio_of_parts(a, b))
        alone.append(interval_of_parts(a))
    spread = np.std([math.log(one.value) for one in found])
    predicted = np.mean([math.log(one.high / one.value) for one in found]) / 1.96
    assert predicted == pytest.approx(spread, rel=0.15)
    apart = np.std([math.log(one.value) for one in alone])
    assert spread < apart / 5


def test_frechet_is_accurate_with_fewer_samples_than_features() -> None:
    x = normal(0, 10, 64)
    assert frechet_distance(moments(x), moments(x)) == pytest.approx(0.0, abs=1e-10)
    assert frechet_distance(moments(x), moments(x + 1)) == pytest.approx(64.0, rel=1e-10)
    scaled = frechet_distance(moments(x), moments(x.mean(0) + 3 * (x - x.mean(0))))
    assert scaled == pytest.approx(4 * moments(x).covariance.trace().item(), rel=1e-10)


def test_kernel_distance_by_brute_force() -> None:
    x, y = normal(0, 7, 3), normal(1, 7, 3) + 0.5

    def k(a: Tensor, b: Tensor) -> float:
        return (float(a @ b) / 3 + 1) ** 3

    within = sum(k(s[i], s[j]) for s in (x, y) for i in range(7) for j in range(7) if i != j) / 42
    between = sum(k(a, b) for a in x for b in y) / 49
    whole = kernel_distance(x, y)
    assert whole.mean == pytest.approx(within - 2 * between, rel=1e-12)
    assert whole.std == pytest.approx(0.0, abs=1e-12)
    more = (
        torch.cat([normal(2, 3, 3), x]),
        torch.cat([y, normal(3, 5, 3)]),
    )  # the same subsets of larger sets
    w_x, w_y = torch.zeros(10, 2).double(), torch.zeros(12, 2).double()
    w_x[3:], w_y[:7] = 1, 1
    assert squared_mmd(*more, w_x, w_y).tolist() == pytest.approx([whole.mean] * 2, rel=1e-12)


def test_kernel_distance_is_unbiased_and_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = normal(0, 600), normal(1, 500)
    same = kernel_distance(x, y, subset_size=100)
    assert abs(same.mean) < 3 * same.std / math.sqrt(5)  # about five disjoint subsets
    assert kernel_distance(x, y, subset_size=100, seed=1) == kernel_distance(
        x, y, subset_size=100, seed=1
    )
    assert kernel_distance(x, y, subset_size=100, seed=2) != same
    assert kernel_distance(x, y + 1, subset_size=100).mean > 10 * same.std
    monkeypatch.setattr("ld3_dist.metrics.kernel.POOL", 300)
    assert abs(kernel_distance(x, y, subset_size=100).mean) < 3 * same.std / math.sqrt(3)


class Identity(nn.Module):
    num_features = 6

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


def test_the_sums_within_a_reference_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(3)
    reference, *sets = (torch.randn(n, 4, generator=generator) for n in (300, 40, 40, 50))
    expected = [kernel_distance(reference, x) for x in sets]
    made = []
    within = kernel._within
    monkeypatch.setattr(kernel, "_within", lambda x, w: made.append(len(x)) or within(x, w))
    known: kernel.Sums = {}
    assert [kernel_distance(reference, x, known=known) for x in sets] == expected
    assert made == [300, 40, 40, 300, 50]  # 50 samples have other subsets of the reference
    made.clear()
    whole = as_reference(reference)
    scores = [score(x, whole, ["kid"]).values for x in sets[:2]]
    assert [one["kid"] for one in scores] == [one.mean for one in expected[:2]]
    assert made == [300, 40, 40]


def test_frechet_and_kernel_equal_torchmetrics() -> None:
    pytest.importorskip("torchmetrics")
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    x, y = normal(0, 80).reshape(80, 6, 1, 1), (normal(1, 80) * 1.5 + 0.3).reshape(80, 6, 1, 1)
    fid = FrechetInceptionDistance(feature=Identity(), normalize=True, input_img_size=(6, 1, 1))
    fid.set_dtype(torch.float64)
    kid = KernelInceptionDistance(feature=Identity(), normalize=True, subset_size=80, subsets=2)
    for metric in (fid, kid):
        metric.normalize = False  # features as they are, not turned into bytes
        metric.update(x, real=True)
        metric.update(y, real=False)
    a, b = x.flatten(1), y.flatten(1)
    assert frechet_distance(moments(a), moments(b)) == pytest.approx(fid.compute().item(), rel=1e-6)
    assert kernel_distance(a, b).mean == pytest.approx(kid.compute()[0].item(), rel=1e-5)


def brute_force(real: Tensor, fake: Tensor, k: int) -> tuple[float, float, float, float]:
    def radius(x: Tensor, i: int) -> float:
        return sorted(float((x[i] - x[j]).norm()) for j in range(len(x)) if j != i)[k - 1]

    def d(i: int, j: int) -> float:
        return float((real[i] - fake[j]).norm())

    N, M = range(len(real)), range(len(fake))
    r, s = [radius(real, i) for i in N], [radius(fake, j) for j in M]
    precision = sum(any(d(i, j) <= r[i] for i in N) for j in M) / len(fake)
    recall = sum(any(d(i, j) <= s[j] for j in M) for i in N) / len(real)
    density = sum(d(i, j) < r[i] for i in N for j in M) / (k * len(fake))
    coverage = sum(any(d(i, j) < r[i] for j in M) for i in N) / len(real)
    return precision, recall, density, coverage


@pytest.mark.parametrize("k", [1, 3, 5])
def test_overlap_by_brute_force(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real, fake = normal(0, 40, 3), normal(1, 30, 3) * 1.3 + 1.0
    expected = brute_force(real, fake, k)
    for block in (7, 1024):  # blocks change nothing
        monkeypatch.setattr("ld3_dist.metrics.manifold.BLOCK", block)
        found = overlap(real, fake, k, k)
        assert (found.precision, found.recall, found.density, found.coverage) == pytest.approx(
            expected, abs=1e-12
        )
    assert 0 < expected[0] < 1


def test_overlap_of_identical_and_of_disjoint_sets() -> None:
    x = normal(0, 200) + 100
    same = overlap(x, x.flip(0))
    assert (same.precision, same.recall, same.density, same.coverage) == (1.0, 1.0, 1.0, 1.0)
    apart = overlap(x, x + 1000)
    assert (apart.precision, apart.recall, apart.density, apart.coverage) == (0.0, 0.0, 0.0, 0.0)
    collapsed = overlap(x, x[:1] + 1e-3 * normal(1, 200))  # one mode, perfectly precise
    assert collapsed.precision == 1.0
    assert collapsed.recall < 0.05
    assert collapsed.coverage < 0.2


def test_distances_of_duplicates_are_exactly_zero() -> None:
    x = (normal(0, 50, 64) * 7).repeat(2, 1)
    assert torch.equal(neighbour_radii(x, 1), torch.zeros(100, dtype=torch.float64))
    expected = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist") ** 2
    assert torch.allclose(squared_distances(x, x), expected, rtol=1e-10)


def test_all_scores_at_once(tmp_path: Path) -> None:
    real, fake = normal(0, 120), normal(1, 100) + 0.2
    logits = normal(2, 100, 7)
    found = score(Samples(fake.float(), logits), real).values
    assert tuple(found) == SCORES
    assert all(value is not None and math.isfinite(value) for value in found.values())
    few = score(Samples(fake[:5], logits[:5]), real).values
    assert [name for name in SCORES if few[name] is None] == [
        "precision",
        "recall",
        "density",
        "coverage",
    ]
    expected = moments(real)
    np.savez(
        tmp_path / "reference.npz", mu=expected.mean.numpy(), sigma=expected.covariance.numpy()
    )
    against_file = score(fake, read_moments(tmp_path / "reference.npz")).values
    assert [name for name in SCORES if against_file[name] is not None] == ["fid"]
    assert against_file["fid"] == pytest.approx(score(fake, real).values["fid"])


def test_a_file_that_is_no_reference_is_bad_input(tmp_path: Path) -> None:
    whole = tmp_path / "whole.npz"
    np.savez(whole, mu=np.zeros(3), sigma=np.eye(3))
    for name, data in [("cut", whole.read_bytes()[:100]), ("text", b"hello"), ("empty", b"")]:
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=f"{name}: need an npz"):
            read_moments(tmp_path / name)
    np.savez(tmp_path / "other.npz", mu=np.zeros(3))
    with pytest.raises(InputError, match=r"other\.npz: need an npz with mu and sigma .*sigma"):
        read_moments(tmp_path / "other.npz")
    with pytest.raises(InputError, match="no such file"):
        read_moments(tmp_path / "none.npz")


def test_bad_features_are_bad_input() -> None:
    x, sick = normal(0, 20), normal(1, 20)
    sick[3, 2] = float("nan")
    for call in (FeatureStatistics.of, lambda f: kernel_distance(x, f), lambda f: overlap(x, f)):
        with pytest.raises(InputError, match="sample 3 has features that are not finite"):
            call(sick)
    with pytest.raises(InputError, match="at least 2 samples"):
        FeatureStatistics.of(x[:1]).moments  # noqa: B018
    with pytest.raises(InputError, match="5 samples are too few, need at least 6"):
        overlap(x, x[:5])
    with pytest.raises(InputError, match="cannot be drawn from 20 and 20"):
        kernel_distance(x, x, subset_size=21)
    with pytest.raises(InputError, match="need at least 2"):
        kernel_distance(x, x[:1])
    with pytest.raises(InputError, match="shape"):
        FeatureStatistics.of(x.reshape(20, 3, 2))
    for call in (overlap, kernel_distance, lambda a, b: frechet_distance(moments(a), moments(b))):
        with pytest.raises(InputError, match="two different extractors"):
            call(x, normal(0, 20, 5))
    with pytest.raises(InputError, match="do not fit"):
        FeatureMoments(torch.zeros(3), torch.eye(2))
    with pytest.raises(InputError, match="covariance has numbers"):
        FeatureMoments(torch.zeros(1), torch.tensor([[math.nan]]))
    with pytest.raises(InputError, match="cannot merge"):
        FeatureStatistics.of(x).merge(FeatureStatistics.empty(5))
