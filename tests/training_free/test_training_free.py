"""DMN, GITS and OptimalSteps against independent figures and exhaustive searches."""

from __future__ import annotations

import itertools

import pytest
import torch
from schedules import one_thread  # noqa: F401
from slowly import few

from ld3_dist.core.errors import InputError
from ld3_dist.core.grid import Grid, discretize
from ld3_dist.core.noise import EDM, FlowMatching, NoiseSchedule, VPLinear
from ld3_dist.core.sample import draw_noise, sample
from ld3_dist.core.solver import make_solver
from ld3_dist.models.analytic.mixture import gaussian, mixture_1d, mixture_2d
from ld3_dist.training_free import TRAINING_FREE, find_knots
from ld3_dist.training_free.dmn import dmn, multistep_weights, objective
from ld3_dist.training_free.gits import costs, gits, shortest_path
from ld3_dist.training_free.optimal_steps import nearest_chain, optimal_steps
from ld3_dist.training_free.trajectory import follow

# the objective where another implementation ends (LD3's published code, scipy's trust-constr from
# one start)
PUBLISHED_DMN = {
    "edm": (
        122.70283623957,
        102.22626248583,
        79.41820078713,
        55.49452992810,
        17.1645,
        22.4734,
        17.8439,
    ),
    "vp-linear": (
        60.83768933848,
        49.90481921845,
        38.34771500073,
        25.80650709305,
        12.7963,
        10.3054,
        8.64567,
    ),
}


