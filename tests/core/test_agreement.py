"""Agreement with diffusers' schedulers, driven on our grids through their own `step`.

A scheduler is given the grid as `sigmas` (= sigma / alpha) and, at every step, what the exact
denoiser says at its own state and our time. Their arithmetic is partly float32: 1e-5 is what can be
asked. Where the formulas differ:

- DEISMultistep is the log-rho variant (polynomials in log(sigma / alpha) = -lam), ours is
  deis-<p>-lam; `deis-<p>`, the paper's time-AB, interpolates in t and has no counterpart there;
- it lowers the order at the end below 15 steps, which the paper does not: lower_order_final is
given;
- HeunDiscrete ends on an Euler step even above sigma = 0, so N steps are 2N - 1 evaluations;
- the UniPC and DPM-Solver++ of diffusers lower the last order whatever the length if the last sigma
  is zero; on ours, where it is not, they agree as they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from schedules import one_thread  # noqa: F401

from ld3_dist.core.grid import discretize
from ld3_dist.core.noise import EDM, FlowMatching, NoiseSchedule, VPLinear
from ld3_dist.core.sample import sample
from ld3_dist.core.solver import make_solver
from ld3_dist.models.analytic.mixture import Mixture

schedulers = pytest.importorskip("diffusers.schedulers")


def problem(noise: NoiseSchedule) -> tuple[Mixture, torch.Tensor]:
    means = torch.tensor([[-0.6, 0.2], [0.5, -0.4], [0.1, 0.8]])
    x_T = noise.prior_scale * torch.randn(
        6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    return Mixture(noise, means, torch.tensor([0.4, 0.3, 0.2])), x_T


def drive(
    scheduler: Any, sigmas: torch.Tensor, times: torch.Tensor, mixture: Mixture, x: torch.Tensor
) -> torch.Tensor:
    """Their loop: one `step` per time, the model's output being x_0, or the velocity for flow
    matching.
    """
    scheduler.sigmas, scheduler.num_inference_steps = sigmas, len(times)
    scheduler.timesteps = torch.arange(len(times), 0, -1).float()
    scheduler.set_begin_index(0)
    for k, t in enumerate(times):
        out = mixture(x, t.expand(len(x)))
        if isinstance(scheduler, schedulers.FlowMatchEulerDiscreteScheduler):
            out = (x - out) / t  # eps - x_0, with x = (1 - t) x_0 + t eps
        x = scheduler.step(out, scheduler.timesteps[k], x, return_dict=False)[0].double()
    return x


def ours(
    name: str, noise: NoiseSchedule, knots: torch.Tensor, nfe: int | None = None, **options: Any
) -> torch.Tensor:
    mixture, x_T = problem(noise)
    solver = make_solver(name, **options)
    return sample(mixture, solver.tableau(noise, solver.coupled(noise, knots, nfe)), x_T)


def multistep_case(scheduler: Any, name: str, steps: int, **options: Any) -> None:
    noise = VPLinear()
    for start in ("log_snr", "quadratic"):
        knots = discretize(noise, steps, start)
        mixture, x_T = problem(noise)
        theirs = drive(
            scheduler(), noise.sigma(knots) / noise.alpha(knots), knots[:-1], mixture, x_T
        )
        torch.testing.assert_close(
            ours(name, noise, knots, **options), theirs, rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("steps", [1, 2, 3, 6, 16])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_dpm_solver_multistep(order: int, steps: int) -> None:
    make = lambda: schedulers.DPMSolverMultistepScheduler(
        solver_order=order,
        prediction_type="sample",
        algorithm_type="dpmsolver++",
        final_sigmas_type="sigma_min",
    )
    multistep_case(make, f"dpmpp-{order}", steps)


@pytest.mark.parametrize("steps", [1, 2, 3, 6, 16])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("B", ["bh1", "bh2"])
def test_unipc(order: int, B: str, steps: int) -> None:
    make = lambda: schedulers.UniPCMultistepScheduler(
        solver_order=order, prediction_type="sample", solver_type=B, final_sigmas_type="sigma_min"
    )
    multistep_case(make, f"unipc-{order}-{B}", steps)


@pytest.mark.parametrize("steps", [1, 2, 3, 6, 16])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis(order: int, steps: int) -> None:
    make = lambda: schedulers.DEISMultistepScheduler(solver_order=order, prediction_type="sample")
    name = f"deis-{order}" if order == 1 else f"deis-{order}-lam"
    multistep_case(make, name, steps, lower_order_final=steps < 15)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_heun(steps: int) -> None:
    noise = EDM()
    knots = discretize(noise, steps, "karras")
    mixture, x_T = problem(noise)
    doubled = torch.cat([knots[:1], knots[1:-1].repeat_interleave(2), knots[-1:]])
    times = torch.cat([knots[:1], knots[1:-1].repeat_interleave(2)])
    scheduler = schedulers.HeunDiscreteScheduler(prediction_type="sample")
    theirs = drive(scheduler, doubled, times, mixture, x_T)
    torch.testing.assert_close(
        ours("heun", noise, knots, 2 * steps - 1), theirs, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_flow_match_euler(steps: int) -> None:
    noise = FlowMatching()
    knots = discretize(noise, steps, "uniform")
    mixture, x_T = problem(noise)
    theirs = drive(
        schedulers.FlowMatchEulerDiscreteScheduler(shift=1.0), knots, knots[:-1], mixture, x_T
    )
    torch.testing.assert_close(ours("euler", noise, knots), theirs, rtol=1e-5, atol=1e-5)
