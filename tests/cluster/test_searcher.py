"""Proposals: a study per cell and point, the same whoever finishes first, rebuilt from rows."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import pytest
from ray.tune.search import Searcher
from tiny_sweep import changed

from ld3_dist.cluster.search.proposals import Proposal
from ld3_dist.cluster.search.searcher import CellSearcher
from ld3_dist.experiment import Plan, TrialSpec, parse_experiment
from ld3_dist.tasks.trial import Outcome

MANY = 10**6


def plan_of(sampler: str = "tpe", rounds: int = 4, **settings: Any) -> Plan:
    search = changed()["search"] | {"rounds": rounds, "sampler": sampler}
    experiment = parse_experiment(changed(search=search, **settings))
    return Plan(experiment, {model.label: "h" for model in experiment.models})


class Work:
    """Trials that are done in a moment: an objective from a closed formula, kept like rows."""

    def __init__(self, plan: Plan, limit: int = MANY) -> None:
        self.rows: dict[str, Outcome] = {}
        self.told: dict[str, list[tuple[dict[str, Any], float]]] = {}
        self.asked: list[str] = []
        self.searcher = CellSearcher(
            plan,
            self.look,
            {"analytic:mixture-2d"},
            limit,
            self.mirror,
            lambda spec: self.asked.append(spec.key),
        )
        self.plan, self.serial = plan, 0

    def look(self, spec: TrialSpec, task: str | None = None) -> Outcome | TrialSpec:
        return self.rows.get(spec.task, spec)

    def mirror(self, proposal: Proposal, new: bool) -> None:
        assert proposal.outcome is not None
        name = f"{proposal.spec.cell.id} {proposal.study.point}"
        self.told.setdefault(name, []).append((proposal.params, proposal.outcome.objective))

    def suggest(self) -> tuple[str, dict[str, Any]] | str | None:
        self.serial += 1
        given = self.searcher.suggest(str(self.serial))
        return (str(self.serial), given) if isinstance(given, dict) else given

    def finish(self, name: str, given: dict[str, Any]) -> None:
        learn = json.loads(given["settings"])["learn"]
        objective = math.log(learn["lr"] / 0.1) ** 2 + learn["gamma"]
        self.rows[given["key"]] = Outcome(given["key"], objective, (), "ok")
        self.searcher.on_trial_complete(name, {"objective": objective})

    def run(self, order: str = "first") -> list[dict[str, Any]]:
        """To the end; among the running trials the first, the last or any one finishes next."""
        running, proposals, chance = [], [], random.Random(order)
        while True:
            given = self.suggest()
            if isinstance(given, tuple):
                running.append(given)
                proposals.append(given[1])
            elif running:
                index = {"first": 0, "last": -1}.get(order, chance.randrange(len(running)))
                self.finish(*running.pop(index))
            else:
                assert given == Searcher.FINISHED
                return proposals


def by_key(proposals: list[dict[str, Any]]) -> dict[str, tuple[str, int]]:
    return {p["key"]: (p["cell"], p["round"]) for p in proposals}


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc"])
def test_proposals_do_not_depend_on_who_finishes_first(sampler: str) -> None:
    plan = plan_of(sampler, rounds=12)  # long enough for TPE to use what it was told
    first, *others = [Work(plan) for _ in range(4)]
    expected = by_key(first.run())
    assert len(expected) == 2 * 2 * 12
    for work, order, limit in zip(others, ("last", "any", "first"), (MANY, MANY, 3), strict=True):
        work.searcher.limit = limit
        assert by_key(work.run(order)) == expected
        assert work.told == first.told


def test_work_is_counted_in_network_evaluations() -> None:
    """By hand: two solvers and points, three rounds, NFE 3 and 5; a backward pass counts as two."""
    plan = plan_of("random", rounds=3, nfe=[3, 5])
    config = plan.trial(plan.cells[0], plan.points()[0]).config
    pairs = plan.experiment.pairs
    per_member = config.epochs * (3 * pairs.train + pairs.valid) + pairs.valid
    members = len(plan.member_labels())
    work = Work(plan, limit=2)
    whole = work.searcher.work_left
    assert whole == 2 * 2 * 3 * members * (3 + 5) * per_member
    first, second = work.suggest(), work.suggest()
    assert isinstance(first, tuple)
    assert isinstance(second, tuple)
    assert work.searcher.work == 0
    nfe = json.loads(first[1]["cell"].rpartition("/")[2])
    half = {first[0]: 0.5, "gone": 1.0}
    assert work.searcher.work_inside(half) == 0.5 * nfe * members * per_member
    work.finish(*first)
    assert work.searcher.work == nfe * members * per_member
    assert work.searcher.work_left == whole - work.searcher.work
    work.finish(*second)
    work.run()
    assert (work.searcher.work, work.searcher.work_left) == (whole, 0)
    again = Work(plan)
    again.rows = work.rows
    assert again.run() == []
    assert (again.searcher.work, again.searcher.work_left) == (0, 0)


def test_every_point_of_every_cell_has_a_study_of_its_own() -> None:
    """What the sampler proposes for one point says nothing about another, and grids may grow."""
    work = Work(plan_of("random"))
    work.run("last")
    assert len(work.told) == 4
    for name, told in work.told.items():
        assert len(told) == 4
        assert {f"{params['gamma']}}}" for params, _ in told} == {name.rpartition(" ")[2]}
    proposed = [tuple(params["lr"] for params, _ in told) for told in work.told.values()]
    assert len(set(proposed)) == 4
    search = changed()["search"] | {"rounds": 4, "sampler": "random"}
    wider = changed(search=search | {"grid": {"gamma": [0, 0.003, 0.01]}}, nfe=[3, 4])
    more = Work(Plan(parse_experiment(wider), {"analytic:mixture-2d": "h"}))
    assert by_key(work_run := work.run()) == {}
    assert work_run == []
    grown = by_key(more.run("any"))
    assert work.rows.keys() < grown.keys()


def test_more_rounds_go_on_with_the_same_studies() -> None:
    few, many = Work(plan_of(rounds=9)), Work(plan_of(rounds=11))
    expected = by_key(few.run())
    assert {k: v for k, v in by_key(many.run("any")).items() if v[1] < 9} == expected


def test_a_study_waits_for_its_trial() -> None:
    work = Work(plan_of())
    first = [work.suggest() for _ in range(4)]
    cells = [given[1]["cell"].split("/")[1] for given in first if isinstance(given, tuple)]
    assert cells == ["ddim", "ipndm-2", "ddim", "ipndm-2"]  # in turn: no cell waits for another
    assert work.suggest() is None
    ddim = [given for given in first if isinstance(given, tuple) and "ddim" in given[1]["cell"]]
    gamma = json.loads(ddim[1][1]["settings"])["learn"]["gamma"]
    work.finish(*ddim[1])
    second = work.suggest()
    assert isinstance(second, tuple)
    assert "ddim" in second[1]["cell"]
    assert second[1]["round"] == 1
    assert json.loads(second[1]["settings"])["learn"]["gamma"] == gamma
    assert work.suggest() is None


def test_a_point_without_proposed_axes_needs_no_study() -> None:
    search = {"grid": {"gamma": [0, 0.01]}, "optuna": {}, "rounds": 1, "members": {"seeds": 1}}
    plan = Plan(parse_experiment(changed() | {"search": search}), {"analytic:mixture-2d": "h"})
    work = Work(plan)
    given = work.suggest()
    assert isinstance(given, tuple)
    assert all(proposal.asked is None for proposal in work.searcher.live.values())


@pytest.mark.parametrize("lost", [0, 1])
def test_trials_that_are_there_count_before_the_search_comes_upon_them(lost: int) -> None:
    """Also where the look at a row finds that it cannot be used: that trial is learned again."""
    search = {"grid": {"gamma": [0, 0.01, 0.1]}, "optuna": {}, "members": {"seeds": 2}}
    plan = Plan(parse_experiment(changed() | {"search": search}), {"analytic:mixture-2d": "h"})
    specs = [plan.trial(cell, point) for cell in plan.cells for point in plan.points_of(cell)]
    whole, resumed = Work(plan), Work(plan)
    one = whole.searcher.work_left / len(specs)
    known = specs[1::2]  # spread over the cells, and none where the search begins
    resumed.rows = {spec.task: Outcome(spec.task, 0.0, (), "ok") for spec in known[lost:]}
    resumed.searcher.foresee({key for spec in known for key in spec.keys})
    assert resumed.searcher.found == len(known) == 3
    assert resumed.searcher.work_left == len(specs[::2]) * one
    assert len(resumed.run()) == 3 + lost
    assert resumed.searcher.found == 3 - lost
    assert (resumed.searcher.work, resumed.searcher.work_left) == ((3 + lost) * one, 0)


def test_never_more_trials_out_than_the_limit() -> None:
    work = Work(plan_of(), limit=1)
    given = work.suggest()
    assert isinstance(given, tuple)
    assert work.suggest() is None
    work.finish(*given)
    assert isinstance(work.suggest(), tuple)


@pytest.mark.parametrize("kept", [1, 7, 15, 16])
def test_a_search_is_rebuilt_from_its_rows(kept: int) -> None:
    plan = plan_of()
    whole, resumed = Work(plan), Work(plan)
    expected = whole.run()
    chosen = random.Random(kept).sample(sorted(whole.rows), kept)
    resumed.rows = {key: whole.rows[key] for key in chosen}
    again = resumed.run("last")
    assert by_key(again) == by_key([p for p in expected if p["key"] not in chosen])
    assert resumed.searcher.found == kept
    assert resumed.rows == whole.rows
    assert resumed.told == whole.told


def test_failed_and_diverged_trials_do_not_stop_a_study() -> None:
    work = Work(plan_of(rounds=2))
    seen = 0
    while (given := work.suggest()) != Searcher.FINISHED:
        assert isinstance(given, tuple)
        name, proposal = given
        seen += 1
        if seen % 2:  # the worker died: no rows
            work.searcher.on_trial_complete(name, error=True)
        else:
            work.rows[proposal["key"]] = Outcome(proposal["key"], math.inf, (math.inf,), "diverged")
            work.searcher.on_trial_complete(name, {"objective": 1e9})
    assert seen == work.searcher.total == 8
    assert len(work.searcher.failed) == 4
    assert all(objective == math.inf for told in work.told.values() for _, objective in told)


def test_cells_wait_for_their_teacher() -> None:
    plan = plan_of(models=["analytic:mixture-2d", "analytic:mixture-1d"])
    work = Work(plan)
    given = [work.suggest() for _ in range(4)]
    assert {g[1]["cell"].split("/")[0] for g in given if isinstance(g, tuple)} == {
        "analytic:mixture-2d"
    }
    assert work.suggest() is None
    work.searcher.ready.add("analytic:mixture-1d")
    late = work.suggest()
    assert isinstance(late, tuple)
    assert late[1]["cell"].startswith("analytic:mixture-1d")


def test_trials_of_more_evaluations_go_first() -> None:
    """Or all workers but one would wait at the end for a trial of 8 that began late."""
    plan = plan_of("random", nfe=[3, 8, 5])
    work = Work(plan)
    asked = [work.suggest() for _ in plan.cells]  # each cell once, since they take turns
    found = [given[1]["cell"] for given in asked if isinstance(given, tuple)]
    assert sorted(found) == sorted(cell.id for cell in plan.cells)
    numbers = [int(cell.rpartition("/")[2]) for cell in found]
    assert numbers == [8, 8, 5, 5, 3, 3]


def test_other_seeds_propose_other_values() -> None:
    keys = [set(by_key(Work(plan_of("random", seed=seed)).run())) for seed in (0, 1)]
    assert not keys[0] & keys[1]


def test_a_proposal_holds_all_that_a_trial_needs() -> None:
    plan = plan_of()
    given = Work(plan).suggest()
    assert isinstance(given, tuple)
    settings, members = json.loads(given[1]["settings"]), json.loads(given[1]["members"])
    spec = plan.spec(plan.cell(given[1]["cell"]), settings, members)
    assert spec.task == given[1]["key"]
    assert spec.config.gamma == 0
    assert 0.03 <= spec.config.lr <= 0.3
    assert plan.trial(plan.cells[0], {"gamma": 0, "lr": spec.config.lr}) == spec


def test_a_trial_learns_only_the_members_that_are_missing() -> None:
    plan = plan_of()
    work = Work(plan)
    work.look = lambda spec, task=None: spec.only([1])  # type: ignore[method-assign]
    work.searcher.proposals.look = work.look
    given = work.suggest()
    assert isinstance(given, tuple)
    assert json.loads(given[1]["members"]) == [[1, "log_snr"]]


def test_whole_numbers_and_names_are_proposed_as_such() -> None:
    optuna = {"batch": {"low": 2, "high": 6}, "coordinate": ["lambda", "time"]}
    search = {
        "grid": {},
        "optuna": optuna,
        "rounds": 6,
        "sampler": "random",
        "members": {"seeds": 1},
    }
    experiment = parse_experiment(
        changed(search=search, learn={"batch": 4}) | {"learn": {"epochs": 1}}
    )
    work = Work(Plan(experiment, {"analytic:mixture-2d": "h"}))
    settings = [json.loads(proposal["settings"])["learn"] for proposal in work.run("any")]
    assert {type(s["batch"]) for s in settings} == {int}
    assert {s["batch"] for s in settings} <= {2, 3, 4, 5, 6}
    assert {s["coordinate"] for s in settings} == {"lambda", "time"}
