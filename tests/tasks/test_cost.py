"""Device seconds and peak memory of a task, against work of a known size."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_sweep import changed

from ld3_dist.experiment import parse_experiment
from ld3_dist.schedule.baselines import hand_made
from ld3_dist.store.opening import open_storage
from ld3_dist.store.tables import read_table
from ld3_dist.tasks import baselines
from ld3_dist.tasks.cost import Meter

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux resets the peak")


def meter(who: str = "trial", **resources: object) -> Meter:
    asked = parse_experiment(changed(resources=resources)).resources
    return Meter(asked, who, "cpu")  # type: ignore[arg-type]


def test_device_seconds_are_seconds_times_what_was_held() -> None:
    resources = {"cpus_per_trial": 2, "cpus_per_actor": 0.5, "gpus_per_trial": 1}
    assert meter("trial", **resources).columns(3.0)["device_seconds"] == 6.0
    assert meter("actor", **resources).columns(3.0)["device_seconds"] == 1.5


@LINUX
def test_the_peak_is_that_of_the_task_alone() -> None:
    """A gigabyte before the task does not count; 200 MB within it do, though they are gone."""
    before = torch.ones(250_000_000)
    del before
    small = meter()
    low = small.columns(1.0)["peak_memory"]
    large = meter()
    within = torch.ones(50_000_000)
    del within
    high = large.columns(1.0)["peak_memory"]
    assert 190e6 < high - low < 260e6
    assert small.columns(1.0)["peak_memory"] >= high  # one peak a process: the later task's counts


def test_a_system_that_cannot_tell_says_null(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ld3_dist.tasks.cost._CLEAR", "/nowhere/clear_refs")
    assert meter().columns(1.0)["peak_memory"] is None


def test_every_row_of_a_sweep_has_its_cost(tmp_path: object) -> None:
    from plain_sweep import sweep

    storage = open_storage(str(tmp_path))
    sweep(storage, changed(evaluate={"samples": 0}, resources={"cpus_per_trial": 0.5}))
    rows = read_table(storage, "rows")
    assert set(rows["kind"]) == {"learned", "baseline"}
    assert rows["device_seconds"].tolist() == (0.5 * rows["seconds"]).tolist()
    assert rows["network_evals"].gt(0).all()
    if sys.platform == "linux":
        assert rows["peak_memory"].between(1e8, 1e11).all()


def test_a_grid_has_the_cost_of_its_own_search(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The evaluations of finding it, 100 for each of 8 trajectories, and of 8 held-out samples; the
    time likewise, by a clock that only finding a grid moves. Two distances share both.
    """
    from plain_sweep import sweep

    clock = [0.0]

    def found(name: str, *given: object) -> object:
        clock[0] += 7.0 if name == "tors" else 1.0
        return hand_made(name, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(baselines, "hand_made", found)
    monkeypatch.setattr(baselines, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    storage = open_storage(str(tmp_path))
    axes = {"grid": {"distance": ["l2", "l1"]}, "members": {"seeds": 1, "starts": ["log_snr"]}}
    asked: dict[str, Any] = {"baselines": ["uniform", "tors", "karras"], "evaluate": {"samples": 0}}
    sweep(storage, changed(solvers=["ddim"], search=axes, **asked))
    rows = read_table(storage, "rows").query("kind == 'baseline'").set_index("start")
    assert rows["network_evals"].groupby("start").sum().to_dict() == {
        "karras": 8 * 3, "uniform": 8 * 3, "tors": 8 * 3 + 8 * 100,
    }  # fmt: skip
    seconds = rows.set_index("distance", append=True)["seconds"].to_dict()
    assert seconds == {
        (name, distance): 3.5 if name == "tors" else 0.5
        for name in asked["baselines"]
        for distance in ("l1", "l2")
    }
