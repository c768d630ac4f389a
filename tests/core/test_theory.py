"""Theorem 1 measured: against closed forms, finite differences and an independent grid in 1-D."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
import torch
from scipy.interpolate import CubicSpline
from scipy.stats import norm
from torch import Tensor

from ld3_dist.core import theory
from ld3_dist.core.errors import InputError
from ld3_dist.core.grid import discretize
from ld3_dist.core.noise import EDM
from ld3_dist.core.solver import Tableau, make_solver
from ld3_dist.models.analytic.mixture import Mixture, gaussian, mixture_1d, mixture_2d

NOISE = EDM()


def table(solver: str, nfe: int, grid: str) -> Tableau:
    rule = make_solver(solver)
    return rule.tableau(NOISE, rule.coupled(NOISE, discretize(NOISE, rule.steps(nfe), grid), nfe))


TEACHER = table("unipc-3", 20, "karras")


@cache
def on_line(solver: str, nfe: int) -> theory.Divergence:
    return theory.divergence(
        mixture_1d(NOISE), TEACHER, table(solver, nfe, "karras"), theory.line()
    )


def spline_divergence(mixture: Mixture, student: Tableau) -> float:
    """KL by distribution functions: F(y) = Phi(inverse map), densities as their derivatives."""
    x = np.linspace(-6, 6, 10_001)
    noise = torch.as_tensor(x)[:, None]
    teacher_y, student_y = (
        theory.apply(mixture, t, noise)[:, 0].numpy() for t in (TEACHER, student)
    )
    assert (np.diff(teacher_y) > 0).all()
    assert (np.diff(student_y) > 0).all()
    slope, other = (CubicSpline(y, x) for y in (teacher_y, student_y))
    y = np.linspace(teacher_y[20], teacher_y[-20], 50_001)
    log_q = norm.logpdf(slope(y)) + np.log(slope(y, 1))
    log_p = norm.logpdf(other(y)) + np.log(other(y, 1))
    return float(np.trapezoid(np.exp(log_q) * (log_q - log_p), y))


@pytest.mark.parametrize(("solver", "nfe"), [("ddim", 8), ("dpmpp-2", 6)])
def test_divergence_agrees_with_a_grid_in_one_dimension(solver: str, nfe: int) -> None:
    found, student = on_line(solver, nfe), table(solver, nfe, "karras")
    assert found.kl is not None
    assert found.kl > 0.005  # else there is nothing to agree on
    expected = spline_divergence(mixture_1d(NOISE), student)
    assert found.kl == pytest.approx(expected, abs=1e-3)
    whole = theory.divergence_on_line(mixture_1d(NOISE), TEACHER, student)
    assert whole == pytest.approx(expected, abs=1e-3)


def test_gaussians_have_their_closed_form() -> None:
    """Both maps are linear, x -> mean + b x and x -> mean' + a x, coordinate by coordinate."""
    mean, std = torch.tensor([0.3, -0.2, 1.0]), torch.tensor([0.5, 0.1, 1.5])
    model, student = gaussian(NOISE, mean, std), table("ddim", 4, "karras")
    points = theory.draws(200, 3)
    found = theory.divergence(model, TEACHER, student, points)
    ends = torch.stack([torch.zeros(3), torch.ones(3)]).double()
    (at, b), (to, a) = (
        (y[0], y[1] - y[0]) for y in (theory.apply(model, t, ends) for t in (TEACHER, student))
    )
    x = points.noise
    moved = (at + b * x - to) / a
    radial = ((moved**2).sum(1) - (x**2).sum(1)) / 2
    assert found.volume == pytest.approx(float((a / b).log().sum()), rel=1e-9)
    assert found.radial == pytest.approx(float(radial.mean()), rel=1e-7)
    assert found.longest == pytest.approx(float((moved - x).norm(dim=1).max()), rel=1e-7)
    exact = ((a / b).log() + (b**2 + (at - to) ** 2) / (2 * a**2) - 0.5).sum()
    assert found.kl is not None
    assert found.kl_error is not None
    assert abs(found.kl - float(exact)) < 4 * found.kl_error


