"""Learning for a budget: what is really spent, counted in the network, and what is fitted."""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import replace

import pytest
import torch
from schedules import one_thread  # noqa: F401
from torch import Tensor, nn

import ld3_dist as ld3
from ld3_dist import InputError
from ld3_dist.core.learning.procedure import make_config
from ld3_dist.core.solver import make_solver
from ld3_dist.schedule import budget as fitting
from ld3_dist.schedule.baselines import BASELINES
from ld3_dist.schedule.budget import (
    MEASURING,
    RECIPES,
    Cell,
    Pace,
    fit,
    measure_pace,
    plan_learning,
)
from ld3_dist.training_free import ALONE, TRAINING_FREE, evaluations, find_knots


class Counting(nn.Module):
    """A denoiser that counts the samples it evaluates; a backward pass counts as two."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.noise, self.shape = inner, inner.noise, inner.shape
        self.count = 0

    def forward(self, x: Tensor, t: Tensor, condition: object = None) -> Tensor:
        self.count += len(x)
        out = self.inner(x, t, condition)
        if out.requires_grad:
            out.register_hook(self.twice)
        return out

    def twice(self, gradient: Tensor) -> None:
        self.count += 2 * len(gradient)

    def decode(self, x0: Tensor) -> Tensor:
        return x0


def counted() -> tuple[ld3.Model, Counting]:
    inner = ld3.load_model("analytic:mixture-2d").denoiser
    assert isinstance(inner, nn.Module)
    denoiser = Counting(inner)
    return ld3.Model(denoiser, version="1"), denoiser


@pytest.mark.parametrize(
    ("budget", "settings"),
    [
        (3_000, {}),
        (10_000, {}),
        (6_000, {"procedure": "paper"}),
        (15_000, {"starts": ["gits", "karras"], "baselines": ["karras", "optimal-steps"]}),
        (6_000, {"epochs": 7, "coefficients": True, "patience": 7}),
        (4_000, {"checkpointing": "never", "gamma": 0.0}),
    ],
)
def test_no_more_is_spent_than_the_budget_and_most_of_it(budget: int, settings: dict) -> None:
    model, denoiser = counted()
    denoiser.count = 0
    schedule = ld3.learn(model, "ddim", 4, teacher="ddim/20/karras", budget=budget, **settings)
    assert denoiser.count <= budget
    assert schedule.nfe == 4
    if "procedure" not in settings:  # paper's members may end early
        assert denoiser.count >= 0.6 * budget


def test_the_plan_is_what_is_spent_where_nothing_ends_early() -> None:
    model, denoiser = counted()
    config = make_config(patience=100)
    cell = Cell(model, "ddim", 4, config, "ddim/10/karras", BASELINES)
    plan = fit(cell, 8_000)
    denoiser.count = 0
    given = {"starts": plan.starts, "epochs": plan.epochs, "patience": 100}
    pairs = ld3.teach(model, teacher="ddim/10/karras", indices=plan.indices)
    ld3.learn(model, "ddim", 4, pairs[plan.valid :], pairs[: plan.valid], **given)
    assert denoiser.count == plan.evaluations - plan.parts["measuring"]


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        *((name, 3) for name in TRAINING_FREE if name not in ALONE),
        ("optimal-steps", 1),
        ("optimal-steps", 21),
        ("gits", 31),
        ("tors", 51),
        ("sharp-euler", 51),
    ],
)
def test_what_a_start_spends(name: str, steps: int) -> None:
    _, denoiser = counted()
    x_T = 80.0 * torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    find_knots(name, denoiser, make_solver("ddim"), steps, x_T=x_T)
    assert denoiser.count == evaluations(name, steps, 3)


def test_no_start_uses_more_samples_than_its_own_most() -> None:
    _, denoiser = counted()
    x_T = 80.0 * torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    find_knots("optimal-steps", denoiser, make_solver("ddim"), 2, x_T=x_T)
    assert (
        denoiser.count == evaluations("optimal-steps", 2, 40) == evaluations("optimal-steps", 2, 32)
    )
    assert [evaluations(name, 6, 50) for name in ALONE] == [0, 0]


def test_measuring_counts_what_it_takes() -> None:
    model, denoiser = counted()
    denoiser.count = 0
    pace = measure_pace(model)
    assert denoiser.count == MEASURING
    assert pace.forward > 0
    assert pace.visit > 0


def test_a_call_that_is_delayed_does_not_set_the_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    model, denoiser = counted()
    calls, whole = itertools.count(), Counting.forward

    def delayed(self: Counting, *given: object) -> Tensor:
        time.sleep(0.5 if next(calls) in (1, 7) else 0.0)
        return whole(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(Counting, "forward", delayed)
    pace = measure_pace(model)
    assert denoiser.count == MEASURING
    assert max(pace.forward, pace.visit) < 0.25 / fitting.ROWS


def test_a_slow_network_is_measured_by_few_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    model, denoiser = counted()
    monkeypatch.setattr(fitting, "ENOUGH", 0.0)  # as if a call took as long as that
    measure_pace(model)
    assert denoiser.count == 2 * MEASURING / fitting.RUNS


def cell_of(**changes: object) -> Cell:
    model = ld3.load_model("analytic:mixture-2d")
    made = Cell(model, "unipc-3", 6, make_config(), "unipc-3/20/karras", BASELINES)
    return replace(made, **changes)  # type: ignore[arg-type]


def test_a_larger_budget_buys_more_of_everything() -> None:
    plans = [plan_learning(cell_of(), budget) for budget in (3_000, 10**4, 10**5, 10**6)]
    for less, more in itertools.pairwise(plans):
        assert less.train <= more.train
        assert less.epochs <= more.epochs
        assert len(less.starts) <= len(more.starts)
        assert less.evaluations < more.evaluations
    last = RECIPES[-1]
    assert (plans[-1].epochs, len(plans[-1].starts)) == (last.epochs, last.starts)
    assert plans[-1].train > last.train
    assert plans[-1].evaluations > 0.99 * 10**6


@pytest.mark.parametrize(
    ("model", "settings", "start"),
    [
        ("analytic:mixture-2d", {}, "later:log_snr"),
        ("analytic:mixture-2d", {"start_time": True}, "log_snr"),
        ("analytic:mixture-2d?noise=flow", {}, "log_snr"),
        ("analytic:mixture-2d", {"procedure": "paper"}, "log_snr"),
    ],
)
def test_a_single_start_begins_later_where_one_of_the_procedures_does(
    model: str, settings: dict, start: str
) -> None:
    cell = cell_of(model=ld3.load_model(model), config=make_config(**settings))
    assert fit(cell, 3_000).starts == (start,)


def test_what_is_given_is_kept() -> None:
    plan = plan_learning(cell_of(counts=(30, 70), epochs=5, starts=("karras",)), 30_000)
    assert (plan.train, plan.valid, plan.epochs, plan.starts) == (30, 70, 5, ("karras",))
    plan = plan_learning(cell_of(epochs=5), 30_000)
    assert plan.epochs == 5
    assert plan.train > 50
    plan = plan_learning(cell_of(counts=(50, 50)), 8_000)
    assert (plan.train, plan.valid) == (50, 50)
    assert 1 <= plan.epochs < 10


def test_the_parts_of_a_plan_by_hand() -> None:
    plan = plan_learning(cell_of(counts=(20, 10), epochs=3, starts=("karras", "uniform")), 10**6)
    learning = 2 * 6 * (3 * (3 * 20 + 10) + 10)
    assert plan.parts["teaching"] == 20 * 30
    assert plan.parts["learning"] == learning + 3
    assert plan.parts["baselines"] == 4 * 10 * 6
    assert plan.evaluations == 600 + learning + 3 + 240 + MEASURING


def test_several_numbers_of_evaluations_cost_their_sum() -> None:
    given = {"counts": (20, 10), "epochs": 3, "starts": ("karras", "gits")}
    each = [plan_learning(cell_of(nfe=nfe, **given), 10**6).parts for nfe in (4, 6)]
    both = plan_learning(cell_of(nfe=(4, 6), **given), 10**6).parts
    assert both["teaching"] == each[0]["teaching"]
    for part in ("starts", "learning", "baselines"):
        assert both[part] == each[0][part] + each[1][part]


def test_minutes_are_evaluations_at_the_measured_pace() -> None:
    pace = Pace(forward=0.001, visit=0.01)
    plan = plan_learning(cell_of(counts=(20, 10), starts=("karras",)), minutes=2.0, pace=pace)
    visits = plan.epochs * 20 * 6
    forward = 20 * 30 + 6 * (plan.epochs + 1) * 10 + 3 + 4 * 10 * 6
    assert plan.seconds == pytest.approx(0.01 * visits + 0.001 * forward)
    assert plan.seconds <= 108
    assert math.isnan(plan_learning(cell_of(), 10**5).seconds)
    assert "about" in str(plan)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"budget": 500}, r"budget = 500: too small for one epoch .* the least is 1,183 network"),
        ({"budget": 0}, "budget = 0"),
        ({"budget": 1.5}, "budget = 1.5"),
        ({"minutes": 0.0}, "minutes = 0.0"),
        ({"minutes": math.nan}, "minutes = nan"),
        ({"budget": 10**5, "minutes": 1.0}, "give one of the two"),
        ({"minutes": 1e-9}, "minutes = 1e-09: too small .* the least is .* minutes"),
        ({"budget": 3_000, "epochs": 40}, "too small for 40 epochs"),
    ],
)
def test_bad_budgets_are_refused(given: dict, match: str) -> None:
    model = ld3.load_model("analytic:mixture-2d")
    with pytest.raises(InputError, match=match):
        ld3.learn(model, "unipc-3", 6, **given)


def test_the_least_that_is_named_would_do() -> None:
    with pytest.raises(InputError) as caught:
        plan_learning(cell_of(), 500)
    words = str(caught.value).rpartition("the least is ")[2]
    least = int(words.split()[0].replace(",", ""))
    plan = plan_learning(cell_of(), least)
    assert plan.epochs == 1
    assert plan.evaluations == least
    with pytest.raises(InputError):
        plan_learning(cell_of(), least - 1)


def test_a_start_of_unknown_cost_is_refused() -> None:
    with pytest.raises(InputError, match="nothing says how many evaluations"):
        plan_learning(cell_of(starts=("python:mine.py:start",)), 10**5)
