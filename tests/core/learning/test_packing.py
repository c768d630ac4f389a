"""Packed members are the members alone, and a sample is the same in any batch."""

from __future__ import annotations

import pytest
import torch
from schedules import SCHEDULES, one_thread  # noqa: F401

from ld3_dist.core.grid import Grid, discretize
from ld3_dist.core.noise import NoiseSchedule
from ld3_dist.core.sample import draw_noise, sample, states
from ld3_dist.core.solver import SOLVERS, make_solver
from ld3_dist.models.analytic.mixture import mixture_1d, mixture_2d

every_solver = pytest.mark.parametrize("name", SOLVERS)


def some_grids(name: str, noise: NoiseSchedule, nfe: int = 5) -> list[Grid]:
    """Grids of different members, network times off their nominal places."""
    solver, grids = make_solver(name), []
    for k, start in enumerate(("karras", "log_snr", "quadratic")):
        grid = solver.coupled(noise, discretize(noise, solver.steps(nfe), start), nfe)
        shift = 0.03 * torch.rand(
            nfe, generator=torch.Generator().manual_seed(k), dtype=torch.float64
        )
        grids.append(Grid(grid.knots, grid.evals * (1 - shift) + noise.t_min * shift))
    return grids


@every_solver
@pytest.mark.parametrize("noise", SCHEDULES.values(), ids=SCHEDULES.keys())
@pytest.mark.siblings(40)
def test_packed_members_are_the_same_as_alone(name: str, noise: NoiseSchedule) -> None:
    if name == "dpm-2" and noise.starts_at_pure_noise:
        pytest.skip("refused")
    solver, grids = make_solver(name), some_grids(name, noise)
    packed = Grid(torch.stack([g.knots for g in grids]), torch.stack([g.evals for g in grids]))
    unit = torch.randn(3, 4, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x_T = noise.prior_scale * unit
    shared = sample(mixture_1d(noise), solver.tableau(noise, packed), x_T[0])
    own = sample(mixture_1d(noise), solver.tableau(noise, packed), x_T)
    for k, grid in enumerate(grids):
        tableau = solver.tableau(noise, grid)
        torch.testing.assert_close(packed.member(k).evals, grid.evals, rtol=0, atol=0)
        torch.testing.assert_close(
            shared[k], sample(mixture_1d(noise), tableau, x_T[0]), rtol=1e-12, atol=1e-12
        )
        torch.testing.assert_close(
            own[k], sample(mixture_1d(noise), tableau, x_T[k]), rtol=1e-12, atol=1e-12
        )


def test_conditions_follow_their_members() -> None:
    noise, solver = SCHEDULES["edm"], make_solver("dpmpp-2")
    grids = some_grids("dpmpp-2", noise)
    packed = Grid(torch.stack([g.knots for g in grids]), torch.stack([g.evals for g in grids]))
    x_T = noise.prior_scale * torch.randn(
        4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    mixture, labels = mixture_2d(noise), torch.arange(12).view(3, 4) % 8
    own = sample(mixture, solver.tableau(noise, packed), x_T, labels.flatten())
    shared = sample(mixture, solver.tableau(noise, packed), x_T, labels[0])
    for k, grid in enumerate(grids):
        tableau = solver.tableau(noise, grid)
        torch.testing.assert_close(
            own[k], sample(mixture, tableau, x_T, labels[k]), rtol=1e-12, atol=1e-12
        )
        torch.testing.assert_close(
            shared[k], sample(mixture, tableau, x_T, labels[0]), rtol=1e-12, atol=1e-12
        )


def test_the_path_ends_in_the_sample_and_starts_in_the_noise() -> None:
    noise, solver = SCHEDULES["vp-linear"], make_solver("heun")
    tableau = solver.tableau(noise, some_grids("heun", noise)[0])
    x_T = torch.randn(4, 1, dtype=torch.float64)
    mixture = mixture_1d(noise)
    y, m = states(mixture, tableau, x_T)
    assert (len(y), len(m)) == (6, 5)
    torch.testing.assert_close(y[0], x_T, rtol=0, atol=0)
    torch.testing.assert_close(y[-1], sample(mixture, tableau, x_T), rtol=0, atol=0)
    for j in range(5):
        torch.testing.assert_close(m[j], mixture(y[j], tableau.evals[j].expand(4)))


def test_noise_belongs_to_the_sample() -> None:
    whole = draw_noise(7, range(10), (2, 3))
    assert whole.dtype == torch.float32
    assert torch.equal(
        torch.cat([draw_noise(7, range(4), (2, 3)), draw_noise(7, range(4, 10), (2, 3))]), whole
    )
    assert torch.equal(draw_noise(7, [9, 2], (2, 3)), whole[[9, 2]])
    assert not torch.equal(draw_noise(8, range(10), (2, 3)), whole)
    many = draw_noise(0, range(4000), (8,)).double()
    assert abs(float(many.mean())) < 0.02
    assert abs(float(many.std()) - 1) < 0.02
    correlation = torch.corrcoef(torch.stack([many[:-1].flatten(), many[1:].flatten()]))
    assert abs(float(correlation[0, 1])) < 0.02
