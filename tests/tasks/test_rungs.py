"""ASHA against a simulation of its rule: who goes on depends on who was there before, cell by cell,
by gain.
"""

from __future__ import annotations

import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from forked_sweeps import sweep
from object_store import endpoint  # noqa: F401
from schedules import one_thread  # noqa: F401
from tiny_sweep import changed

from ld3_dist import load_results
from ld3_dist.core.errors import InputError
from ld3_dist.experiment import Plan, TrialSpec, parse_experiment
from ld3_dist.store.opening import open_storage
from ld3_dist.store.storage import Storage
from ld3_dist.store.tables import write_table
from ld3_dist.tasks.baselines import BaselineTask
from ld3_dist.tasks.rungs import Rungs

BASELINE = 0.5


def plan_of(asha: dict[str, Any] | None, **learn: Any) -> Plan:
    search = changed()["search"] | ({"asha": asha} if asha else {})
    learned = {"epochs": 28, "batch": 4} | learn
    grids = ["uniform", "karras", "log_snr"]
    experiment = parse_experiment(changed(search=search, learn=learned, baselines=grids))
    return Plan(experiment, {model.label: "h" for model in experiment.models})


def trial_of(plan: Plan, number: int, cell: int = 0) -> TrialSpec:
    return plan.trial(plan.cells[cell], {"gamma": 0.01, "lr": 0.03 + 0.001 * number})


def measured(plan: Plan, storage: Storage, *losses: float) -> None:
    """Baselines of every cell: two grids, of which the second is the better one, and one that
    diverged.
    """
    for cell, best in zip(plan.cells, losses, strict=True):
        losses_of_grids = {"uniform": 3 * best, "karras": best, "log_snr": math.inf}
        records = list[dict[str, Any]]()
        for key, name, distance, teacher in plan.baselines(cell):
            about = {"key": key, "kind": "baseline", "cell": cell.id, "status": "ok"}
            about |= {"distance": distance, "start": name}
            about |= {"teacher": plan.teacher_key(cell.model, teacher)}
            records.append(about | {"valid_loss": losses_of_grids[name]})
        # of a distance that the trials do not learn in
        records.append(records[0] | {"key": "other", "distance": "l1", "valid_loss": best / 100})
        file = BaselineTask(cell, tuple(plan.baselines(cell))).file
        write_table(storage, "rows", file, records)


def at(epoch: int, *losses: float) -> Any:
    """What `learn` yields, as far as a rung looks at it: the members' best losses."""
    return SimpleNamespace(epoch=epoch, best_valid=torch.tensor(losses, dtype=torch.float64))


def arrivals(
    plan: Plan, storage: Storage, losses: list[float], epoch: int, cell: int = 0
) -> list[bool]:
    """Does trial after trial go on?"""
    return [
        not Rungs(plan, trial_of(plan, i, cell), storage).stops(at(epoch, loss, loss))
        for i, loss in enumerate(losses)
    ]


def test_rungs_are_at_grace_times_powers_of_the_reduction(tmp_path: Path) -> None:
    """The last epoch is none: nothing is left to save."""
    for grace, reduction, expected in (
        (1, 3, [1, 3, 9, 27]),
        (2, 2, [2, 4, 8, 16]),
        (7, 2, [7, 14]),
        (5, 5, [5, 25]),
    ):
        plan = plan_of({"grace": grace, "reduction": reduction})
        storage = open_storage(tmp_path / f"{grace}-{reduction}")
        measured(plan, storage, BASELINE, BASELINE)
        for epoch in range(29):
            Rungs(plan, trial_of(plan, 0), storage).stops(at(epoch, 0.1, 0.1))
        assert (
            sorted(int(name.split("/")[2]) for name in storage.list("rungs", recursive=True))
            == expected
        )


@pytest.mark.parametrize("reduction", [2, 3, 4])
def test_who_goes_on_is_who_the_rule_says(reduction: int, tmp_path: Path) -> None:
    chance, plan = random.Random(reduction), plan_of({"grace": 4, "reduction": reduction})
    for number in range(3):
        storage = open_storage(tmp_path / f"{number}")
        measured(plan, storage, BASELINE, BASELINE)
        losses = [chance.uniform(0.01, 1.0) for _ in range(24)]
        expected = []
        for i, loss in enumerate(losses):
            better = sorted(losses[: i + 1]).index(loss)
            expected.append(better * reduction < i + 1)
        assert arrivals(plan, storage, losses, 4) == expected
        assert expected[losses.index(min(losses))]


