"""Solvers: tables and their invariants, exact answers, measured orders, schedules that describe the
same ODE.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from schedules import SCHEDULES, inside, one_thread  # noqa: F401
from torch.utils._python_dispatch import TorchDispatchMode

from ld3_dist.core.errors import InputError
from ld3_dist.core.grid import Grid, discretize
from ld3_dist.core.noise import EDM, FlowMatching, NoiseSchedule, VPLinear
from ld3_dist.core.rules import moments, orders, phi
from ld3_dist.core.sample import sample
from ld3_dist.core.solver import SOLVERS, Solver, Tableau, make_solver
from ld3_dist.models.analytic.mixture import Mixture, gaussian, mixture_1d

every_schedule = pytest.mark.parametrize("noise", SCHEDULES.values(), ids=SCHEDULES.keys())
every_solver = pytest.mark.parametrize("name", SOLVERS)


def runs(name: str, noise: NoiseSchedule) -> bool:
    return not (name == "dpm-2" and noise.starts_at_pure_noise)


def decoupled(solver: Solver, noise: NoiseSchedule, nfe: int, start: str = "cosine") -> Grid:
    grid = solver.coupled(noise, discretize(noise, solver.steps(nfe), start), nfe)
    shift = 0.03 * torch.rand(
        nfe, generator=torch.Generator().manual_seed(nfe), dtype=torch.float64
    )
    return Grid(grid.knots, grid.evals * (1 - shift) + noise.t_min * shift)


class Counting:
    """Counts the samples it is asked for."""

    def __init__(self, inner: Mixture) -> None:
        self.inner, self.noise, self.shape, self.calls = inner, inner.noise, inner.shape, 0

    def __call__(self, x: torch.Tensor, t: torch.Tensor, condition: object = None) -> torch.Tensor:
        self.calls += 1
        return self.inner(x, t)

    def decode(self, x0: torch.Tensor) -> torch.Tensor:
        return x0


@every_schedule
@every_solver
@pytest.mark.siblings(40)
def test_tables_cost_what_they_say_and_run_forwards(noise: NoiseSchedule, name: str) -> None:
    if not runs(name, noise):
        pytest.skip("refused, see test_what_cannot_run")
    solver = make_solver(name)
    for nfe in range(1, 8):
        grid = decoupled(solver, noise, nfe)
        tableau = solver.tableau(noise, grid)
        assert grid.steps == solver.steps(nfe)
        assert tableau.outputs.shape == (nfe + 1, nfe)
        assert torch.equal(tableau.outputs, tableau.outputs.tril(-1))
        assert tableau.state[0] == 1
        assert torch.isfinite(tableau.outputs).all()
        assert torch.isfinite(tableau.state).all()
        counting = Counting(mixture_1d(noise))
        x_0 = sample(counting, tableau, noise.prior_scale * torch.randn(3, 1, dtype=torch.float64))
        assert counting.calls == nfe
        assert x_0.shape == (3, 1)
        assert torch.isfinite(x_0).all()


@every_schedule
@every_solver
def test_a_trajectory_with_constant_data_is_reproduced(noise: NoiseSchedule, name: str) -> None:
    """With D = c everywhere x_t = alpha c + sigma z is a solution for any c and z, also between the
    knots.

    Every solver is exact on it except those that step in t where the path is curved in t: euler and
    heun, exact for EDM and flow matching alone."""
    curved = name in ("euler", "heun") and noise.name not in ("edm", "flow")
    if not runs(name, noise) or curved:
        pytest.skip("not promised")
    solver = make_solver(name)
    for nfe in (1, 2, 3, 6):
        grid = solver.coupled(noise, discretize(noise, solver.steps(nfe), "cosine"), nfe)
        tableau = solver.tableau(noise, grid)
        times = torch.cat([grid.evals, grid.knots[-1:]])
        alpha, sigma = noise.alpha(times), noise.sigma(times)
        # y_i = alpha_i c + sigma_i z with x_T = alpha_0 c + sigma_0 z: coefficients of z, then of c
        torch.testing.assert_close(tableau.state * sigma[0], sigma, rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(
            tableau.state * alpha[0] + tableau.outputs.sum(1), alpha, rtol=1e-7, atol=2e-9
        )


def test_network_times_of_noise_rules_are_the_networks_own() -> None:
    """Euler on EDM: y_1 = x_T + (t_1 - t_0) (x_T - m_0) / t_0, for the noise in x_T is known
    wherever the network is asked, and y_2 = y_1 + (t_2 - t_1) (y_1 - m_1) / tau_1: from then on the
    time in the quotient is the network's."""
    knots, evals = torch.tensor([80.0, 4.0, 1.0]).double(), torch.tensor([50.0, 3.0]).double()
    tableau = make_solver("euler").tableau(EDM(), Grid(knots, evals))
    first = 1 - 76 / 80
    assert tableau.state[1:].tolist() == pytest.approx([first, first * (1 - 3 / 3)])
    assert tableau.outputs[1].tolist() == pytest.approx([76 / 80, 0])
    assert tableau.outputs[2].tolist() == pytest.approx([76 / 80 * (1 - 3 / 3), 3 / 3])
    evals[1] = 2.0
    assert float(
        make_solver("euler").tableau(EDM(), Grid(knots, evals)).outputs[2, 1]
    ) == pytest.approx(3 / 2)
    # data rules give the network's output its weight whatever time it was asked at
    for name in ("dpmpp-3", "unipc-3"):
        solver = make_solver(name)
        moved, nominal = (
            decoupled(solver, EDM(), 5),
            solver.coupled(EDM(), discretize(EDM(), 5, "cosine")),
        )
        torch.testing.assert_close(
            solver.tableau(EDM(), moved).outputs, solver.tableau(EDM(), nominal).outputs
        )


