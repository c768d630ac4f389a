"""Schedules: inverses, derivatives, ends without infinities, the discrete interpolant, bad
input.
"""

from __future__ import annotations

import math

import pytest
import torch
from schedules import SCHEDULES, STABLE_DIFFUSION, one_thread  # noqa: F401

from ld3_dist.core.noise import EDM, FlowMatching, NoiseSchedule, VPCosine, VPDiscrete, VPLinear

every = pytest.mark.parametrize("noise", SCHEDULES.values(), ids=SCHEDULES.keys())


def times(noise: NoiseSchedule, n: int = 2001) -> torch.Tensor:
    return torch.linspace(noise.t_min, noise.t_max, n, dtype=torch.float64)


@every
def test_round_trips_in_float64(noise: NoiseSchedule) -> None:
    t = times(noise)
    lam = noise.lam(t)
    assert (lam.diff() < 0).all()
    # at t_max itself alpha may be zero; lam is floored there and the way back is good to FLOOR
    assert ((noise.inverse(lam) - t).abs()[:-1] / noise.t_max).max() < 5e-15
    assert abs(noise.inverse(lam)[-1] - t[-1]) / noise.t_max < 1.1e-10
    middle = torch.linspace(float(lam[-2]), float(lam[0]), 777, dtype=torch.float64)
    torch.testing.assert_close(noise.lam(noise.inverse(middle)), middle, rtol=1e-10, atol=1e-11)


@every
def test_derivatives_are_those_of_alpha_sigma_and_lambda(noise: NoiseSchedule) -> None:
    t = times(noise, 301)[1:-1].requires_grad_()
    for f, derivative in ((noise.alpha, noise.d_alpha), (noise.sigma, noise.d_sigma)):
        slope = torch.func.grad(lambda v, f=f: f(v).sum())(t.detach())
        torch.testing.assert_close(derivative(t).detach(), slope, rtol=1e-10, atol=1e-11)
    assert torch.autograd.gradcheck(noise.lam, (t[::60].detach().requires_grad_(),), eps=1e-7)
    lam = noise.lam(t).detach()[::60].requires_grad_()
    assert torch.autograd.gradcheck(noise.inverse, (lam,))
    # lam' = alpha'/alpha - sigma'/sigma
    slope = torch.func.grad(lambda v: noise.lam(v).sum())(t.detach())
    with torch.no_grad():
        expected = noise.d_alpha(t) / noise.alpha(t) - noise.d_sigma(t) / noise.sigma(t)
    torch.testing.assert_close(slope, expected, rtol=1e-8, atol=1e-8)


@every
def test_ends_are_finite_in_value_and_gradient(noise: NoiseSchedule) -> None:
    for dtype in (torch.float32, torch.float64):
        t = torch.tensor([noise.t_max, noise.t_min], dtype=dtype, requires_grad=True)
        for f in (noise.alpha, noise.sigma, noise.lam, noise.d_alpha, noise.d_sigma):
            value = f(t)
            assert torch.isfinite(value).all()
            if value.requires_grad:
                (grad,) = torch.autograd.grad(value.sum(), t)
                assert torch.isfinite(grad).all()


def test_which_schedules_start_at_pure_noise() -> None:
    pure = {name for name, noise in SCHEDULES.items() if noise.starts_at_pure_noise}
    assert pure == {"vp-cosine", "vp-zero-snr", "flow"}
    assert float(VPCosine().alpha(torch.tensor(1.0).double())) < 1e-9
    assert float(VPCosine().d_alpha(torch.tensor(1.0).double())) == pytest.approx(
        -math.pi / 2 / 1.008, rel=1e-3
    )
    assert EDM().prior_scale == 80.0
    assert VPLinear().prior_scale == FlowMatching().prior_scale == 1.0


def test_closed_forms_at_points_anyone_can_check() -> None:
    t = torch.tensor(0.5, dtype=torch.float64)
    assert float(VPLinear().alpha(t)) == pytest.approx(
        math.exp(-0.25 * 0.25 * 19.9 - 0.5 * 0.5 * 0.1), rel=1e-14
    )
    angle = 0.508 / 1.008 * math.pi / 2
    assert float(VPCosine().alpha(t)) == pytest.approx(
        math.cos(angle) / math.cos(0.008 / 1.008 * math.pi / 2), rel=1e-14
    )
    assert float(FlowMatching().lam(torch.tensor(0.25))) == pytest.approx(math.log(3), rel=1e-6)
    for noise in (VPLinear(), VPCosine(), SCHEDULES["vp-discrete"]):
        a, s = noise.alpha(times(noise)), noise.sigma(times(noise))
        torch.testing.assert_close(a**2 + s**2, torch.ones_like(a), rtol=0, atol=1e-12)


def test_discrete_schedule_passes_through_its_table_without_kinks() -> None:
    noise = VPDiscrete(STABLE_DIFFUSION)
    k = torch.arange(1000, dtype=torch.float64)
    t = (k + 1) / 1000
    torch.testing.assert_close(noise.network_time(t), k, rtol=0, atol=1e-9)
    torch.testing.assert_close(noise.alpha(t) ** 2, STABLE_DIFFUSION, rtol=1e-12, atol=1e-13)
    slope = torch.func.grad(lambda v: noise.lam(v).sum())
    left, right = slope(t[1:-1] - 1e-9), slope(t[1:-1] + 1e-9)
    torch.testing.assert_close(left, right, rtol=1e-4, atol=0)
    # a table of the linear schedule stands for the linear schedule, to the square of its step and
    # better
    exact = VPLinear()
    errors = []
    for n in (50, 100, 200):
        grid = torch.arange(1, n + 1, dtype=torch.float64) / n
        t = torch.linspace(0.2, 0.8, 1001, dtype=torch.float64)
        errors.append((VPDiscrete(exact.alpha(grid) ** 2).lam(t) - exact.lam(t)).abs().max().item())
    assert errors[1] < errors[0] / 4
    assert errors[2] < errors[1] / 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EDM(t_min=1.0, t_max=0.5), "t_min < t_max"),
        (lambda: EDM(t_min=float("nan")), "nan"),
        (lambda: FlowMatching(t_max=1.5), "1.5"),
        (lambda: VPCosine(t_min=-0.1), "-0.1"),
        (lambda: VPLinear(beta_0=3.0, beta_1=2.0), "beta_0=3.0"),
        (lambda: VPDiscrete(torch.ones(2)), "at least 3"),
        (lambda: VPDiscrete(torch.tensor([0.9, 0.5, 0.6, 0.1])), r"alphas_cumprod\[2\] = 0.6"),
        (
            lambda: VPDiscrete(torch.tensor([0.9, 0.5, float("nan"), 0.1])),
            r"alphas_cumprod\[2\] = nan",
        ),
        (lambda: VPDiscrete(torch.tensor([1.2, 0.5, 0.1])), r"alphas_cumprod\[0\]"),
        (lambda: VPDiscrete(torch.tensor([0.9, 0.5, -0.1])), r"alphas_cumprod\[2\]"),
        (lambda: VPDiscrete(torch.linspace(0.9, 0.1, 10), t_min=0.05), "1/10 <= t_min"),
    ],
)
def test_a_wrong_schedule_is_refused(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]