def test_files_of_somebody_else_are_no_notes(tmp_path: Path) -> None:
    plan, storage = plan_of({"grace": 4, "reduction": 2}), open_storage(tmp_path)
    measured(plan, storage, BASELINE, BASELINE)
    losses = [0.5, 0.4, 0.6]
    alone = open_storage(tmp_path / "alone")
    measured(plan, alone, BASELINE, BASELINE)
    expected = arrivals(plan, alone, losses, 4)
    assert arrivals(plan, storage, losses[:1], 4) == expected[:1]
    (note,) = storage.list("rungs", recursive=True)
    for stray in (".DS_Store", "stray~better"):
        storage.write_bytes(f"{note.rpartition('/')[0]}/{stray}", b"x")
    assert arrivals(plan, storage, losses, 4) == expected


def test_orders_with_a_known_end(tmp_path: Path) -> None:
    """Each better than all before: all go on. Each worse: the first alone. Equals do not stop each
    other.
    """
    plan = plan_of({"grace": 4, "reduction": 3})
    for name, losses, expected in (
        ("better", [1 / (i + 1) for i in range(9)], [True] * 9),
        ("worse", [0.1 * (i + 1) for i in range(9)], [True] + [False] * 8),
        ("equal", [0.2] * 9, [True] * 9),
        ("infinite", [0.2, math.inf, math.inf, 0.3], [True, False, False, True]),
    ):
        storage = open_storage(tmp_path / name)
        measured(plan, storage, BASELINE, BASELINE)
        assert arrivals(plan, storage, losses, 4) == expected, name


def test_notes_hold_the_log_gain_over_the_best_grid_of_the_cell(tmp_path: Path) -> None:
    """In the trial's distance; of every seed the best member, then the mean of logs."""
    plan, storage = plan_of({"grace": 4, "reduction": 3}), open_storage(tmp_path)
    measured(plan, storage, 0.5, 50.0)
    for cell, (losses, expected) in enumerate(
        [((0.1, 0.4), math.log(0.5 / 0.2)), ((100.0, 100.0), math.log(0.5))]
    ):
        Rungs(plan, trial_of(plan, 0, cell), storage).stops(at(4, *losses))
        (name,) = (n for n in storage.list("rungs", True) if trial_of(plan, 0, cell).task in n)
        assert float(name.rpartition("~")[2]) == pytest.approx(expected, abs=1e-8)


def test_cells_do_not_compete_and_their_units_cancel(tmp_path: Path) -> None:
    """A cell whose losses are 1,000 times larger decides alike, while another's trials stand at the
    same epoch.
    """
    plan, storage = plan_of({"grace": 4, "reduction": 2}), open_storage(tmp_path)
    measured(plan, storage, 0.5, 500.0)
    losses = [0.3, 0.1, 0.4, 0.2, 0.05, 0.6]
    first = arrivals(plan, storage, losses, 4, cell=0)
    assert arrivals(plan, storage, [1000 * loss for loss in losses], 4, cell=1) == first
    assert not all(first)


def test_a_trial_that_comes_back_counts_once(tmp_path: Path) -> None:
    plan, storage = plan_of({"grace": 4, "reduction": 3}), open_storage(tmp_path)
    measured(plan, storage, BASELINE, BASELINE)
    assert arrivals(plan, storage, [0.3], 4) == [True]
    for loss in (0.2, 0.2, 0.2 + 1e-7):  # the last on a machine that rounds otherwise
        assert not Rungs(plan, trial_of(plan, 1), storage).stops(at(4, loss, loss))
    assert Rungs(plan, trial_of(plan, 2), storage).stops(
        at(4, 0.25, 0.25)
    )  # one of three is better: 1 >= 3 / 3


def test_without_baselines_nothing_is_decided(tmp_path: Path) -> None:
    plan, storage = plan_of({"grace": 4, "reduction": 3}), open_storage(tmp_path)
    assert arrivals(plan, storage, [0.1, 0.2, 0.3, 0.4], 4) == [True] * 4
    assert storage.list("rungs", True) == []


def test_on_an_object_store(endpoint: str) -> None:  # noqa: F811
    plan = plan_of({"grace": 4, "reduction": 3})
    storage = open_storage(f"s3://bucket/rungs?endpoint_override={endpoint}")
    measured(plan, storage, BASELINE, BASELINE)
    assert arrivals(plan, storage, [0.1, 0.2, 0.05], 4) == [True, False, True]


