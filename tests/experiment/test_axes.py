"""Axes beside the settings of learning, and ablations: what points they make, and bad ones."""

from __future__ import annotations

from typing import Any

import pytest
from tiny_sweep import changed

from ld3_dist.core.errors import InputError
from ld3_dist.experiment import Plan, parse_experiment
from ld3_dist.experiment.points import count_points
from ld3_dist.schedule.teaching import Teacher

HASHES = {"analytic:mixture-2d": "h"}


def with_search(**search: Any) -> dict[str, Any]:
    return changed() | {"search": search}


def ablated(**ablate: Any) -> dict[str, Any]:
    return with_search() | {"ablate": ablate}


def plan_of(data: dict[str, Any]) -> Plan:
    return Plan(parse_experiment(data), HASHES)


def test_an_ablation_changes_one_factor_at_a_time() -> None:
    base = {"gamma": 0.001, "distance": "l2", "pairs.train": 8, "coefficients": False}
    vary = {"gamma": [0, 0.001, 0.1], "pairs.train": [4, 8], "teacher.nfe": [12, 20]}
    plan = plan_of(ablated(base=base, vary=vary))
    first, *others = plan.points()
    assert first == base | {"teacher.nfe": 12}  # the experiment's own where the base says nothing
    changes = [
        {key: value for key, value in point.items() if value != first[key]} for point in others
    ]
    assert changes == [{"gamma": 0}, {"gamma": 0.1}, {"pairs.train": 4}, {"teacher.nfe": 20}]
    assert count_points(plan.experiment) == 5
    assert plan.experiment.evaluated_rows == "all"
    full = plan_of(ablated(base=base, vary=vary, full=True))
    assert len(full.points()) == count_points(full.experiment) == 3 * 2 * 2
    assert first in full.points()


def test_another_procedure_leaves_out_factors_that_it_does_not_have() -> None:
    """`paper` has no coefficients and `curve` neither; both have the base's gamma."""
    vary = {"procedure": ["paper", "curve"], "coefficients": [True], "knots_only": [1]}
    with pytest.raises(InputError, match=r"ablate\.vary\.knots_only: procedure default has no"):
        plan_of(ablated(base={"gamma": 0.01}, vary=vary))
    del vary["knots_only"]
    plan = plan_of(ablated(base={"gamma": 0.01}, vary=vary))
    trials = [plan.trial(plan.cells[0], point) for point in plan.points()]
    found = [
        (t.config.procedure, t.config.gamma, vars(t.config).get("coefficients")) for t in trials
    ]
    assert found == [
        ("default", 0.01, False), ("default", 0.01, True),
        ("paper", 0.01, None), ("curve", 0.01, None),
    ]  # fmt: skip
    assert count_points(plan.experiment) == 4
    for refused in (
        ablated(base={"gamma": 0.01}, vary=vary, full=True),
        ablated(base={"gamma": 0.01}, vary={"procedure": ["paper"]})
        | {"search": {"optuna": {"coefficients": [True, False]}}},
        ablated(base={"procedure": "paper", "coefficients": True}, vary={"gamma": [0]}),
    ):
        with pytest.raises(InputError, match=r"procedure (paper|curve) has no such setting"):
            plan_of(refused)


def test_a_base_beside_its_levels_is_a_level_too() -> None:
    plan = plan_of(ablated(base={"gamma": 0.5}, vary={"gamma": [0, 0.01]}, full=True))
    assert sorted(point["gamma"] for point in plan.points()) == [0, 0.01, 0.5]


def test_pairs_and_teachers_reach_the_trials() -> None:
    grid = {"pairs.train": [4, 16], "teacher.nfe": [12, 6], "teacher.start": ["uniform"]}
    plan = plan_of(with_search(grid=grid, members={"seeds": 2}))
    assert plan.teachers[0] == Teacher("unipc-3", 12, "karras")
    assert set(plan.teachers[1:]) == {Teacher("unipc-3", n, "uniform") for n in (6, 12)}
    trials = [plan.trial(plan.cells[0], point) for point in plan.points()]
    assert {(trial.train, trial.teacher.nfe) for trial in trials} == {
        (4, 12), (4, 6), (16, 12), (16, 6)
    }  # fmt: skip
    assert len({trial.key for trial in trials}) == 4
    own, other = plan.sample_ranges(), plan.sample_ranges(plan.teachers[1])
    assert own == [(0, 8), (10**6, 10**6 + 8), (2 * 10**6, 2 * 10**6 + 8), (10**9, 10**9 + 40)]
    assert other == [(0, 8), (10**6, 10**6 + 16), (2 * 10**6, 2 * 10**6 + 16)]


def test_guidance_makes_cells_of_its_own() -> None:
    plan = plan_of(with_search(grid={"guidance": [1, 2.5], "gamma": [0, 0.1]}))
    ids = [cell.id for cell in plan.cells if cell.solver == "ddim"]
    assert ids == ["analytic:mixture-2d-w1/ddim/3", "analytic:mixture-2d-w2.5/ddim/3"]
    for cell in plan.cells:
        assert plan.points_of(cell) == [{"gamma": 0}, {"gamma": 0.1}]
        assert plan.hash_of(cell.model) == "h"
    assert len({plan.teacher_key(model) for model in plan.models}) == 2
    ablation = plan_of(ablated(base={"guidance": 1}, vary={"guidance": [2], "gamma": [0]}))
    counts = {cell.id: len(ablation.points_of(cell)) for cell in ablation.cells}
    assert sorted(set(counts.values())) == [1, 2]


