"""Grids, hand-made discretizations and the learnable grid."""

from __future__ import annotations

import itertools
import math
import statistics

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from schedules import SCHEDULES, one_thread  # noqa: F401
from scipy.interpolate import CubicHermiteSpline
from slowly import few

from ld3_dist.core.errors import InputError
from ld3_dist.core.grid import AYS, Grid, discretize, lam_range, resample
from ld3_dist.core.learning.learnable import COORDINATES, LearnableGrid
from ld3_dist.core.noise import EDM, FlowMatching, NoiseSchedule, VPLinear
from ld3_dist.core.solver import make_solver

HAND_MADE = ("uniform", "quadratic", "poly-5", "log_snr", "karras", "cosine", "beta")
every = pytest.mark.parametrize("noise", SCHEDULES.values(), ids=SCHEDULES.keys())


@every
@pytest.mark.parametrize("name", HAND_MADE)
def test_discretizations_run_exactly_from_end_to_end(noise: NoiseSchedule, name: str) -> None:
    for steps in (1, 2, 7, 20):
        knots = discretize(noise, steps, name)
        assert knots.shape == (steps + 1,)
        assert knots.dtype == torch.float64
        assert (knots[0].item(), knots[-1].item()) == (noise.t_max, noise.t_min)
        assert (knots.diff() < 0).all()


def test_discretizations_are_what_their_names_say() -> None:
    noise = VPLinear()
    gaps = noise.lam(discretize(noise, 9, "log_snr")).diff()
    torch.testing.assert_close(gaps, gaps[:1].expand(9))
    torch.testing.assert_close(
        discretize(noise, 4, "uniform"), torch.linspace(1, 1e-3, 5, dtype=torch.float64)
    )
    root = discretize(noise, 6, "quadratic").sqrt().diff()
    torch.testing.assert_close(root, root[:1].expand(6))
    root = (discretize(EDM(), 6, "karras") ** (1 / 7)).diff()
    torch.testing.assert_close(root, root[:1].expand(6))
    torch.testing.assert_close(discretize(EDM(), 6, "karras"), discretize(EDM(), 6, "poly-7"))
    dense = discretize(FlowMatching(t_min=0.0), 8, "cosine").diff().abs()
    assert dense[0] == pytest.approx(float(dense[-1]))
    assert dense[0] < dense[3] / 3
    # quantiles of Beta(a, a) are symmetric about one half
    beta = discretize(FlowMatching(t_min=0.0), 10, "beta")
    torch.testing.assert_close(beta + beta.flip(0), torch.ones(11, dtype=torch.float64))
    # the published table itself where ten steps are asked for, its ends being the model's
    noise = SCHEDULES["vp-discrete"]
    knots = discretize(noise, 10, "ays-sd15")
    sigmas = torch.exp(-noise.lam(knots))
    torch.testing.assert_close(
        sigmas[1:-1], torch.tensor(AYS["ays-sd15"][1:-1], dtype=torch.float64)
    )
    half = torch.exp(-noise.lam(discretize(noise, 20, "ays-sd15")))[3]
    assert half == pytest.approx(math.sqrt(6.475 * 3.861), rel=1e-9)


