"""Exact gradients: through the whole sampler, in the starting noise, the knots and the network
times.

The denoiser is a Gaussian mixture, closed and nonlinear; everything in float64. For one noise
schedule and four solvers every entry of the Jacobian is checked by itself, for the others all of
them at once (the Jacobian between two random vectors), which takes a fifth of the time.
"""

from __future__ import annotations

import pytest
import torch
from schedules import SCHEDULES, inside, one_thread  # noqa: F401
from slowly import few

from ld3_dist.core.grid import Grid, discretize
from ld3_dist.core.learning.learnable import COORDINATES, LearnableGrid
from ld3_dist.core.sample import sample
from ld3_dist.core.solver import SOLVERS, make_solver
from ld3_dist.models.analytic.mixture import Mixture

MEANS = torch.tensor([[-0.6, 0.2], [0.5, -0.4], [0.1, 0.8]])
THOROUGH = ("heun", "dpmpp-3", "unipc-3", "ipndm-4")
every_solver = pytest.mark.parametrize("name", SOLVERS)
every_schedule = pytest.mark.parametrize(
    "schedule", few(SCHEDULES, ("vp-linear", "vp-zero-snr", "flow"))
)


@every_schedule
@every_solver
@pytest.mark.siblings(12)
def test_gradcheck_through_the_sampler(name: str, schedule: str) -> None:
    """Knots and network times inside the range, off their nominal places and off the kinks of a
    discrete table.
    """
    noise = SCHEDULES[schedule]
    if noise.name == "vp-discrete" and noise.steps < 50:
        pytest.skip(
            "its coarse table has kinks in the second derivative wherever the perturbation "
            "crosses an entry"
        )
    narrow = inside(noise)
    mixture = Mixture(narrow, MEANS, torch.tensor([0.4, 0.5, 0.6]))
    solver = make_solver(name)
    for nfe in (4, 5) if solver.stages == 1 else (5,):
        knots = discretize(narrow, solver.steps(nfe), "log_snr")
        knots = narrow.inverse(narrow.lam(knots) * 0.98)
        evals = narrow.inverse(narrow.lam(solver.nominal(narrow, knots, nfe)) * 0.97 + 0.01)
        x_T = torch.randn(2, 2, generator=torch.Generator().manual_seed(nfe), dtype=torch.float64)

        def run(
            x: torch.Tensor, knots: torch.Tensor, evals: torch.Tensor, m: Mixture = mixture
        ) -> torch.Tensor:
            return sample(m, solver.tableau(m.noise, Grid(knots, evals)), x)

        inputs = [value.requires_grad_() for value in (x_T, knots, evals)]
        fast = not (noise.name == "vp-linear" and name in THOROUGH)
        assert torch.autograd.gradcheck(run, inputs, eps=1e-6, atol=1e-6, rtol=1e-4, fast_mode=fast)


@every_schedule
@every_solver
@pytest.mark.siblings(16)
def test_gradcheck_from_the_very_ends_of_the_schedule(name: str, schedule: str) -> None:
    """Inner knots and network times; the ends of the range stay as they are, alpha = 0 too."""
    noise = SCHEDULES[schedule]
    if name == "dpm-2" and noise.starts_at_pure_noise:
        pytest.skip("refused")
    mixture = Mixture(noise, MEANS, torch.tensor([0.4, 0.5, 0.6]))
    solver = make_solver(name)
    knots = discretize(noise, 3, "log_snr")
    evals = solver.nominal(noise, knots, 3 * solver.stages - (solver.stages - 1))
    x_T = noise.prior_scale * torch.randn(
        2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    inner = noise.lam(knots[1:-1] * 0.999).clone().requires_grad_()
    later = noise.lam(evals[1:] * 0.998).clone().requires_grad_()

    def run(x: torch.Tensor, inner: torch.Tensor, later: torch.Tensor) -> torch.Tensor:
        whole = torch.cat([knots[:1], noise.inverse(inner), knots[-1:]])
        return sample(
            mixture,
            solver.tableau(noise, Grid(whole, torch.cat([evals[:1], noise.inverse(later)]))),
            x,
        )

    inputs = (x_T.requires_grad_(), inner, later)
    assert torch.isfinite(run(*inputs)).all()
    fast = not (noise.name == "vp-linear" and name in THOROUGH)
    assert torch.autograd.gradcheck(run, inputs, eps=1e-6, atol=1e-5, rtol=2e-3, fast_mode=fast)


@pytest.mark.parametrize("coordinate", COORDINATES)
@pytest.mark.parametrize("name", ["heun", "dpmpp-3", "unipc-3", "ipndm-4", "deis-3"])
@pytest.mark.siblings(4)
def test_gradcheck_of_the_learnable_grid(name: str, coordinate: str) -> None:
    """In logits, offsets and learned coefficients, through the sampler, for two members at once."""
    noise = inside(SCHEDULES["vp-linear"])
    mixture = Mixture(noise, MEANS, torch.tensor([0.4, 0.5, 0.6]))
    solver = make_solver(name)
    starts = torch.stack(
        [discretize(noise, solver.steps(4), start) for start in ("uniform", "log_snr")]
    )
    learnable = LearnableGrid(noise, solver, starts, 4, coordinate, coefficients=True)
    x_T = torch.randn(2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    names = ("logits", "offsets", "corrections")
    values = [getattr(learnable, n).detach() for n in names]
    values = [
        v + 0.1 * torch.randn(v.shape, generator=generator, dtype=torch.float64) for v in values
    ]

    class Run(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.learnable = learnable

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return sample(mixture, self.learnable.tableau()[1], x)

    def run(*values: torch.Tensor) -> torch.Tensor:
        parameters = {f"learnable.{n}": value for n, value in zip(names, values, strict=True)}
        return torch.func.functional_call(Run(), parameters, (x_T,))

    assert torch.autograd.gradcheck(
        run,
        [v.requires_grad_() for v in values],
        eps=1e-6,
        atol=1e-6,
        rtol=1e-4,
        fast_mode=name not in THOROUGH,
    )