def test_a_grown_axis_moves_no_key() -> None:
    few, more = (
        plan_of(with_search(grid={"gamma": [0]}, members={"seeds": n, "starts": starts}))
        for n, starts in ((1, ["karras"]), (3, ["log_snr", "karras"]))
    )
    one, other = few.trial(few.cells[0], {"gamma": 0}), more.trial(more.cells[0], {"gamma": 0})
    assert one.key == other.key
    assert set(one.keys) < set(other.keys)
    assert len(other.keys) == 6
    assert other.only([1]).members == one.members


BAD: list[tuple[dict[str, Any], list[str]]] = [
    (with_search(grid={"pears.train": [4]}), ["search.grid.pears.train", "did you mean"]),
    (with_search(grid={"pairs.train": [1]}), ["search.grid.pairs.train = 1", "at least 2"]),
    (with_search(grid={"pairs.train": [2 * 10**6]}), ["search.grid.pairs.train", "at most 1,0"]),
    (with_search(grid={"pairs.train": ["many"]}), ["search.grid.pairs.train", "number"]),
    (with_search(grid={"teacher.nfe": [0]}), ["search.grid.teacher.nfe = 0", "at least 1"]),
    (with_search(grid={"teacher.nfe": [12.5]}), ["search.grid.teacher.nfe", "whole number"]),
    (with_search(grid={"teacher.solver": ["unipc"]}), ["search.grid.teacher.solver", "'unipc"]),
    (with_search(grid={"teacher.start": ["karas"]}), ["search.grid.teacher.start", "karras"]),
    (with_search(grid={"guidance": [-1]}), ["search.grid.guidance = -1", "at least 0"]),
    (with_search(optuna={"guidance": [1, 2]}), ["search.optuna.guidance", "search.grid.guidance"]),
    (
        with_search(optuna={"teacher.nfe": [10, 20]}),
        ["search.optuna.teacher.nfe", "not comparable", "search.grid.teacher.nfe"],
    ),
    (
        with_search(optuna={"pairs.train": {"low": 4, "high": 9}}),
        ["search.optuna.pairs.train", "give a list"],
    ),
    (ablated(vary={}), ["ablate.vary", "is empty"]),
    (ablated(base={"gamma": 0}), ["ablate.vary", "missing"]),
    (ablated(vary={"gama": [0]}), ["ablate.vary.gama", "did you mean 'gamma'"]),
    (ablated(vary={"gamma": [-1]}), ["ablate.vary.gamma = -1", "at least 0"]),
    (ablated(vary={"gamma": []}), ["ablate.vary.gamma", "is empty"]),
    (ablated(vary={"gamma": [0, 0]}), ["ablate.vary.gamma", "twice"]),
    (ablated(base={"gamma": [0]}, vary={"lr": [1]}), ["ablate.base.gamma", "give one"]),
    (ablated(base={"offset_window": 2}, vary={"lr": [1]}), ["ablate.base.offset_window = 2"]),
    (ablated(vary={"gamma": 0.1}), ["ablate.vary.gamma = 0.1", "list"]),
    (ablated(vary={"gamma": [0]}, full="yes"), ["ablate.full", "true or false"]),
    (ablated(vary={"gamma": [0]}, all=True), ["ablate.all", "known here: base, vary, full"]),
    (ablated(vary={"epochs": [4]}), ["learn.epochs is fixed to 2", "ablate.vary.epochs: keep one"]),
    (
        with_search(grid={"lr": [0.1]}) | {"ablate": {"vary": {"gamma": [0]}}},
        ["search.grid.lr beside ablate", "ablate.vary.lr"],
    ),
    (
        with_search(optuna={"gamma": [0, 1]}) | {"ablate": {"vary": {"gamma": [0]}}},
        ["axis 'gamma'", "ablate", "search.optuna", "keep one"],
    ),
    (
        with_search(grid={"gamma": [0, 1]}) | {"evaluate": {"rows": {"best_per": ["lr"]}}},
        ["evaluate.rows.best_per", "'lr' is not an axis", "its axes: gamma"],
    ),
    (changed(evaluate={"rows": "some"}), ["evaluate.rows"]),
    (changed(evaluate={"rows": {"best_per": []}}), ["evaluate.rows.best_per", "is empty"]),
    (changed(evaluate={"repeats": 0}), ["evaluate.repeats = 0", "at least 1"]),
    (changed(evaluate={"samples": 2 * 10**7}), ["evaluate.samples", "at most 10,000,000"]),
    (changed(search={"members": {"seeds": 1000}}), ["search.members.seeds = 1000", "at most 999"]),
]  # fmt: skip


@pytest.mark.parametrize(("data", "parts"), BAD, ids=lambda value: str(value)[-40:])
def test_bad_axes_name_key_value_and_remedy(data: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        parse_experiment(data, "mine.yaml")
    message = str(caught.value)
    for part in ["mine.yaml", *parts]:
        assert part in message, message
    assert "Traceback" not in message


@pytest.mark.timeout(20)
def test_huge_grids_are_refused_with_their_numbers_at_once() -> None:
    many = list(range(1, 3001))
    grid = {"epochs": many, "batch": many}
    data = with_search(grid=grid) | {"learn": {}}
    with pytest.raises(InputError, match="9,000,000 points") as caught:
        parse_experiment(data)
    assert "3,000 of epochs x 3,000 of batch" in str(caught.value)
    levels = {"epochs": many, "batch": many}
    data = with_search() | {"learn": {}, "ablate": {"vary": levels, "full": True}}
    with pytest.raises(InputError, match=r"ablate\.vary: .* are 9,000,000 points"):
        parse_experiment(data)