def k(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("knots", "evals", "message"),
    [
        (k(3, 1, 2), k(3, 1), r"knots\[2\] = 2.0 is not below"),
        (k(3, 2, 2), k(3, 2), r"knots\[2\] = 2.0 is not below"),
        (k(3, math.nan, 1), k(3, 2), r"knots\[1\] = nan"),
        (k(3, math.inf, 1), k(3, 2), r"knots\[1\] = inf"),
        (k(3, 2, -1), k(3, 2), r"knots\[2\] = -1.0"),
        (k(3, 2, 1), k(3, math.nan), r"evals\[1\] = nan"),
        (k(3, 2, 1), k(-3, 2), r"evals\[0\] = -3.0"),
        (torch.stack([k(3, 2, 1), k(3, 1, 1)]), torch.ones(2, 2), r"knots\[1, 2\] = 1.0"),
        (k(3), k(3), "at least two"),
        (torch.tensor(3.0), k(3), "at least two"),
        (k(3, 2, 1), torch.ones(2, 2), r"shape \(2, 2\) does not fit knots of shape \(3,\)"),
        (k(3, 2, 1), torch.ones(0), "at least one network time"),
    ],
)
def test_a_wrong_grid_is_refused_by_index_and_value(
    knots: torch.Tensor, evals: torch.Tensor, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        Grid(knots, evals)


def test_times_outside_the_schedule_and_unknown_names_are_refused() -> None:
    with pytest.raises(InputError, match=r"knots\[0\] = 90.0 lies outside \[0.002, 80\]"):
        Grid(k(90, 1, 0.002), k(80, 1)).within(EDM())
    with pytest.raises(InputError, match=r"evals\[1\] = 0.001 lies outside"):
        Grid(k(80, 1, 0.002), k(80, 0.001)).within(EDM())
    with pytest.raises(InputError, match=r"unknown discretization 'karas': did you mean 'karras'"):
        discretize(EDM(), 5, "karas")
    for steps, name in ((0, "uniform"), (3, "poly-0"), (3, "poly--2")):
        with pytest.raises(InputError):
            discretize(EDM(), steps, name)


# --- the learnable grid ---------------------------------------------------------------------------


@every
@pytest.mark.parametrize("coordinate", COORDINATES)
def test_learning_starts_exactly_at_any_discretization(
    noise: NoiseSchedule, coordinate: str
) -> None:
    for solver in map(make_solver, ("unipc-3", "heun", "dpm-2")):
        for nfe in (1, 2, 5, 8):
            starts = torch.stack([discretize(noise, solver.steps(nfe), name) for name in HAND_MADE])
            grid = LearnableGrid(noise, solver, starts, nfe, coordinate).grid()
            tolerance = {"rtol": 0, "atol": 1e-12 * noise.t_max}
            torch.testing.assert_close(grid.knots, starts, **tolerance)
            torch.testing.assert_close(grid.evals, solver.nominal(noise, starts, nfe), **tolerance)


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(sorted(SCHEDULES)),
    coordinate=st.sampled_from(COORDINATES),
    solver=st.sampled_from(("dpmpp-3", "heun", "dpm-2")),
    nfe=st.integers(1, 9),
    start=st.sampled_from(HAND_MADE),
    dtype=st.sampled_from((torch.float32, torch.float64)),
    scale=st.sampled_from((0.1, 1.0, 30.0, 1e6, 1e37)),
    window=st.sampled_from((0.0, 0.5, 0.999)),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_parameters_are_a_valid_schedule(
    name: str,
    coordinate: str,
    solver: str,
    nfe: int,
    start: str,
    dtype: torch.dtype,
    scale: float,
    window: float,
    seed: int,
) -> None:
    noise, rule = SCHEDULES[name], make_solver(solver)
    knots = discretize(noise, rule.steps(nfe), start).expand(3, -1)
    learnable = LearnableGrid(noise, rule, knots, nfe, coordinate, window).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in (learnable.logits, learnable.offsets):
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
        grid = learnable.grid().within(noise)  # Grid refuses what does not decrease strictly
    assert grid.knots.dtype == grid.evals.dtype == torch.float64
    assert (grid.knots[:, 0] == noise.t_max).all()
    assert (grid.knots[:, -1] == noise.t_min).all()
    before, after = rule.brackets(nfe)
    slack = 1e-12 * noise.t_max
    assert (grid.evals <= grid.knots[:, before] + slack).all()
    assert (grid.evals >= grid.knots[:, after] - slack).all()


@pytest.mark.parametrize("dtype", few([torch.float32, torch.float64], [torch.float32]))
@pytest.mark.parametrize("coordinate", COORDINATES)
def test_grids_stay_valid_over_a_hundred_thousand_random_updates(
    dtype: torch.dtype, coordinate: str
) -> None:
    noise = EDM()
    learnable = LearnableGrid(
        noise, make_solver("unipc-3"), discretize(noise, 8, "karras").expand(4, -1), 8, coordinate
    )
    learnable.to(dtype)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for update in range(100_000):
            for parameter in (learnable.logits, learnable.offsets):
                parameter.add_(
                    torch.randn(parameter.shape, generator=generator, dtype=dtype), alpha=0.3
                )
            if update % 250 == 0:
                learnable.grid().within(noise)
        learnable.grid().within(noise)


@pytest.mark.parametrize("coordinate", COORDINATES)
def test_offsets_are_bounded_by_the_gaps_in_their_own_coordinate(coordinate: str) -> None:
    noise, solver = VPLinear(), make_solver("ipndm-3")
    knots = discretize(noise, 6, "quadratic")[None]
    u = noise.lam(knots[0]) if coordinate == "lambda" else -knots[0]
    for sign in (1.0, -1.0):
        learnable = LearnableGrid(noise, solver, knots, 6, coordinate, window=0.5)
        with torch.no_grad():
            learnable.offsets.fill_(sign * 50)
            evals = learnable.grid().evals[0]
        moved = (noise.lam(evals) if coordinate == "lambda" else -evals) - u[:-1]
        expected = 0.5 * (u.diff() if sign > 0 else torch.cat([-u.diff()[:1], u.diff()[:-1]]) * -1)
        torch.testing.assert_close(
            moved, expected, rtol=1e-9, atol=1e-11
        )  # the first can only move forwards


def test_every_parameter_of_the_learnable_grid_has_a_gradient() -> None:
    for noise in SCHEDULES.values():
        for coordinate in COORDINATES:
            solver = make_solver("ipndm-2")
            learnable = LearnableGrid(
                noise, solver, discretize(noise, 5, "uniform")[None], 5, coordinate
            )
            grid = learnable.grid()
            (grid.knots.sin().sum() + grid.evals.cos().sum()).backward()
            for parameter in (learnable.logits, learnable.offsets):
                assert parameter.grad is not None
                assert torch.isfinite(parameter.grad).all()
                assert (parameter.grad != 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"coordinate": "sigma"}, "unknown coordinate 'sigma'"),
        ({"window": 1.0}, "offset_window = 1.0"),
        (
            {"knots": k(80, 1, 1 - 1e-14, 0.002)[None]},
            r"knots\[0, 2\] = 0.99999999999999 cannot be told",
        ),
        ({"knots": k(90, 3, 1, 0.002)[None]}, r"knots\[0, 0\] = 90.0 lies outside"),
        ({"knots": k(80, 1, 0.002)[None]}, "3 evaluations of ddim take 3 steps, the grid has 2"),
    ],
)
def test_a_wrong_start_is_refused(arguments: dict, message: str) -> None:
    given_ = {"knots": discretize(EDM(), 3, "karras")[None], "nfe": 3} | arguments
    with pytest.raises(InputError, match=message):
        LearnableGrid(EDM(), make_solver("ddim"), **given_)