@every_solver
def test_a_gaussian_is_transported_exactly_in_the_limit(name: str) -> None:
    """Its flow is linear and known; where the std is zero every rule on data or noise is exact at
    once.
    """
    for noise in (inside(EDM()), inside(VPLinear()), inside(FlowMatching())):
        x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        normal = gaussian(noise, torch.tensor([0.3, -0.6]), torch.tensor([0.4, 0.9]))
        solver = make_solver(name)
        exact = normal.transport(x, noise.t_max, noise.t_min)
        error = []
        for nfe in (20, 80):
            grid = solver.coupled(noise, discretize(noise, solver.steps(nfe), "log_snr"), nfe)
            error.append(
                (sample(normal, solver.tableau(noise, grid), x) - exact).abs().max().item()
            )
        assert error[1] < 0.3 * error[0] < 0.03
        point = gaussian(noise, torch.tensor([0.3, -0.6]), torch.zeros(2))
        if name not in ("euler", "heun") or noise.name in ("edm", "flow"):
            grid = solver.coupled(noise, discretize(noise, solver.steps(5), "uniform"), 5)
            made = sample(point, solver.tableau(noise, grid), x)
            torch.testing.assert_close(
                made, point.transport(x, noise.t_max, noise.t_min), rtol=1e-11, atol=1e-12
            )


# --- invariance -----------------------------------------------------------------------------------

NOT_INVARIANT = ("euler", "heun", "deis-2", "deis-3")


