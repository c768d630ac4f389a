"""TORS, SharpEuler and HSO against closed forms and exhaustive searches."""

from __future__ import annotations

import itertools

import numpy
import pytest
import torch
from schedules import one_thread  # noqa: F401
from torch import Tensor

from ld3_dist.core.errors import InputError
from ld3_dist.core.grid import discretize, lam_range
from ld3_dist.core.noise import EDM, FlowMatching, NoiseSchedule, VPCosine, VPLinear
from ld3_dist.core.sample import draw_noise
from ld3_dist.core.solver import make_solver
from ld3_dist.models.analytic.mixture import gaussian, mixture_2d
from ld3_dist.training_free import find_knots, tors
from ld3_dist.training_free.hso import fitness, hso, midpoint_error
from ld3_dist.training_free.sharp_euler import sharp_euler
from ld3_dist.training_free.trajectory import flow_times, follow

NOISES = [EDM(), VPLinear(), FlowMatching(), VPCosine()]
named = pytest.mark.parametrize("noise", NOISES, ids=lambda noise: noise.name)


def flow_time(noise: NoiseSchedule, t: Tensor) -> Tensor:
    return noise.sigma(t) / (noise.alpha(t) + noise.sigma(t))


def starts(noise: NoiseSchedule, count: int, size: int) -> Tensor:
    return noise.prior_scale * draw_noise(3, range(count), (size,)).double()


def quantiles(density: Tensor, s: Tensor, steps: int) -> Tensor:
    """The steps + 1 quantiles of a density on a fine grid s, by the trapezoidal rule."""
    pieces = (density[1:] + density[:-1]) / 2 * s.diff()
    total = numpy.concatenate([[0], pieces.cumsum(0)])
    wanted = numpy.linspace(0, 1, steps + 1) * total[-1]
    return torch.as_tensor(numpy.interp(wanted, total, s.numpy()))


@named
@pytest.mark.parametrize("name", ["tors", "sharp-euler"])
def test_a_straight_flow_gets_equal_steps(name: str, noise: NoiseSchedule) -> None:
    """All data in one point: x = (1 - s) mean + s z, no rotation, constant velocity."""
    point = gaussian(noise, torch.tensor([0.7, -0.2, 0.1]), torch.full((3,), 1e-7))
    found = find_knots(name, point, make_solver("ddim"), 6, x_T=starts(noise, 8, 3))
    s = flow_time(noise, found)
    torch.testing.assert_close(s.diff(), s.diff().mean().expand(6), rtol=1e-2, atol=0)


@named
@pytest.mark.parametrize("std", [0.3, 1.0])
@pytest.mark.siblings(4)
def test_sharpness_of_a_gaussian_is_known(noise: NoiseSchedule, std: float) -> None:
    """x = z q^(1/2) with q = (1-s)^2 std^2 + s^2, so that d^2 x / ds^2 = z std^2 q^(-3/2)."""
    normal = gaussian(noise, torch.zeros(2), torch.full((2,), std))
    found = sharp_euler(normal, 5, starts(noise, 4, 2), fine=400)
    ends = flow_time(noise, found[[0, -1]])
    s = torch.linspace(float(ends[1]), float(ends[0]), 20001, dtype=torch.float64)
    expected = quantiles(((1 - s) ** 2 * std**2 + s**2) ** -0.75, s, 5).flip(0)
    torch.testing.assert_close(flow_time(noise, found), expected, rtol=0, atol=4e-3)
    even = torch.linspace(float(ends[0]), float(ends[1]), 6, dtype=torch.float64)
    assert (expected - even).abs().max() > 0.03  # equal steps would fail


@named
def test_rotation_of_a_flat_gaussian_is_known(noise: NoiseSchedule) -> None:
    """x_i = z_i q_i^(1/2), in a plane that lies askew in five dimensions: the angle of dx/ds."""
    std = torch.tensor([1.5, 0.2, 1.0, 1.0, 1.0], dtype=torch.float64)
    normal = gaussian(noise, torch.zeros(5), std.float())
    x_T = starts(noise, 6, 5)
    x_T[:, 2:] = 0
    trajectory = follow(normal, x_T, None, 400, flow_times(noise, 400))
    found = tors.cumulative(trajectory)
    s = trajectory.s
    q = (1 - s[:, None]) ** 2 * std[:2] ** 2 + s[:, None] ** 2
    slope = (s[:, None] - (1 - s[:, None]) * std[:2] ** 2) / q.sqrt()  # [n+1, 2]
    v = slope[:, None] * x_T[:, :2] / x_T[:, :2].norm(dim=1, keepdim=True)
    angle = torch.atan2(v[..., 1], v[..., 0])
    steps = torch.remainder(angle.diff(dim=0) + torch.pi, 2 * torch.pi) - torch.pi
    expected = steps.abs().cumsum(0).mean(1)
    # the scale of z at s[0] does not matter to an angle
    torch.testing.assert_close(found[1:], expected, rtol=0.02, atol=0.01)
    knots = tors.tors(normal, 4, x_T, fine=400)
    at = numpy.interp(-flow_time(noise, knots), -s, torch.cat([s.new_zeros(1), expected]))
    parts = numpy.diff(at)
    assert parts.max() / parts.min() < 1.05


