"""Proposals: in generations, told in the order of the asks, the same whoever finishes first,
rebuilt from rows.
"""

from __future__ import annotations

import json
import math
import random
from typing import Any

import pytest
from optuna.trial import TrialState
from ray.tune.search import Searcher
from tiny_sweep import changed

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
        self.asked: list[str] = []
        self.searcher = CellSearcher(
            plan, lambda spec: self.rows.get(spec.key), {"analytic:mixture-2d"}, limit
        )
        self.plan, self.serial = plan, 0

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

    def told(self) -> list[list[tuple[dict[str, Any], float | None]]]:
        return [
            [(t.params, t.value) for t in study.study.trials] for study in self.searcher.studies
        ]


def by_key(proposals: list[dict[str, Any]]) -> dict[str, tuple[str, int, int]]:
    return {p["key"]: (p["cell"], p["trial"], p["generation"]) for p in proposals}


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc"])
def test_proposals_do_not_depend_on_who_finishes_first(sampler: str) -> None:
    plan = plan_of(
        sampler, rounds=8
    )  # long enough for the sampler to have learned from what it was told
    first, *others = [Work(plan) for _ in range(4)]
    expected = by_key(first.run())
    assert len(expected) == 2 * 2 * 8
    for work, order, limit in zip(others, ("last", "any", "first"), (MANY, MANY, 3), strict=True):
        work.searcher.limit = limit
        assert by_key(work.run(order)) == expected
        assert work.told() == first.told()


def test_studies_are_told_in_the_order_of_the_asks() -> None:
    work = Work(plan_of())
    work.run("last")
    for study in work.searcher.studies:
        trials = study.study.trials
        assert [t.number for t in trials] == list(range(8))
        assert all(t.state == TrialState.COMPLETE for t in trials)
        assert [t.params["gamma"] for t in trials] == [0, 0.01] * 4
        for trial in trials:
            assert trial.value == pytest.approx(
                math.log(trial.params["lr"] / 0.1) ** 2 + trial.params["gamma"]
            )


def test_a_generation_waits_for_its_last_trial() -> None:
    work = Work(plan_of())
    first = [work.suggest() for _ in range(4)]
    cells = [given[1]["cell"].split("/")[1] for given in first if isinstance(given, tuple)]
    assert cells == [
        "ddim",
        "ipndm-2",
        "ddim",
        "ipndm-2",
    ]  # in turn, so that no cell waits for another
    assert work.suggest() is None
    ddim = [given for given in first if isinstance(given, tuple) and "ddim" in given[1]["cell"]]
    work.finish(*ddim[1])
    assert work.suggest() is None
    work.finish(*ddim[0])
    second = work.suggest()
    assert isinstance(second, tuple)
    assert "ddim" in second[1]["cell"]
    assert (second[1]["generation"], second[1]["trial"]) == (1, 2)


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
    assert resumed.told() == whole.told()


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
    assert all(
        t.state == TrialState.FAIL for study in work.searcher.studies for t in study.study.trials
    )


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


def test_other_seeds_propose_other_values() -> None:
    keys = [set(by_key(Work(plan_of("random", seed=seed)).run())) for seed in (0, 1)]
    assert not keys[0] & keys[1]


def test_a_proposal_holds_all_that_a_trial_needs() -> None:
    plan = plan_of()
    given = Work(plan).suggest()
    assert isinstance(given, tuple)
    spec = TrialSpec(plan.cells[0], json.loads(given[1]["settings"]), given[1]["key"])
    assert spec.config.gamma == 0
    assert 0.03 <= spec.config.lr <= 0.3
    assert plan.trial(plan.cells[0], {"gamma": 0, "lr": spec.config.lr}).key == spec.key


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