def test_the_bound_holds_and_is_the_sum_of_its_terms() -> None:
    found = on_line("ddim", 8)
    assert found.kl is not None
    assert found.radial is not None
    assert found.volume is not None
    assert found.bound is not None
    assert found.mean_square_bound is not None
    assert found.kl == pytest.approx(found.radial + found.volume)
    assert found.bound == pytest.approx(found.square + found.linear + found.jacobian)
    assert found.square == pytest.approx(found.longest**2 / 2)
    assert found.linear == pytest.approx(found.longest * math.sqrt(2))
    assert found.kl <= found.mean_square_bound < found.bound
    assert found.reason == ""


def test_jacobians_are_those_of_finite_differences() -> None:
    model, student = mixture_2d(NOISE), table("unipc-3", 5, "karras")
    noise = theory.draws(6, 2, seed=3).noise
    found = theory.jacobians(model, student, noise)
    h = 1e-6
    for j in range(2):
        step = torch.zeros(2, dtype=torch.float64)
        step[j] = h
        ends = (theory.apply(model, student, noise + s * step) for s in (1, -1))
        ahead, behind = ends
        torch.testing.assert_close(
            found.last[:, :, j], (ahead - behind) / (2 * h), rtol=1e-4, atol=1e-6
        )
    assert found.signs.shape == found.smallest.shape == (6, 6)


def test_a_match_makes_the_wanted_sample() -> None:
    model, student = mixture_2d(NOISE), table("ddim", 8, "karras")
    noise = theory.draws(20, 2, seed=1).noise
    moved, found = theory.match(model, student, theory.apply(model, TEACHER, noise), noise)
    assert bool(found.all())
    made = theory.apply(model, student, moved)
    torch.testing.assert_close(made, theory.apply(model, TEACHER, noise), atol=1e-8, rtol=0)


def folded() -> Tableau:
    """A table whose last weights are so wrong that the map turns back.

    Its last output is a staircase of x, the one before rises evenly; their difference falls on the
    steps and rises between them.
    """
    made = table("ddim", 4, "karras")
    outputs = made.outputs.clone()
    outputs[-1] = torch.tensor([0.0, 0.0, -1.5, 1.0])
    return Tableau(made.evals, made.state, outputs, made.noise)


def test_a_student_that_folds_is_reported_and_has_no_number() -> None:
    student = folded()
    y = theory.apply(mixture_1d(NOISE), student, theory.line().noise)[:, 0]
    steps = y.diff()
    assert bool((steps > 0).any())
    assert bool((steps < 0).any())
    found = theory.divergence(mixture_1d(NOISE), TEACHER, student, theory.line(201))
    assert found.kl is None
    assert found.bound is None
    assert "folds" in found.reason
    assert found.flipped > 0
    assert found.path_flips >= 1


def test_the_density_of_a_map_that_folds_sums_its_preimages() -> None:
    at = torch.linspace(-40, 40, 100_001, dtype=torch.float64)
    density = theory.density_on_line(mixture_1d(NOISE), folded(), at)
    assert float(torch.trapezoid(density, at)) == pytest.approx(1, abs=0.01)


def test_points_average_as_they_should() -> None:
    x = theory.line()
    moments = [x.mean(x.noise[:, 0] ** k) for k in (0, 1, 2, 4)]
    assert moments == pytest.approx([1, 0, 1, 3], abs=1e-4)
    assert x.error(x.noise[:, 0]) == 0
    drawn = theory.draws(4000, 2)
    assert drawn.error(drawn.noise[:, 0]) == pytest.approx(1 / math.sqrt(4000), rel=0.1)


def test_what_has_no_density_on_the_line_is_refused() -> None:
    with pytest.raises(InputError, match="samples of one number"):
        theory.density_on_line(mixture_2d(NOISE), TEACHER, torch.zeros(1))
    packed = Tableau(
        TEACHER.evals[None].expand(2, -1), TEACHER.state[None].expand(2, -1),
        TEACHER.outputs[None].expand(2, -1, -1), NOISE,
    )  # fmt: skip
    with pytest.raises(InputError, match="2 members"):
        theory.jacobians(mixture_1d(NOISE), packed, torch.zeros(1, 1))


def same_numbers(a: Tensor, b: Tensor) -> bool:
    return bool(torch.equal(a, b))


def test_draws_are_a_function_of_their_seed() -> None:
    assert same_numbers(theory.draws(5, 3, seed=2).noise, theory.draws(5, 3, seed=2).noise)
    assert not same_numbers(theory.draws(5, 3, seed=2).noise, theory.draws(5, 3, seed=3).noise)
