"""The exact distributions against autograd, quadrature and Monte Carlo."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.integrate import quad, solve_ivp

from ld3_dist.core.noise import EDM, FlowMatching, NoiseSchedule, VPCosine, VPDiscrete, VPLinear
from ld3_dist.models.analytic.mixture import (
    ANY_LABEL,
    Mixture,
    empirical,
    gaussian,
    heavy_tails,
    mixture_1d,
    mixture_2d,
    random_mixture,
)

SCHEDULES = [
    EDM(),
    VPLinear(),
    VPCosine(t_max=0.99),
    VPDiscrete(torch.linspace(0.999, 0.01, 50)),
    FlowMatching(),
]


def distributions(noise: NoiseSchedule) -> list[Mixture]:
    points = torch.randn(12, 2, 3, generator=torch.Generator().manual_seed(3))
    diagonal = Mixture(
        noise, torch.randn(3, 4), 0.1 + torch.rand(3, 4), torch.tensor([1.0, 2.0, 3.0])
    )
    return [
        gaussian(noise, torch.tensor([0.3, -0.2]), torch.tensor([0.5, 0.1])),
        mixture_1d(noise),
        mixture_2d(noise),
        random_mixture(noise, (1, 3, 3)),
        heavy_tails(noise, (2,)),
        empirical(noise, points),
        diagonal,
    ]


def times(noise: NoiseSchedule, n: int) -> torch.Tensor:
    lam = torch.linspace(-1.5, 1.5, n, dtype=torch.float64)
    return noise.inverse(lam)


@pytest.mark.parametrize("noise", SCHEDULES, ids=lambda n: n.name)
def test_score_is_the_gradient_of_the_log_density(noise: NoiseSchedule) -> None:
    for mixture in distributions(noise):
        t = times(noise, 9)
        x = torch.randn(9, *mixture.shape, dtype=torch.float64).requires_grad_()
        (expected,) = torch.autograd.grad(mixture.log_density(x, t).sum(), x)
        torch.testing.assert_close(mixture.score(x, t), expected, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("noise", SCHEDULES, ids=lambda n: n.name)
@pytest.mark.siblings(3)
def test_density_integrates_to_one_and_denoiser_is_the_posterior_mean(noise: NoiseSchedule) -> None:
    mixture = mixture_1d(noise)
    for t in times(noise, 3):
        a, s = float(noise.alpha(t)), float(noise.sigma(t))

        def density(y: float, t: torch.Tensor = t) -> float:
            return math.exp(
                mixture.log_density(torch.tensor([[y]], dtype=torch.float64), t[None]).item()
            )

        assert quad(density, -30, 30, points=(-1, 0, 1), limit=400)[0] == pytest.approx(1, abs=1e-7)
        for x in (-0.7, 0.2, 1.4):

            def joint(y: float, power: int, x: float = x, a: float = a, s: float = s) -> float:
                prior = math.exp(
                    mixture.log_density(torch.tensor([[y]], dtype=torch.float64)).item()
                )
                return y**power * prior * math.exp(-0.5 * ((x - a * y) / s) ** 2)

            mean = quad(joint, -3, 3, (1,), limit=400, points=(-1, 0.1, 0.9))[0]
            mass = quad(joint, -3, 3, (0,), limit=400, points=(-1, 0.1, 0.9))[0]
            got = mixture(torch.tensor([[x]], dtype=torch.float64), t[None]).item()
            assert got == pytest.approx(mean / mass, abs=1e-7)


def test_denoiser_minimises_the_squared_error_on_drawn_samples() -> None:
    noise = EDM()
    for mixture in (random_mixture(noise, (3,)), heavy_tails(noise, (2,)), mixture_2d(noise)):
        x_0 = mixture.draw(20_000, seed=1)
        t = torch.full((len(x_0),), 0.4, dtype=torch.float64)
        x = x_0 + 0.4 * torch.randn(
            x_0.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64
        )
        error, d = mixture(x, t) - x_0, mixture(x, t)
        # a posterior mean's error is orthogonal to every function of x
        for probe in (torch.ones_like(x), x, d, torch.tanh(3 * x)):
            product = (error * probe).flatten(1).sum(1)
            assert abs(product.mean() / (product.std() / math.sqrt(len(product)))) < 4


def test_draws_follow_the_stated_moments() -> None:
    mixture = random_mixture(VPLinear(), (3,), seed=4)
    mean, covariance = mixture.moments()
    x = mixture.draw(200_000, seed=5)
    torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=0.01)
    torch.testing.assert_close(torch.cov(x.T), covariance, rtol=0, atol=0.01)
    assert torch.equal(mixture.draw(5, seed=7), mixture.draw(5, seed=7))


def ode(mixture: Mixture, x: float, t_from: float, t_to: float) -> float:
    """The probability flow of a one-dimensional mixture by an independent integrator."""
    noise = mixture.noise

    def velocity(t: float, y: list[float]) -> list[float]:
        tt, xx = torch.tensor([t], dtype=torch.float64), torch.tensor([[y[0]]], dtype=torch.float64)
        d = mixture(xx, tt).item()
        eps = (y[0] - noise.alpha(tt).item() * d) / noise.sigma(tt).item()
        return [noise.d_alpha(tt).item() * d + noise.d_sigma(tt).item() * eps]

    return solve_ivp(velocity, (t_from, t_to), [x], rtol=1e-10, atol=1e-12, method="DOP853").y[
        0, -1
    ]


@pytest.mark.parametrize("noise", [EDM(t_max=10), VPLinear(), FlowMatching()], ids=lambda n: n.name)
@pytest.mark.siblings(2)
def test_transport_solves_the_probability_flow(noise: NoiseSchedule) -> None:
    narrow = gaussian(noise, torch.tensor([0.4]), torch.tensor([0.2]))
    t_from, t_to = 0.9 * noise.t_max, 0.05
    for mixture in (narrow, mixture_1d(noise)):
        for x in (-2.1, -0.3, 0.6, 3.0):
            exact = mixture.transport(torch.tensor([[x]]).double(), t_from, t_to).item()
            assert exact == pytest.approx(ode(mixture, x, t_from, t_to), abs=2e-7)
    with pytest.raises(ValueError, match="no closed solution"):
        mixture_2d(noise).transport(torch.zeros(1, 2), t_from, t_to)


def test_conditions_select_components() -> None:
    mixture = mixture_2d(EDM(), components=4, std=0.05)
    x, t = torch.zeros(4, 2, dtype=torch.float64), torch.full((4,), 5.0, dtype=torch.float64)
    got = mixture(x, t, torch.arange(4))
    torch.testing.assert_close(got, mixture.means, rtol=0, atol=0.01)
    everything = mixture(x, t, torch.full((4,), ANY_LABEL))
    torch.testing.assert_close(everything, mixture(x, t))
    with pytest.raises(ValueError, match="class 9"):
        mixture(x, t, torch.full((4,), 9))
    with pytest.raises(ValueError, match="no classes"):
        heavy_tails(EDM(), (2,))(x, t, torch.zeros(4, dtype=torch.int64))


def test_empirical_returns_the_nearest_example_at_low_noise_even_in_float32() -> None:
    data = torch.randn(200, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    mixture = empirical(EDM(), data)
    x = data[:7] + 0.002 * torch.randn(7, 1, 4, 4)
    got = mixture(x, torch.full((7,), 0.002))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, data[:7], rtol=0, atol=1e-6)
    far = mixture(80 * torch.randn(3, 1, 4, 4), torch.full((3,), 800.0))
    torch.testing.assert_close(far, data.mean(0).expand(3, -1, -1, -1), rtol=0, atol=0.1)


def test_gradients_with_respect_to_x_and_t() -> None:
    for mixture in (
        mixture_1d(VPLinear()),
        Mixture(EDM(), torch.randn(3, 2), 0.3 + torch.rand(3, 2)),
    ):
        x = torch.randn(3, *mixture.shape, dtype=torch.float64, requires_grad=True)
        t = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda x, t, m=mixture: m(x, t), (x, t))


def test_heavy_tails_follow_students_t() -> None:
    x = heavy_tails(EDM(), (1,), df=3.0, std=0.5, components=256).draw(100_000, seed=0).flatten()
    from scipy.stats import kstest, t

    assert kstest(x.numpy() / 0.5, t(3).cdf).statistic < 0.01


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(0, 2), torch.zeros(0)), "K >= 1"),
        ((torch.zeros(2, 2), torch.zeros(3)), "stds must be"),
        ((torch.zeros(2, 2), torch.tensor([1.0, -1.0])), "not negative"),
        ((torch.zeros(2, 2), torch.ones(2), torch.tensor([1.0, 0.0])), "positive"),
        ((torch.zeros(2, 2), torch.ones(2), None, torch.zeros(3)), "labels"),
    ],
)
def test_a_wrong_mixture_is_refused(arguments: tuple[torch.Tensor, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Mixture(EDM(), *arguments)