@pytest.mark.parametrize("steps", few(range(4, 11), (5,)))
@pytest.mark.parametrize("noise", [EDM(), VPLinear()], ids=lambda noise: noise.name)
@pytest.mark.siblings(1)
def test_dmn_ends_no_higher_than_an_independent_implementation(
    noise: NoiseSchedule, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr(
        "ld3_dist.training_free.dmn.objective",
        lambda *arguments: calls.append(arguments) or objective(*arguments),
    )
    knots = dmn(noise, steps)
    # 400 steps of descent, one choice among the starts, three times polishing
    assert 400 < len(calls) <= 400 + 1 + 3 * 150 * steps
    value = objective(noise.lam(knots)[None], power=1 if noise.name == "edm" else 2).item()
    assert value <= PUBLISHED_DMN[noise.name][steps - 4] * (1 + 1e-9)
    gaps = noise.lam(knots).diff()
    assert gaps.max() / gaps.min() < 20  # knots have not run together


def test_dmn_weights_integrate_polynomials_exactly() -> None:
    """sum_j J_sj p(lam_j) = int e^lam p for polynomials below the step's order, hence sum_j J =
    e^lam' - e^lam.
    """
    lam = torch.tensor([[-4.0, -2.5, -2.0, -0.5, 0.3, 1.9, 4.0]], dtype=torch.float64)
    weights = multistep_weights(lam)
    orders = [1, 2, 3, 3, 2, 1]
    x = torch.linspace(0, 1, 40001, dtype=torch.float64)
    for s, order in enumerate(orders):
        at = lam[0, s] + x * (lam[0, s + 1] - lam[0, s])
        for power in range(order):
            exact = torch.trapezoid(at.exp() * at**power, at)
            got = sum(
                float(weights[0, s, s - k]) * float(lam[0, s - k]) ** power for k in range(order)
            )
            assert got == pytest.approx(float(exact), rel=1e-7)
        assert all(float(weights[0, s, j]) == 0 for j in range(6) if not s - order < j <= s)


def test_dmn_is_a_function_of_the_schedule_alone() -> None:
    solver = make_solver("dpmpp-3")
    knots = find_knots("dmn", EDM(), solver, 3)
    assert torch.equal(knots, find_knots("dmn", mixture_1d(EDM()), solver, 3))
    torch.testing.assert_close(dmn(EDM(), 1), torch.tensor([80.0, 0.002], dtype=torch.float64))


def brute_force(cost: torch.Tensor, steps: int, coefficient: float) -> tuple[float, list[int]]:
    n = cost.shape[0]
    every = []
    for inner in itertools.combinations(range(1, n), steps - 1):
        path = [0, *inner, n]
        every.append(
            (sum(coefficient**k * float(cost[path[k], path[k + 1]]) for k in range(steps)), path)
        )
    return min(every)


@pytest.mark.parametrize("seed", range(5))
def test_gits_finds_the_shortest_path(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    cost = torch.rand(9, 10, generator=generator, dtype=torch.float64)
    cost = torch.where(torch.arange(10) > torch.arange(9)[:, None], cost, torch.inf)
    for steps in range(1, 10):
        for coefficient in (0.8, 1.0, 1.15):
            path, value = shortest_path(cost, steps, coefficient)
            expected, chosen = brute_force(cost, steps, coefficient)
            assert value == pytest.approx(expected, rel=1e-12)
            assert path == chosen


@pytest.mark.parametrize("metric", ["deviation", "l2"])
@pytest.mark.parametrize("noise", [EDM(), FlowMatching()], ids=lambda noise: noise.name)
def test_gits_on_real_trajectories(noise: NoiseSchedule, metric: str) -> None:
    mixture = mixture_2d(noise)
    x_T = noise.prior_scale * draw_noise(0, range(16), (2,)).double()
    trajectory = follow(mixture, x_T, None, 10)
    cost = costs(trajectory, metric)
    _, chosen = brute_force(cost, 4, 1.15)
    assert shortest_path(cost, 4, 1.15)[0] == chosen
    knots = gits(mixture, 4, x_T, fine=10, metric=metric)
    assert torch.equal(knots, trajectory.t[chosen])
    # one l2 step from knot i is the DDIM step of the solver itself
    ddim = make_solver("ddim")
    t, y = trajectory.t, trajectory.y
    if metric == "l2":
        tableau = ddim.tableau(noise, ddim.coupled(noise, t[[2, 7]]))
        made = sample(mixture, tableau, y[2])
        gap = ((made - y[7]) / noise.alpha(t[7])).norm(dim=-1).mean()
        torch.testing.assert_close(cost[2, 7], gap)


def endpoint_error(
    mixture: object, noise: NoiseSchedule, knots: torch.Tensor, x_T: torch.Tensor, end: torch.Tensor
) -> float:
    solver = make_solver("ddim")
    made = sample(mixture, solver.tableau(noise, solver.coupled(noise, knots)), x_T)  # type: ignore[arg-type]
    return float((((made - end) / noise.alpha(knots[-1])) ** 2).mean())


@pytest.mark.parametrize("noise", [EDM(), VPLinear(), FlowMatching()], ids=lambda noise: noise.name)
def test_optimal_steps_finds_the_best_student_where_nearer_stays_nearer(
    noise: NoiseSchedule,
) -> None:
    """On a line towards one Gaussian a student's error keeps its sign, so the programme's optimum
    is the global one.
    """
    normal = gaussian(noise, torch.tensor([0.0]), torch.tensor([0.5]))
    x_T = noise.prior_scale * torch.tensor([[0.3], [1.1], [-1.7]], dtype=torch.float64)
    for steps in (1, 2, 3, 5):
        trajectory = follow(normal, x_T, None, 9)
        path, error = nearest_chain(trajectory, steps)
        choices = {
            inner: endpoint_error(
                normal, noise, trajectory.t[[0, *inner, 9]], x_T, trajectory.y[-1]
            )
            for inner in itertools.combinations(range(1, 9), steps - 1)
        }
        best = min(choices, key=choices.__getitem__)
        assert error == pytest.approx(choices[best], rel=1e-9)
        assert tuple(path[1:-1]) == best
        assert torch.equal(optimal_steps(normal, steps, x_T, fine=9), trajectory.t[path])


def test_optimal_steps_solves_its_own_recurrence() -> None:
    """On a nonlinear problem: z_k[j] by its definition, every i tried, and the student's error is
    what it says.
    """
    noise = EDM()
    mixture = mixture_2d(noise)
    x_T = 80 * draw_noise(0, range(8), (2,)).double()
    trajectory = follow(mixture, x_T, None, 8)
    ddim = make_solver("ddim")

    def step(y: torch.Tensor, i: int, j: int) -> torch.Tensor:
        return sample(mixture, ddim.tableau(noise, ddim.coupled(noise, trajectory.t[[i, j]])), y)

    def best(k: int, j: int) -> tuple[torch.Tensor, list[int]]:
        if k == 0:
            return x_T, [0]
        options = []
        for i in range(k - 1, j) if k > 1 else [0]:
            z, path = best(k - 1, i)
            made = step(z, i, j)
            options.append((float(((made - trajectory.y[j]) ** 2).mean()), made, [*path, j]))
        _, made, path = min(options, key=lambda option: option[0])
        return made, path

    path, error = nearest_chain(trajectory, 4)
    made, expected = best(4, 8)
    assert path == expected
    assert error == pytest.approx(float(((made - trajectory.y[8]) ** 2).mean()), rel=1e-9)
    assert error == pytest.approx(
        endpoint_error(mixture, noise, trajectory.t[path], x_T, trajectory.y[8]), rel=1e-9
    )


ENTRIES = [(name, noise) for name in TRAINING_FREE for noise in ("edm", "vp-linear", "flow")]
LONG = {("dmn", "vp-linear"), ("dmn", "flow")}


@pytest.mark.parametrize(("name", "schedule"), few(ENTRIES, {*ENTRIES} - LONG))
@pytest.mark.siblings(6)
def test_one_entry_for_all(name: str, schedule: str) -> None:
    noise: NoiseSchedule = {n.name: n for n in (EDM(), VPLinear(), FlowMatching())}[schedule]
    mixture = mixture_2d(noise)
    x_T = noise.prior_scale * draw_noise(1, range(8), (2,))
    for solver, nfe in (("unipc-3", 4), ("heun", 5), ("ipndm-3", 1)):
        rule = make_solver(solver)
        knots = find_knots(
            name, mixture, rule, nfe, x_T=x_T, condition=torch.zeros(8, dtype=torch.int64)
        )
        assert knots.shape == (rule.steps(nfe) + 1,)
        assert knots.dtype == torch.float64
        assert (float(knots[0]), float(knots[-1])) == (noise.t_max, noise.t_min)
        Grid(knots, rule.nominal(noise, knots, nfe)).within(noise)
    assert find_knots(name, mixture, make_solver("ddim"), 3).shape == (4,)


def test_it_helps_where_hand_made_grids_do_not_know_the_data() -> None:
    noise = EDM()
    mixture, x_T = mixture_2d(noise), 80 * draw_noise(5, range(64), (2,)).double()
    fine = discretize(noise, 200, "karras")
    heun = make_solver("heun")
    end = sample(mixture, heun.tableau(noise, heun.coupled(noise, fine)), x_T)
    knots = find_knots("optimal-steps", mixture, make_solver("ddim"), 6)
    hand_made = min(
        endpoint_error(mixture, noise, discretize(noise, 6, n), x_T, end)
        for n in ("karras", "log_snr")
    )
    assert endpoint_error(mixture, noise, knots, x_T, end) < hand_made


def test_many_steps_are_chosen_from_a_finer_grid() -> None:
    for name in ("gits", "optimal-steps", "tors", "sharp-euler"):
        knots = find_knots(
            name, mixture_1d(EDM()), make_solver("ddim"), 70, x_T=80 * torch.ones(2, 1)
        )
        assert knots.shape == (71,)
        assert (knots.diff() < 0).all()


def test_the_knots_do_not_depend_on_memory(caplog: pytest.LogCaptureFixture) -> None:
    x_T, condition = 80 * draw_noise(3, range(8), (2,)), torch.arange(8)
    seen: list[int] = []

    class Small(torch.nn.Module):
        """A mixture whose condition moves it, with memory for three samples."""

        noise, shape, most = EDM(), (2,), 3

        def forward(
            self, x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor
        ) -> torch.Tensor:
            if len(x) > self.most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
            seen.append(len(x))
            moved = condition[:, None] / 10
            return mixture(x - moved, t) + moved

        def decode(self, x_0: torch.Tensor) -> torch.Tensor:
            return x_0

    mixture, small, large = mixture_2d(EDM()), Small(), Small()
    large.most = 8
    for name in ("gits", "optimal-steps"):
        expected, found = (
            find_knots(name, m, make_solver("ddim"), 4, x_T=x_T, condition=condition)
            for m in (large, small)
        )
        assert torch.equal(found, expected)
    assert set(seen) == {8, 2}
    assert "out of memory with 4 samples at once: going on with 2" in caplog.text
    small.most = 0
    with pytest.raises(InputError, match="not even one sample fits into memory"):
        find_knots("gits", small, make_solver("ddim"), 4, x_T=x_T, condition=condition)


def test_wrong_requests_are_refused() -> None:
    solver = make_solver("ddim")
    with pytest.raises(
        InputError, match="unknown training-free discretization 'dnm': did you mean 'dmn'"
    ):
        find_knots("dnm", EDM(), solver, 4)
    for name in ("gits", "optimal-steps", "tors", "sharp-euler"):
        with pytest.raises(
            InputError, match=f"{name} follows teacher trajectories: it needs a denoiser"
        ):
            find_knots(name, EDM(), solver, 4)
    with pytest.raises(InputError, match="70 steps cannot be chosen from a fine grid of 60"):
        gits(mixture_1d(EDM()), 70, torch.ones(2, 1), fine=60)
    with pytest.raises(InputError, match="unknown metric of gits 'l3'"):
        gits(mixture_1d(EDM()), 3, torch.ones(2, 1), metric="l3")