def test_the_plane_is_that_of_the_path() -> None:
    """Turning a path in space changes no angle; a half circle turns by pi."""
    generator = torch.Generator().manual_seed(0)
    u = torch.linspace(0, torch.pi, 200, dtype=torch.float64)
    flat = torch.stack([u.cos(), u.sin()], -1)
    basis, _ = torch.linalg.qr(torch.randn(7, 7, generator=generator, dtype=torch.float64))
    path = (flat @ basis[:2] + 3.0)[:, None]
    turned = tors.turns(tors.in_plane(path))
    assert float(turned.sum()) == pytest.approx(torch.pi * 198 / 199, rel=1e-6)
    torch.testing.assert_close(turned, turned.mean().expand_as(turned))


@pytest.mark.parametrize("name", ["tors", "sharp-euler"])
def test_schedules_that_differ_by_a_scale_get_the_same_grid(name: str) -> None:
    """A variance-exploding schedule with the ends of a variance-preserving one."""
    preserving = VPLinear()
    ends = preserving.lam(torch.tensor([preserving.t_max, preserving.t_min], dtype=torch.float64))
    exploding = EDM(t_min=float((-ends[1]).exp()), t_max=float((-ends[0]).exp()))
    z = draw_noise(2, range(16), (2,)).double()
    first, second = (
        noise.lam(
            find_knots(
                name,
                mixture_2d(noise),
                make_solver("ddim"),
                7,
                x_T=z * noise.sigma(torch.tensor(noise.t_max, dtype=torch.float64)),
            )
        )
        for noise in (preserving, exploding)
    )
    torch.testing.assert_close(first, second, rtol=0, atol=2e-3)


def in_numpy(lam: numpy.ndarray) -> float:
    """The midpoint error proxy, written with sigma."""
    middle = (lam[1:] + lam[:-1]) / 2
    sigma2 = 1 / (1 + numpy.exp(2 * middle))
    return float((sigma2 / numpy.sqrt(1 - sigma2) * numpy.diff(numpy.exp(lam))).sum())


@pytest.mark.parametrize("steps", [2, 3])
@named
@pytest.mark.siblings(3)
def test_hso_finds_the_least_proxy_of_all(noise: NoiseSchedule, steps: int) -> None:
    low, high = lam_range(noise)
    fine = numpy.linspace(low, high, 241)
    every = {
        inner: in_numpy(numpy.array([low, *inner, high]))
        for inner in itertools.combinations(fine[1:-1], steps - 1)
    }
    best = min(every, key=every.__getitem__)
    found = noise.lam(hso(noise, steps)).clamp(low, high)
    assert in_numpy(found.numpy()) <= every[best] * (1 + 1e-9)
    assert numpy.abs(found[1:-1].numpy() - best).max() < (high - low) / 240 * 1.5
    assert float(midpoint_error(found)) == pytest.approx(in_numpy(found.numpy()), rel=1e-12)


@pytest.mark.parametrize("steps", [4, 6, 10])
@named
@pytest.mark.siblings(4)
def test_hso_is_no_worse_than_another_optimiser(noise: NoiseSchedule, steps: int) -> None:
    """scipy's trust-constr, from Karras's grid, moving the knots themselves; its authors use it."""
    from scipy.optimize import minimize

    low, high = lam_range(noise)
    start = noise.lam(discretize(noise, steps, "karras")).clamp(low, high).numpy()

    def proxy(inner: numpy.ndarray) -> float:
        return in_numpy(numpy.sort(numpy.array([low, *inner, high])))

    options = {"maxiter": 80, "xtol": 1e-6, "gtol": 1e-6}
    other = minimize(proxy, start[1:-1], method="trust-constr", options=options)
    knots = hso(noise, steps)
    found = noise.lam(knots).clamp(low, high)
    assert in_numpy(found.numpy()) <= other.fun * (1 + 1e-6)
    assert in_numpy(found.numpy()) < in_numpy(start) * 0.999
    assert (float(knots[0]), float(knots[-1])) == (noise.t_max, noise.t_min)
    assert (knots.diff() < 0).all()


def test_the_fitness_punishes_steps_that_are_too_short() -> None:
    """0.15 at four steps, 0.01 at twenty and above, in time."""
    noise = VPLinear()
    t = torch.tensor([1.0, 0.8, 0.55, 0.45, 0.001], dtype=torch.float64)
    lam = noise.lam(t)
    extra = float(fitness(lam, noise) - midpoint_error(lam))
    assert extra == pytest.approx(1e9 * 0.05**2, rel=1e-9)
    close = noise.lam(torch.linspace(1, 0.9, 31, dtype=torch.float64))  # steps of 1/300
    extra = float(fitness(close, noise) - midpoint_error(close))
    assert extra == pytest.approx(1e9 * 30 * (0.01 - 1 / 300) ** 2, rel=1e-6)


def test_too_few_fine_steps_are_refused() -> None:
    for find in (tors.tors, sharp_euler):
        with pytest.raises(InputError, match="70 steps cannot be chosen from a fine grid of 60"):
            find(mixture_2d(EDM()), 70, torch.ones(2, 2), fine=60)
    with pytest.raises(InputError, match="steps = 0: a grid needs at least one step"):
        hso(EDM(), 0)
