"""Every parametrisation of a network, converted: the same exact denoiser, written as each kind,
comes back.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from schedules import SCHEDULES, inside, one_thread  # noqa: F401

from ld3_dist.core.denoiser import (
    PREDICTIONS,
    Denoiser,
    Guided,
    NetworkDenoiser,
    join_conditions,
    per_sample,
)
from ld3_dist.core.grid import discretize
from ld3_dist.core.noise import NoiseSchedule, VPDiscrete
from ld3_dist.core.sample import sample
from ld3_dist.core.solver import make_solver
from ld3_dist.models.analytic.mixture import ANY_LABEL, Mixture, mixture_2d

SIGMA_DATA = 0.7


class Written(torch.nn.Module):
    """The mixture's denoiser as a network that predicts something else, at its own kind of time."""

    def __init__(
        self,
        mixture: Mixture,
        prediction: str,
        schedule_time: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        super().__init__()
        self.mixture, self.prediction, self.schedule_time = mixture, prediction, schedule_time

    def forward(
        self, x: torch.Tensor, time: torch.Tensor, condition: torch.Tensor | None
    ) -> torch.Tensor:
        noise = self.mixture.noise
        if self.prediction == "edm":
            s = per_sample(torch.exp(4 * time), x)
            t = noise.inverse(-4 * time)
            total = s**2 + SIGMA_DATA**2
            y = x * total.sqrt()
            d = self.mixture(per_sample(noise.alpha(t), x) * y, t, condition)
            return (d - SIGMA_DATA**2 / total * y) * total.sqrt() / (s * SIGMA_DATA)
        t = self.schedule_time(time)
        alpha, sigma = per_sample(noise.alpha(t), x), per_sample(noise.sigma(t), x)
        d = self.mixture(x, t, condition)
        eps = (x - alpha * d) / sigma
        if self.prediction == "velocity":
            return per_sample(noise.d_alpha(t), x) * d + per_sample(noise.d_sigma(t), x) * eps
        return {"data": d, "noise": eps, "v": alpha * eps - sigma * d}[self.prediction]


def wrapped(noise: NoiseSchedule, prediction: str) -> tuple[Mixture, NetworkDenoiser]:
    mixture = mixture_2d(noise)
    if isinstance(noise, VPDiscrete):  # a network that counts 0 … n-1, fractions included
        net = Written(mixture, prediction, lambda k: (k + 1) / noise.steps)
        return mixture, NetworkDenoiser(
            net, noise, (2,), prediction, noise.network_time, SIGMA_DATA
        )
    return mixture, NetworkDenoiser(
        Written(mixture, prediction, lambda t: t), noise, (2,), prediction, None, SIGMA_DATA
    )


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_every_parametrisation_comes_back_as_the_same_denoiser(name: str, prediction: str) -> None:
    noise = inside(SCHEDULES[name])
    if prediction == "v" and name in ("edm", "flow"):
        pytest.skip("v is defined where alpha^2 + sigma^2 = 1")
    mixture, denoiser = wrapped(noise, prediction)
    assert isinstance(denoiser, Denoiser)
    t = torch.linspace(noise.t_min, noise.t_max, 9, dtype=torch.float64)
    x = torch.randn(9, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.arange(9) % 8
    torch.testing.assert_close(denoiser(x, t, labels), mixture(x, t, labels), rtol=1e-9, atol=1e-10)
    times = t[2:5].clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda y, s: denoiser(y, s), (x[2:5].clone().requires_grad_(), times), atol=1e-5
    )
    # and so it samples the same, whatever it predicts
    solver = make_solver("unipc-3")
    tableau = solver.tableau(noise, solver.coupled(noise, discretize(noise, 6, "log_snr")))
    torch.testing.assert_close(
        sample(denoiser, tableau, x), sample(mixture, tableau, x), rtol=1e-8, atol=1e-9
    )


def test_velocity_networks_work_from_pure_noise() -> None:
    noise = SCHEDULES["flow"]
    mixture, denoiser = wrapped(noise, "velocity")
    x, t = torch.randn(3, 2, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    torch.testing.assert_close(denoiser(x, t), mixture(x, t))


class Counted(torch.nn.Module):
    """A mixture that remembers the sizes of its batches."""

    def __init__(self, mixture: Mixture) -> None:
        super().__init__()
        self.mixture, self.noise, self.shape, self.sizes = mixture, mixture.noise, mixture.shape, []

    def forward(
        self, x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor | None = None
    ) -> torch.Tensor:
        self.sizes.append(len(x))
        return self.mixture(x, t, condition)

    def decode(self, x0: torch.Tensor) -> torch.Tensor:
        return x0


def test_guidance_is_one_call_of_twice_the_batch_and_may_change_with_time() -> None:
    mixture = mixture_2d(SCHEDULES["vp-linear"])
    inner = Counted(mixture)
    x, t = (
        torch.randn(4, 2, dtype=torch.float64),
        torch.tensor([0.1, 0.4, 0.6, 0.9], dtype=torch.float64),
    )
    labels, nobody = torch.arange(4), torch.full((4,), ANY_LABEL)
    conditional, free = mixture(x, t, labels), mixture(x, t, nobody)
    for scale in (0.0, 1.0, 2.5):
        guided = Guided(inner, scale, lambda c: torch.full_like(c, ANY_LABEL))
        torch.testing.assert_close(guided(x, t, labels), free + scale * (conditional - free))
    assert inner.sizes == [8, 8, 8]
    interval = Guided(
        inner, lambda s: 1 + 3.0 * (s > 0.3) * (s < 0.7), lambda c: torch.full_like(c, ANY_LABEL)
    )
    expected = free + torch.tensor([1.0, 4.0, 4.0, 1.0])[:, None] * (conditional - free)
    torch.testing.assert_close(interval(x, t, labels), expected)
    with pytest.raises(ValueError, match="guidance needs a condition"):
        interval(x, t)


def test_wrong_requests_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown prediction 'x0'; one of data, noise"):
        NetworkDenoiser(torch.nn.Identity(), SCHEDULES["edm"], (2,), "x0")
    with pytest.raises(TypeError, match="different structure: Tensor and NoneType"):
        join_conditions(torch.ones(1), None)