@every_solver
def test_the_same_ode_in_three_schedules_has_the_same_sample(name: str) -> None:
    """VE, VP and flow matching differ by the scale of x and by the clock. A rule that knows only
    lam cannot tell.

    Not invariant: euler and heun step in t, and deis interpolates in t. They must differ, or the
    test sees nothing.
    Nor is any rule on a decoupled grid: a network at another time than its state's sees it in
    another scale."""
    lam = torch.tensor([-1.5, -1.1, -0.2, 0.4, 0.5, 1.3, 2.0], dtype=torch.float64)
    x = torch.randn(7, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    solver, made = make_solver(name), []
    for noise in (
        EDM(),
        VPLinear(),
        FlowMatching(),
        SCHEDULES["vp-cosine"],
        SCHEDULES["vp-discrete"],
    ):
        noise = inside(noise)
        knots = torch.cat(
            [lam.new_tensor([noise.t_max]), noise.inverse(lam[1:-1]), lam.new_tensor([noise.t_min])]
        )
        x_T = noise.alpha(knots[0]) * x * math.exp(1.5)
        x_0 = sample(mixture_1d(noise), solver.tableau(noise, solver.coupled(noise, knots)), x_T)
        made.append(x_0 / noise.alpha(knots[-1]))
    gap = max((other - made[0]).abs().max().item() for other in made[1:])
    assert (gap > 1e-4) if name in NOT_INVARIANT else (gap < 1e-9)


# --- parts ----------------------------------------------------------------------------------------


def test_phi_functions_against_rational_arithmetic() -> None:
    from fractions import Fraction

    def exact(h: Fraction, k: int) -> float:
        return float(sum((-h) ** j / math.factorial(j + k) for j in range(200)))

    values = (1e-9, 1e-3, 0.1, 1.0, 4.0, 13.0, 23.0, 46.0)
    got = phi(torch.tensor(values, dtype=torch.float64), 4)
    for k in range(1, 5):
        for n, h in enumerate(values):
            assert float(got[k - 1][n]) == pytest.approx(exact(Fraction(h), k), rel=2e-14)


def test_moment_systems_are_solved() -> None:
    generator = torch.Generator().manual_seed(0)
    for n in (1, 2, 3):
        nodes = [torch.rand(5, generator=generator, dtype=torch.float64) + k for k in range(n)]
        b = [torch.rand(5, generator=generator, dtype=torch.float64) for _ in range(n)]
        rho = moments(nodes, b)
        for m in range(n):
            torch.testing.assert_close(sum(r * x**m for r, x in zip(rho, nodes, strict=True)), b[m])


def test_orders_warm_up_and_lower_as_each_method_says() -> None:
    assert orders(3, 6, True) == [1, 2, 3, 3, 2, 1]
    assert orders(3, 6, False) == [1, 2, 3, 3, 3, 3]
    assert orders(3, 14, None)[-2:] == [2, 1]
    assert orders(3, 15, None)[-2:] == [3, 3]
    assert orders(4, 2, False) == [1, 2]
    assert [make_solver(name).steps(7) for name in ("heun", "dpm-2", "unipc-3")] == [4, 4, 7]


def test_names_that_mean_the_same() -> None:
    noise, x = VPLinear(), torch.randn(2, 1, dtype=torch.float64)
    grid = make_solver("ddim").coupled(noise, discretize(noise, 5, "uniform"))
    made = [
        sample(mixture_1d(noise), make_solver(name).tableau(noise, grid), x)
        for name in ("ddim", "ipndm-1", "deis-1", "dpmpp-1")
    ]
    for other in made[1:]:
        torch.testing.assert_close(other, made[0], rtol=0, atol=1e-13)
    for p in (1, 2, 3):
        a, b = (
            make_solver(f"unipc-{p}{ending}").tableau(noise, grid).outputs
            for ending in ("", "-bh2")
        )
        assert torch.equal(a, b)


def test_what_cannot_run() -> None:
    flow, edm, zero = FlowMatching(), EDM(), EDM(t_min=0.0)
    solver = make_solver("dpm-2")
    grid = solver.coupled(flow, discretize(flow, 3, "uniform"))
    with pytest.raises(
        InputError, match=r"dpm-2 cannot run on flow from t_max = 1.0, where alpha = 0"
    ):
        solver.tableau(flow, grid)
    solver = make_solver("heun")
    grid = solver.coupled(zero, torch.tensor([80.0, 0.0]).double())
    with pytest.raises(InputError, match=r"evals\[0, 1\] = 0.0: no noise there"):
        solver.tableau(zero, grid)
    with pytest.raises(InputError, match="heun on 3 steps makes 6 evaluations, the grid has 3"):
        make_solver("heun").tableau(
            edm, make_solver("ddim").coupled(edm, discretize(edm, 3, "karras"))
        )
    with pytest.raises(InputError, match="lies outside"):
        make_solver("ddim").tableau(
            flow, make_solver("ddim").coupled(edm, discretize(edm, 3, "karras"))
        )
    with pytest.raises(InputError, match="nfe = 0"):
        make_solver("ddim").steps(0)
    with pytest.raises(InputError, match="unknown solver 'uni-pc-3': did you mean 'unipc-3'"):
        make_solver("uni-pc-3")
    with pytest.raises(InputError, match="interior = 1"):
        make_solver("dpm-2", interior=1.0)
    with pytest.raises(InputError, match=r"tableau: evals \(2,\)"):
        Tableau(torch.ones(2), torch.ones(2), torch.ones(3, 2))


@pytest.mark.parametrize("name", ["heun", "dpm-2", "dpmpp-3", "unipc-3", "ipndm-4", "deis-3"])
def test_a_table_is_cheap_whatever_the_number_of_members(name: str) -> None:
    """A few hundred operations to build and to differentiate, as many for 64 members as for one.

    What that takes in milliseconds is the business of experiments/benchmarks/tableau.py.
    """
    for noise in (SCHEDULES["edm"], SCHEDULES["vp-discrete"]):
        counts = []
        for members in (1, 64):
            solver = make_solver(name)
            knots = (
                discretize(noise, solver.steps(8), "log_snr")
                .expand(members, -1)
                .clone()
                .requires_grad_()
            )
            evals = solver.nominal(noise, knots.detach(), 8).clone().requires_grad_()
            solver.tableau(noise, Grid(knots, evals))  # constants are kept from here on
            with Operations() as build:
                tableau = solver.tableau(noise, Grid(knots, evals))
            with Operations() as backward:
                (tableau.state.sum() + tableau.outputs.sum()).backward()
            counts.append((build.count, backward.count))
        assert counts[0] == counts[1]
        assert counts[0][0] <= 600
        assert counts[0][1] <= 1000


class Operations(TorchDispatchMode):
    """How many operations ran."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))
