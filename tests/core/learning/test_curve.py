"""The curve: its grids are valid for all parameters, exact where the answer is known, and move
smoothly.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.interpolate
import torch
from schedules import SCHEDULES
from torch import Tensor

from ld3_dist.core.errors import InputError
from ld3_dist.core.grid import DISCRETIZATIONS, discretize
from ld3_dist.core.learning.curve import PARAMETERS, Curve, spline, spline_knots, spline_rises
from ld3_dist.core.learning.learnable import LearnableGrid
from ld3_dist.core.noise import EDM, FlowMatching, NoiseSchedule
from ld3_dist.core.solver import make_solver

NFES = (4, 5, 6, 7, 8, 9, 10)
ALL = SCHEDULES | {"flow to the end": FlowMatching(t_min=0.0)}


def starts(noise: NoiseSchedule, solver: str, *names: str) -> dict[int, Tensor]:
    student = make_solver(solver)
    return {
        nfe: torch.stack([discretize(noise, student.steps(nfe), name) for name in names])
        for nfe in NFES
    }


def made(noise: NoiseSchedule, solver: str = "unipc-3", *names: str, **options: Any) -> Curve:
    return Curve.like(
        noise, make_solver(solver), starts(noise, solver, *(names or ("log_snr",))), **options
    )


@pytest.mark.parametrize("points", [1, 2, 3, 4, 8, 13])
def test_the_spline_is_that_of_another_library(points: int) -> None:
    degree, s = min(3, points), np.linspace(0, 1, 37)
    knots = spline_knots(points).numpy()
    expected = scipy.interpolate.BSpline.design_matrix(s, knots, degree).toarray()
    np.testing.assert_allclose(spline(tuple(s), points).numpy(), expected, atol=1e-14)
    gaps = np.random.default_rng(0).random(points)
    controls = np.concatenate([[0], np.cumsum(gaps)])
    values = scipy.interpolate.BSpline(knots, controls, degree)(s)
    found = spline_rises(tuple(s), points).numpy() @ gaps
    np.testing.assert_allclose(found, values, atol=1e-14)


@pytest.mark.parametrize("noise", ALL.values(), ids=ALL)
@pytest.mark.parametrize("solver", ["unipc-3", "heun"])
def test_the_straight_line_is_the_log_snr_grid(noise: NoiseSchedule, solver: str) -> None:
    """At every NFE, also at one that it was not learned on; in time it is the uniform grid."""
    student = make_solver(solver)
    for coordinate, name in (("lambda", "log_snr"), ("time", "uniform")):
        curve = made(noise, solver, name, coordinate=coordinate)
        for nfe in (*NFES, student.stages, 3, 23):
            expected = discretize(noise, student.steps(nfe), name)
            grid = curve.grid(nfe)
            torch.testing.assert_close(grid.knots[0], expected, rtol=1e-9, atol=1e-9)
            nominal = student.nominal(noise, expected, nfe)
            torch.testing.assert_close(grid.evals[0], nominal, rtol=1e-9, atol=1e-9)


def test_a_start_that_a_curve_can_hold_is_found_again() -> None:
    """A random curve's own grids, also its tilt: two numbers per gap against 33 knots."""
    noise, student = EDM(), make_solver("dpmpp-3")
    generator = torch.Generator().manual_seed(0)
    curve = Curve(noise, student, NFES, made(noise).ends, points=5)
    draw = lambda p: 0.7 * torch.randn(p.shape, generator=generator, dtype=torch.float64)
    values = {name: draw(value) for name, value in curve.values().items()}
    values["offsets"], values["drift"] = 0 * values["offsets"], 0 * values["drift"]
    curve.set(values)
    found = Curve.like(noise, student, {n: curve.grid(n).knots.detach() for n in NFES}, points=5)
    for nfe in (*NFES, 6):
        lam, wanted = noise.lam(found.grid(nfe).knots), noise.lam(curve.grid(nfe).knots)
        torch.testing.assert_close(lam, wanted, rtol=0, atol=2e-4)


def test_hand_made_starts_are_fitted_well() -> None:
    """Their knots in lambda, to a tenth of a step, by enough points."""
    noise = EDM()
    names = tuple(n for n in DISCRETIZATIONS if n in ("karras", "uniform", "quadratic", "cosine"))
    curve = made(noise, "unipc-3", *names, points=12)
    for nfe, knots in starts(noise, "unipc-3", *names).items():
        lam, wanted = noise.lam(curve.grid(nfe).knots.detach()), noise.lam(knots)
        assert float(((lam - wanted).abs()[:, 1:-1] / wanted.diff().amin(1)[:, None]).max()) < 0.1