def test_a_sweep_stops_bad_trials_early(tmp_path: Path) -> None:
    """They have rows like any other, with the best found so far; what is finished is not done
    again.
    """
    learn, search = (
        {"epochs": 9, "batch": 4, "patience": 100},
        {**changed()["search"], "rounds": 3, "sampler": "random"},
    )
    experiment = changed(learn=learn, search=search, evaluate={"samples": 8}, baselines=["karras"])
    whole, halved = open_storage(tmp_path / "whole"), open_storage(tmp_path / "halved")
    sweep(whole, experiment)
    sweep(
        halved, changed(**experiment | {"search": search | {"asha": {"grace": 1, "reduction": 3}}})
    )
    frames = [
        load_results(storage).query("kind == 'learned'").set_index("key")
        for storage in (whole, halved)
    ]
    reference, frame = frames
    assert set(frame.index) == set(reference.index)
    stopped = frame[frame["epochs_run"] < 9]
    assert 0 < len(stopped) < len(frame)
    assert set(frame["status"]) == {"ok"}
    expected = stopped["epochs_run"].map("stopped by ASHA after epoch {}".format)
    assert stopped["message"].tolist() == expected.tolist()
    assert set(stopped["epochs_run"]) <= {1, 3}
    assert frame.drop(stopped.index)["message"].isna().all()
    assert (stopped["network_evals"] < reference.loc[stopped.index, "network_evals"]).all()
    assert frame["network_evals"].sum() < 0.8 * reference["network_evals"].sum()
    assert stopped["valid_curve"].map(len).eq(stopped["epochs_run"] + 1).all()
    for key, row in stopped.iterrows():  # the same trial, cut short
        assert (
            row["valid_curve"].tolist()
            == reference.loc[key, "valid_curve"][: row["epochs_run"] + 1].tolist()
        )
    for cell, mine in frame.groupby("cell"):
        assert mine["epochs_run"].max() == 9, cell
    files = {
        name: halved.read_bytes(name) for name in halved.list("rows") + halved.list("rungs", True)
    }
    sweep(
        halved, changed(**experiment | {"search": search | {"asha": {"grace": 1, "reduction": 3}}})
    )
    assert files == {
        name: halved.read_bytes(name) for name in halved.list("rows") + halved.list("rungs", True)
    }
    assert not whole.list("rungs", True)


def test_off_unless_asked_for_and_then_another_experiment() -> None:
    assert plan_of(None).experiment.search.asha is None
    prints = {
        plan_of(asha).fingerprint
        for asha in (None, {"grace": 4}, {"grace": 5}, {"grace": 4, "reduction": 2})
    }
    assert len(prints) == 4
    keys = {trial_of(plan_of(asha), 0).key for asha in (None, {"grace": 4})}
    assert len(keys) == 1  # a trial is what it is


@pytest.mark.parametrize(
    ("asha", "learn", "axes", "said"),
    [
        ({"grace": 28}, {}, {}, "search.asha.grace = 28: trials have at most 28 epochs"),
        ({"grace": 40}, {"epochs": 40}, {}, "at most 40 epochs"),
        ({}, {"procedure": "paper", "epochs": 7}, {}, "at most 7 epochs"),
        ({"grace": 9}, {"epochs": None}, {"epochs": [3, 9]}, "at most 9 epochs"),
        ({"grace": 9}, {"epochs": None}, {"epochs": {"low": 2, "high": 8}}, "at most 8 epochs"),
        ({"grace": 40}, {"epochs": None}, {"procedure": ["default", "paper"]}, "at most 20 epochs"),
        ({"grace": 0}, {}, {}, "grace"),
        ({"reduction": 1}, {}, {}, "reduction"),
        ({"reduction": 2.5}, {}, {}, "reduction"),
        ({"rung": 3}, {}, {}, "rung"),
    ],
)
def test_settings_that_make_no_sense(
    asha: Any, learn: dict[str, Any], axes: dict[str, Any], said: str
) -> None:
    settings = {key: value for key, value in ({"epochs": 28} | learn).items() if value is not None}
    search = changed()["search"] | {"asha": asha}
    search["optuna"] = search["optuna"] | axes
    data = changed(search=search)
    data["learn"] = settings
    with pytest.raises(InputError, match=said):
        parse_experiment(data)
