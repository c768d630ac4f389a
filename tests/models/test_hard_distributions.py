"""The hard distributions against scipy's densities, their own geometry and their exact samples."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import multivariate_t
from scipy.stats import t as student

from ld3_dist import InputError, load_model
from ld3_dist.core.noise import EDM
from ld3_dist.models.analytic import hard

NOISE = EDM()
NAMES = [
    "modes?shape=2",
    "modes?shape=32&decay=0.6",
    "student-t?shape=2&df=2",
    "near-singular?shape=32",
    "rings",
    "checkerboard",
]


@pytest.mark.parametrize("df", [2.0, 3.0, 5.0])
@pytest.mark.parametrize("dim", [1, 2])
def test_student_t_has_the_density_of_student_t_far_into_the_tail(df: float, dim: int) -> None:
    mixture = hard.student_t(NOISE, (dim,), df, 0.3)
    far = student.isf(1e-4, df)
    x = torch.zeros(9, dim, dtype=torch.float64)
    x[:, 0] = 0.3 * torch.linspace(0, float(far), 9)
    exact = multivariate_t(loc=[0.0] * dim, shape=0.09, df=df) if dim > 1 else student(df, 0, 0.3)
    expected = torch.as_tensor(exact.logpdf(x.numpy() if dim > 1 else x[:, 0].numpy()))
    found = mixture.log_density(x)
    assert float((found - expected).abs().max()) < 0.15


def test_modes_lie_apart_and_their_weights_fall() -> None:
    mixture = hard.modes(NOISE, (32,), 8, 8.0, 0.1, 0.5)
    assert torch.allclose(mixture.means.norm(dim=1), torch.tensor(8.0).double())
    weights = hard.mode_weights(mixture)
    assert float(weights.sum()) == pytest.approx(1)
    assert torch.allclose(weights[1:] / weights[:-1], torch.full((7,), 0.5).double())
    apart = torch.pdist(mixture.means)
    assert float(apart.min()) > 40 * 0.1


def test_a_nearly_singular_covariance_spans_its_ratio() -> None:
    covariance = hard.near_singular(NOISE, (32,), 2.0, 1e-4).moments()[1]
    values = torch.linalg.eigvalsh(covariance)
    assert float(values.max()) == pytest.approx(4.0)
    assert float(values.min()) == pytest.approx(4e-8, rel=1e-6)


def test_rings_and_squares_are_modes() -> None:
    rings = hard.rings(NOISE, 64, 1.0, 0.05)
    samples = rings.draw(2000, 0)
    inner = samples.norm(dim=1) < 1.5
    assert torch.equal(hard.mode_of(rings, samples) == 0, inner)
    board = hard.checkerboard(NOISE, 4, 3, 1.0)
    weights = hard.mode_weights(board)
    assert torch.allclose(weights, torch.full((8,), 1 / 8).double())
    middles = board.means.floor().long()
    assert bool(((middles.sum(1) % 2) == 0).all())


@pytest.mark.parametrize("name", NAMES)
def test_they_open_with_exact_samples_and_their_modes(name: str) -> None:
    model = load_model(f"analytic:{name}")
    reference = model.reference
    assert reference is not None
    assert reference.modes is not None
    assert reference.features is not None
    count = len(reference.modes.weights)
    found = torch.bincount(reference.modes.of(reference.features), minlength=count)
    due = reference.modes.weights * len(reference.features)
    assert float(((found - due).abs() / due.sqrt()).max()) < 5
    heavy = name.startswith("student")
    assert reference.finite_moments == (2.0 if heavy else math.inf)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("modes?decay=0", "0 < decay <= 1"),
        ("student-t?df=0", "need df > 0"),
        ("near-singular?ratio=2", "0 < ratio <= 1"),
        ("checkerboard?side=1", "side >= 2"),
        ("rings?sides=3", "parameter of analytic:rings"),
    ],
)
def test_nonsense_is_refused(name: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load_model(f"analytic:{name}")