def test_softened_ends_leave_room_for_the_start() -> None:
    noise = FlowMatching(t_min=0.0)
    low, high = lam_range(noise)
    assert low == pytest.approx(-math.log(1e3))
    assert high == pytest.approx(math.log(1e3))
    knots = k(1, 0.9999, 0.5, 1e-5, 0)[None]
    torch.testing.assert_close(
        LearnableGrid(noise, make_solver("dpmpp-2"), knots, 4).grid().knots,
        knots,
        rtol=1e-9,
        atol=1e-12,
    )


@pytest.mark.parametrize("noise", [EDM(), VPLinear()], ids=lambda noise: noise.name)
@pytest.mark.parametrize("steps", [1, 2, 5, 6, 12])
@pytest.mark.parametrize("known", [1, 2, 6])
def test_resampling_is_a_monotone_cubic(noise: NoiseSchedule, steps: int, known: int) -> None:
    """lam over the share of steps, against SciPy's Hermite splines; the same number of steps gives
    the grid back.
    """
    knots = discretize(noise, known, "karras")
    found = resample(noise, knots, steps)
    lam, line = noise.lam(knots).numpy(), np.linspace(0, 1, known + 1)
    slope = np.gradient(
        lam, line
    )  # right at the ends; inside, the harmonic mean of both sides takes its place
    rise = np.diff(lam) * known
    slope[1:-1] = [statistics.harmonic_mean(pair) for pair in itertools.pairwise(rise)]
    curve = CubicHermiteSpline(line, lam, slope)(np.linspace(0, 1, steps + 1))
    assert (np.diff(curve) > 0).all()
    torch.testing.assert_close(noise.lam(found), torch.from_numpy(curve), rtol=1e-8, atol=1e-8)
    if steps == known:
        torch.testing.assert_close(found, knots, rtol=1e-9, atol=1e-12)


def test_resampling_what_is_no_grid() -> None:
    with pytest.raises(InputError, match="steps = 0"):
        resample(EDM(), discretize(EDM(), 3, "karras"), 0)
    with pytest.raises(InputError, match="outside"):
        resample(EDM(), torch.tensor([90.0, 1.0, 0.002]), 4)
