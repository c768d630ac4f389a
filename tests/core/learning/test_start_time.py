"""A learned start time: the path begins at t_0 < t_max from the same noise at its level."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from schedules import SCHEDULES, one_thread  # noqa: F401

import ld3_dist as ld3
from ld3_dist.core.errors import InputError
from ld3_dist.core.grid import Grid, discretize
from ld3_dist.core.learning.learnable import LearnableGrid
from ld3_dist.core.noise import NoiseSchedule
from ld3_dist.core.sample import sample
from ld3_dist.core.solver import make_solver
from ld3_dist.experiment import parse_experiment
from ld3_dist.models.analytic.mixture import mixture_1d
from ld3_dist.schedule.export import lost
from ld3_dist.tasks.planning import make_plan

every_schedule = pytest.mark.parametrize("noise", SCHEDULES.values(), ids=SCHEDULES.keys())


def learnable(noise: NoiseSchedule, solver: str = "dpmpp-2", nfe: int = 4) -> LearnableGrid:
    made = make_solver(solver)
    knots = torch.stack([discretize(noise, made.steps(nfe), n) for n in ("log_snr", "uniform")])
    return LearnableGrid(noise, made, knots, nfe, start_time=True)


@every_schedule
def test_the_path_is_that_of_the_plain_solver_from_noise_of_the_level_at_t_0(
    noise: NoiseSchedule,
) -> None:
    grids = learnable(noise)
    with torch.no_grad():
        grids.logits += torch.randn(grids.logits.shape, dtype=torch.float64) / 3
        grids.variance += torch.tensor([[0.4], [-2.0]], dtype=torch.float64)
        grid, table = grids.tableau()
    z = torch.randn(5, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    got = sample(mixture_1d(noise), table, noise.prior_scale * z)
    for k in range(2):
        t_0 = grid.knots[k, 0]
        assert noise.t_min < t_0 < noise.t_max
        v = torch.sigmoid(grids.variance[k])
        level = (noise.sigma(t_0) ** 2 + v * noise.alpha(t_0) ** 2).sqrt()
        plain = make_solver("dpmpp-2").tableau(noise, Grid(grid.knots[k], grid.evals[k]))
        want = sample(mixture_1d(noise), plain, level * z)
        torch.testing.assert_close(got[k], want, rtol=1e-10, atol=1e-12)


@every_schedule
def test_gradients_with_respect_to_start_and_variance_are_exact(noise: NoiseSchedule) -> None:
    grids = learnable(noise)
    z = torch.randn(3, 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def path(logits: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
        state = {"logits": logits, "variance": variance}
        table = torch.func.functional_call(_Tables(grids), {f"g.{n}": v for n, v in state.items()})
        return sample(mixture_1d(noise), table, noise.prior_scale * z)

    inputs = [p.detach().clone().requires_grad_() for p in (grids.logits, grids.variance)]
    assert torch.autograd.gradcheck(path, inputs, atol=1e-5, rtol=1e-4)


class _Tables(torch.nn.Module):
    def __init__(self, grids: LearnableGrid) -> None:
        super().__init__()
        self.g = grids

    def forward(self) -> ld3.core.solver.Tableau:
        return self.g.tableau()[1]


def test_a_gaussian_s_path_from_its_own_start_is_the_path_from_t_max() -> None:
    """Data of variance v: x_t = z sqrt(sigma^2 + v alpha^2) solves the flow exactly."""
    noise, v = SCHEDULES["edm"], 0.3
    solver = make_solver("dpmpp-2")

    def D(x: torch.Tensor, t: torch.Tensor, condition: object = None) -> torch.Tensor:
        return x * (v / (v + t.view(-1, 1) ** 2))  # the posterior mean on the EDM schedule

    D.noise, D.shape = noise, (1,)  # type: ignore[attr-defined]
    grids = LearnableGrid(
        noise, solver, discretize(noise, 400, "log_snr")[None], 400, start_time=True
    )
    with torch.no_grad():
        grids.logits[:, 0] += 2.0
        grids.variance.fill_(torch.logit(torch.tensor(v)).item())
        grid, table = grids.tableau()
    z = torch.tensor([[1.0]], dtype=torch.float64)
    assert grid.knots[0, 0] < 20
    end = sample(D, table, noise.prior_scale * z)[0]  # type: ignore[arg-type]
    exact = z * (noise.t_min**2 + v) ** 0.5
    torch.testing.assert_close(end, exact, rtol=1e-3, atol=0)


@pytest.fixture(scope="module")
def learned() -> tuple[ld3.Model, ld3.Schedule]:
    model = ld3.load_model("analytic:mixture-2d")
    pairs = ld3.teach(model, n=24, teacher="unipc-3/10/karras")
    settings = {"starts": ["log_snr"], "epochs": 6, "start_time": True}
    return model, ld3.learn(model, "dpmpp-2", 3, pairs, baselines=["uniform"], **settings)


def test_the_file_says_where_to_start_and_reads_back(
    learned: tuple[ld3.Model, ld3.Schedule], tmp_path: Path
) -> None:
    model, schedule = learned
    noise = model.noise
    assert schedule.knots[0] < noise.t_max
    assert schedule.state[0] == 1
    sigma = noise.sigma(torch.tensor(schedule.knots[0], dtype=torch.float64)).item()
    assert sigma <= schedule.prior_scale <= (sigma**2 + 1) ** 0.5
    schedule.save(tmp_path / "s.json")
    again = ld3.load_schedule(tmp_path / "s.json")
    assert again == schedule
    z = torch.randn(4, 2, generator=torch.Generator().manual_seed(3))
    of_file = sample(model.denoiser, again.tableau, again.prior_scale * z)
    of_model = sample(model.denoiser, again.table_for(model), noise.prior_scale * z)
    torch.testing.assert_close(of_file, of_model, rtol=1e-5, atol=1e-5)


def test_it_is_nearer_to_the_teacher_on_fresh_samples(
    learned: tuple[ld3.Model, ld3.Schedule],
) -> None:
    model, schedule = learned
    found = ld3.evaluate(model, [schedule, "uniform"], samples=200, teacher="unipc-3/10/karras")
    loss = dict(zip(found["name"], found["eval_loss"], strict=True))
    assert loss.pop("uniform") > min(loss.values())


def test_a_level_that_does_not_belong_to_the_first_knot_is_refused(
    learned: tuple[ld3.Model, ld3.Schedule], tmp_path: Path
) -> None:
    model, schedule = learned
    body = json.loads(schedule.to_json())
    body["prior_scale"] *= 1.5
    (tmp_path / "s.json").write_text(json.dumps(body))
    with pytest.raises(InputError, match=r"prior_scale|noise schedule"):
        ld3.load_schedule(tmp_path / "s.json").sample(model, n=1)


def test_a_list_of_sigmas_says_that_it_has_no_level_of_its_own(
    learned: tuple[ld3.Model, ld3.Schedule],
) -> None:
    _, schedule = learned
    assert not any("level" in said for said in lost(schedule, "sigmas"))  # far above the data's
    low = {"knots": (2.0, 1.0, 0.5, schedule.knots[-1]), "evals": (2.0, 1.0, 0.5)}
    late = dataclasses.replace(schedule, **low, prior_scale=4.5**0.5)
    (said,) = (said for said in lost(late, "sigmas") if "level" in said)
    assert f"{4.5**0.5 / 2:.3g} times the first sigma" in said


def test_it_can_be_the_start_of_another_learning(
    learned: tuple[ld3.Model, ld3.Schedule],
) -> None:
    model, schedule = learned
    pairs = ld3.teach(model, n=8, teacher="unipc-3/10/karras")
    first = next(iter(ld3.learning(model, "ddim", 4, pairs, starts=[schedule], epochs=1)))
    assert first.best.knots[0, 0] == model.noise.t_max


BOTH = ("log_snr", "later:log_snr")


@pytest.mark.parametrize("coordinate", ["lambda", "time"])
@every_schedule
def test_schedules_that_begin_at_t_max_are_the_same_beside_others(
    noise: NoiseSchedule, coordinate: str
) -> None:
    """Tables and gradients, also at an end of pure noise, where derivatives are infinite."""
    solver = make_solver("dpmpp-2")
    knots = discretize(noise, 4, "log_snr")[None]
    grids = [
        LearnableGrid(noise, solver, k, 4, coordinate, coefficients=True, start_time=later)
        for k, later in ((knots, False), (knots, True), (knots.repeat(2, 1), [False, True]))
    ]
    z = torch.randn(5, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for made in grids:
        loss = sample(mixture_1d(noise), made.tableau()[1], noise.prior_scale * z).square().sum()
        loss.backward()
    alone, later, both = (made.tableau()[1] for made in grids)
    for k, one in enumerate((alone, later)):
        torch.testing.assert_close(both.state[k], one.state[0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(both.outputs[k], one.outputs[0], rtol=1e-10, atol=1e-12)
    for name, p in grids[2].named_parameters():
        assert p.grad is not None
        assert bool(torch.isfinite(p.grad).all()), name
        for k, one in enumerate(grids[:2]):
            want = dict(one.named_parameters())[name].grad
            if want is None:  # the variance, where every schedule begins at t_max
                continue
            got = p.grad[k, -want.shape[1] :] if name == "logits" else p.grad[k]
            torch.testing.assert_close(got, want[0], rtol=1e-7, atol=1e-9)
    logits, variance = (dict(grids[2].named_parameters())[n].grad for n in ("logits", "variance"))
    assert logits[0, 0] == variance[0, 0] == 0


def test_learning_with_and_without_a_learned_start_is_that_of_each_alone() -> None:
    model = ld3.load_model("analytic:mixture-2d")
    pairs = ld3.teach(model, n=24, teacher="unipc-3/10/karras")

    def last(*starts: str, **settings: bool) -> list[float]:
        *_, end = ld3.learning(model, "dpmpp-2", 3, pairs, starts=starts, epochs=4, **settings)
        return end.best_valid.tolist()

    alone = last("log_snr") + last("log_snr", start_time=True)
    assert alone[0] != pytest.approx(alone[1], rel=0.01)
    assert last(*BOTH) == pytest.approx(alone, rel=1e-4)
    assert last(*BOTH, start_time=True) == pytest.approx([alone[1]] * 2, rel=1e-4)


def test_a_run_of_both_goes_on_from_its_snapshot() -> None:
    model = ld3.load_model("analytic:mixture-2d")
    pairs = ld3.teach(model, n=24, teacher="unipc-3/10/karras")
    settings = {"starts": BOTH, "epochs": 4}
    whole = list(ld3.learning(model, "dpmpp-2", 3, pairs, **settings))
    part = ld3.learning(model, "dpmpp-2", 3, pairs, **settings)
    state = next(p.snapshot() for p in part if p.epoch == 2)
    *_, end = ld3.learning(model, "dpmpp-2", 3, pairs, resume=(2, state), **settings)
    assert torch.equal(end.best.knots, whole[-1].best.knots)


@pytest.mark.parametrize(
    ("start", "settings", "said"),
    [
        (
            "later:log_snr",
            {"procedure": "paper"},
            "procedure paper learns no start time; give log_snr",
        ),
        ("later:nonsense", {}, "nonsense"),
        ("later:", {}, "later:NAME"),
        ("later:my.json", {}, "start_time: true"),
        ("later:file:my.json", {}, "start_time: true"),
        ("later:later:log_snr", {}, "later:log_snr"),
    ],
)
def test_a_start_that_cannot_begin_later_is_refused_before_any_work(
    start: str, settings: dict[str, str], said: str
) -> None:
    model = ld3.load_model("analytic:mixture-2d")
    with pytest.raises(InputError, match=said):
        ld3.learn(model, "dpmpp-2", 3, starts=[start], **settings)


@pytest.mark.parametrize("place", ["baselines", "teacher"])
def test_no_grid_of_another_use_begins_later(place: str) -> None:
    grid = {"baselines": ["later:karras"], "teacher": "unipc-3/10/later:karras"}[place]
    model = ld3.load_model("analytic:mixture-2d")
    with pytest.raises(InputError, match="later:karras"):
        ld3.learn(model, "dpmpp-2", 3, starts=["log_snr"], epochs=1, **{place: grid})


DEFAULT = ("log_snr", "later:optimal-steps")


@pytest.mark.parametrize(
    ("model", "settings", "starts"),
    [
        ("analytic:mixture-2d", {}, DEFAULT),
        ("analytic:mixture-2d?noise=vp-linear", {}, DEFAULT),
        ("analytic:mixture-2d?noise=flow", {}, ("log_snr", "optimal-steps")),
        ("analytic:mixture-2d", {"coefficients": True}, DEFAULT),
        ("analytic:mixture-2d", {"start_time": True}, ("log_snr", "optimal-steps")),
        ("analytic:mixture-2d", {"procedure": "paper"}, ("log_snr",)),
        ("analytic:mixture-2d", {"procedure": "curve"}, ("later:log_snr",)),
        ("analytic:mixture-2d", {"procedure": "curve", "start_time": True}, ("log_snr",)),
        ("analytic:mixture-2d?noise=flow", {"procedure": "curve"}, ("log_snr",)),
    ],
)
def test_one_of_the_default_starts_begins_later(
    model: str, settings: dict[str, Any], starts: tuple[str, ...]
) -> None:
    """In a sweep as here; never with flow matching, whose pipelines begin from unit noise."""
    opened = ld3.load_model(model)
    pairs = ld3.teach(opened, n=12, teacher="unipc-3/10/karras")
    *_, end = ld3.learning(opened, "ddim", 3, pairs, epochs=1, **settings)
    late = [settings.get("start_time", False) or name.startswith("later:") for name in starts]
    assert (end.best.knots[:, 0] < opened.noise.t_max).tolist() == late
    data = {
        "models": [{"name": "m", "model": model}],
        "solvers": ["ddim"],
        "nfe": [3],
        "learn": settings,
    }
    plan = make_plan(parse_experiment(data | {"search": {"members": {"seeds": 2}}}))
    (point,) = plan.points()
    members = plan.trial(plan.cells[0], point).members
    assert members == tuple((seed, name) for seed in range(2) for name in starts)
    assert {tuple(member) for member in members} <= set(plan.member_labels())