@pytest.mark.parametrize("noise", ALL.values(), ids=ALL)
@pytest.mark.parametrize("coordinate", ["lambda", "time"])
@pytest.mark.parametrize("solver", ["unipc-3", "dpm-2", "heun"])
def test_any_parameters_make_valid_grids(
    noise: NoiseSchedule, coordinate: str, solver: str
) -> None:
    """Knots decrease strictly from t_max, or a learned start, to t_min, and network times stay
    between their neighbours: `Grid` refuses anything else. Also far from zero.
    """
    student, later = make_solver(solver), [False, True] * 6
    curve = Curve(
        noise, student, NFES, made(noise, solver, coordinate=coordinate).ends.repeat(12, 1),
        coordinate, window=0.9, later=later,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    scale = torch.logspace(-1, 2, 12, dtype=torch.float64)[:, None]
    draw = lambda p: scale * torch.randn(p.shape, generator=generator, dtype=torch.float64)
    curve.set({name: draw(value) for name, value in curve.values().items()})
    for nfe in (student.stages, 3, 4, 7, 10, 40):
        grid = curve.grid(nfe).within(noise)
        knots, evals = grid.knots.detach(), grid.evals.detach()
        assert knots[::2, 0].eq(noise.t_max).all()
        assert knots[1::2, 0].le(noise.t_max).all()
        assert knots[:, -1].eq(noise.t_min).all()
        before, after = student.brackets(nfe)
        slack = 1e-9 * noise.t_max
        assert (evals <= knots[:, before] + slack).all()
        assert (evals >= knots[:, after] - slack).all()


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("noise", [EDM(), FlowMatching(t_min=0.0)], ids=["edm", "flow"])
def test_gradients_of_the_table_are_exact(noise: NoiseSchedule, later: bool) -> None:
    """With respect to all parameters, at an NFE that the curve was learned on and at another."""
    student = make_solver("unipc-2")
    curve = Curve(noise, student, (4, 6), made(noise).ends, points=4, later=later)
    generator = torch.Generator().manual_seed(2)
    sizes = {name: value.shape for name, value in curve.values().items()}
    given = [
        (0.3 * torch.randn(s, generator=generator, dtype=torch.float64)).requires_grad_()
        for s in sizes.values()
    ]

    def tables(*values: Tensor) -> tuple[Tensor, ...]:
        own = dict(zip(PARAMETERS, values, strict=True))
        found: list[Tensor] = []
        calls = Calls(curve)
        for nfe in (5, 6):
            table = torch.func.functional_call(calls, {f"curve.{n}": own[n] for n in own}, nfe)
            found += table
        return tuple(found)

    assert torch.autograd.gradcheck(tables, given, atol=1e-6, rtol=1e-4)


class Calls(torch.nn.Module):
    """A curve's table as the call of a module, so that its parameters can be replaced."""

    def __init__(self, curve: Curve) -> None:
        super().__init__()
        self.curve = curve

    def forward(self, nfe: int) -> list[Tensor]:
        table = self.curve.tableau(nfe)[1]
        return [table.evals, table.state, table.outputs]


def test_a_learned_start_is_that_of_a_single_grid() -> None:
    """At first, from log_snr: the same knots, and the same noise at their first level."""
    for noise in (EDM(), FlowMatching()):
        student = make_solver("unipc-3")
        curve = made(noise, "unipc-3", "log_snr", "log_snr", later=[False, True])
        for nfe in NFES:
            knots = discretize(noise, nfe, "log_snr").repeat(2, 1)
            single = LearnableGrid(noise, student, knots, nfe, start_time=[False, True])
            (grid, table), (expected, wanted) = curve.tableau(nfe), single.tableau()
            torch.testing.assert_close(grid.knots, expected.knots, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(table.state, wanted.state, rtol=1e-9, atol=1e-9)
            assert grid.knots[0, 0] == noise.t_max > grid.knots[1, 0]


def test_a_start_moves_with_the_number_of_evaluations() -> None:
    """As the logit of the skipped range says, which `delay` changes for every doubling."""
    curve = made(EDM(), later=True)
    curve.set(curve.values() | {"delay": torch.tensor([[-1.5]], dtype=torch.float64)})
    low, high = curve.ends[0].tolist()
    for nfe in NFES:
        logit = math.log(0.05 / 0.85) - 1.5 * math.log2(nfe / curve.middle)
        begin = low + (high - low) * 0.9 / (1 + math.exp(-logit))
        lam = EDM().lam(curve.grid(nfe).knots[0, 0]).item()
        assert lam == pytest.approx(begin, rel=1e-12)


def test_beyond_the_nfes_learned_on_the_shape_stays() -> None:
    curve = made(EDM())
    assert curve.octaves(10) == curve.octaves(200) == math.log2(10 / curve.middle)
    assert curve.octaves(4) == curve.octaves(1) == math.log2(4 / curve.middle)
    assert sum(curve.octaves(n) for n in NFES) == pytest.approx(0, abs=1e-12)


def test_one_member_is_the_same_alone() -> None:
    """To the last bit: a file holds one of the members that were learned side by side."""
    both = made(EDM(), "unipc-3", "karras", "log_snr", later=[False, True])
    alone = made(EDM(), "unipc-3", "log_snr", later=True)
    values = {name: value[1:] for name, value in both.values().items()}
    alone.set(values)
    for nfe in NFES:
        assert alone.grid(nfe).knots[0].equal(both.grid(nfe).knots[1])
        assert alone.grid(nfe).evals[0].equal(both.grid(nfe).evals[1])


def test_bad_settings_are_refused() -> None:
    with pytest.raises(InputError, match="coordinate"):
        made(EDM(), coordinate="sigma")
    with pytest.raises(InputError, match="offset_window"):
        made(EDM(), window=1.0)
    with pytest.raises(InputError, match="at least 1 network evaluation"):
        made(EDM()).grid(0)
