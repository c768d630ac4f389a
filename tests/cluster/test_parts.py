"""Sweeps in parts: who does what, whom the folder lets in, and the table that comes of it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plain_sweep import search, sweep, teach
from tiny_sweep import changed, lasting

from ld3_dist.cluster import parts
from ld3_dist.cluster.output_folder import claim
from ld3_dist.cluster.search.proposals import points_by_cell
from ld3_dist.cluster.search.searcher import CellSearcher
from ld3_dist.cluster.teach_stage import Preparation
from ld3_dist.core.errors import InputError
from ld3_dist.experiment import Plan, parse_experiment
from ld3_dist.store import lock as locks
from ld3_dist.store.opening import open_storage
from ld3_dist.store.part import Part, parse_part
from ld3_dist.store.process import Process
from ld3_dist.tasks.baselines import run_baselines
from ld3_dist.tasks.index import RowIndex
from ld3_dist.tasks.planning import make_plan
from ld3_dist.tasks.teach import make_shard, make_shard_if_missing


@given(st.integers(1, 40), st.lists(st.integers(0, 10**7), max_size=30))
def test_everything_is_in_one_part(count: int, positions: list[int]) -> None:
    every = [Part(i, count) for i in range(1, count + 1)]
    for position in positions:
        assert sum(part.has(position) for part in every) == 1
    sizes = [sum(part.has(i) for i in range(100)) for part in every]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("9/8", r"--shard 9/8: there is no shard 9 of 8; give one from 1/8 to 8/8"),
        ("0/8", r"--shard 0/8: there is no shard 0 of 8"),
        ("1/0", r"--shard 1/0: the number of shards must be from 1"),
        ("3", r"--shard 3: write i/n, such as 3/8"),
        ("-1/8", r"write i/n"),
        ("1/8/2", r"write i/n"),
        ("", r"write i/n"),
        ("1/99999999", r"from 1 to 10,000"),
    ],
)
def test_a_shard_that_there_is_not(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_part(text)
    assert parse_part(" 3/8 ") == Part(3, 8)


def test_every_point_is_searched_by_one_part() -> None:
    experiment = parse_experiment(changed(search={"grid": {"gamma": [0, 0.01, 0.1]}}))
    plan = Plan(experiment, {model.label: "h" for model in experiment.models})
    whole = points_by_cell(plan, None)
    assert sum(len(points) for _, points in whole) == 6
    shares = [points_by_cell(plan, Part(i, 4)) for i in range(1, 5)]
    for number, (cell, points) in enumerate(whole):
        found = [point for share in shares for point in share[number][1]]
        assert sorted(found, key=str) == sorted(points, key=str)
        assert all(share[number][0] == cell for share in shares)
    assert [sum(len(points) for _, points in share) for share in shares] == [2, 2, 1, 1]


def run_part(place: Path, experiment: dict[str, Any], part: Part) -> set[str]:
    """The teaching and the search of a part, in this process; the keys of its trials."""
    storage = open_storage(place)
    plan = make_plan(parse_experiment(experiment))
    asked: set[str] = set()
    with locks.acquire(storage, part=part):
        lineage = claim(storage, plan)
        parts.begin(storage, plan.fingerprint, part)
        teach(plan, storage)
        for i, cell in enumerate(plan.cells):
            if part.has(i):
                run_baselines(plan, cell, storage)
        rows = RowIndex(plan, storage)
        ready = {model.label for model in plan.models}

        def note(spec: Any) -> None:
            asked.add(spec.key)
            lineage.ask(spec)

        search(plan, storage, CellSearcher(plan, rows.outcome, ready, 1, note=note, part=part))
        lineage.write(at_once=True)
        parts.end(storage, plan.fingerprint, part, 0)
    return asked


def test_parts_and_the_whole_give_the_same_table(tmp_path: Path) -> None:
    """In an order of their own, and with Optuna's axes; then the whole has nothing to learn."""
    experiment = changed(evaluate={"samples": 8})
    whole = sweep(open_storage(tmp_path / "whole"), experiment)
    order = [Part(2, 3), Part(3, 3), Part(1, 3)]
    shares = [run_part(tmp_path / "parts", experiment, part) for part in order]
    assert sum(map(len, shares)) == len(set.union(*shares)) == 8
    storage = open_storage(tmp_path / "parts")
    assert not parts.unfinished(storage, whole.fingerprint, 3)
    assert len(parts.unfinished(storage, "another", 3)) == 3
    before = {name: storage.read_bytes(name) for name in storage.list("rows")}
    sweep(storage, experiment)
    assert {name: storage.read_bytes(name) for name in storage.list("rows")} == before
    pd.testing.assert_frame_equal(
        lasting(tmp_path / "parts"), lasting(tmp_path / "whole"), check_exact=True
    )


def test_a_part_makes_its_own_shards_first_and_then_what_is_left(tmp_path: Path) -> None:
    """From the other end, so that the parts meet; what another has made is not made again."""
    experiment = changed(pairs={"train": 40, "valid": 40}, resources={"shard": 10})
    plan, storage = make_plan(parse_experiment(experiment)), open_storage(tmp_path)
    (model,) = plan.models
    pool: Any = type("Pool", (), {"add": lambda self, tasks: added.extend(tasks), "waiting": ()})()
    orders = []
    for part in (Part(1, 2), Part(2, 2)):
        added: list[Any] = []
        stage = Preparation(plan, storage, pool, lambda f: "", lambda m: None, None, part)
        list(stage._survey(model))
        orders.append([task.arguments[3:5] for task in added])
        assert all(task.function is make_shard_if_missing for task in added)
    first, second = orders
    assert sorted(first) == sorted(second)
    half = len(first) // 2
    assert not set(first[:half]) & set(second[:half])
    assert first[half:] == sorted(first[half:], reverse=True)
    start, stop = first[0]
    make_shard(plan, model, storage, start, stop)
    (name,) = storage.list("pairs", recursive=True)
    written = storage.modified(name)
    make_shard_if_missing(plan, model, storage, start, stop)
    assert storage.modified(name) == written
    storage.write_bytes(name, b"damaged")
    make_shard_if_missing(plan, model, storage, start, stop)
    assert storage.read_bytes(name) != b"damaged"


def test_parts_go_side_by_side_and_a_whole_sweep_alone(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    held = f"process {os.getpid()} on "
    with locks.acquire(storage, part=Part(1, 3)), locks.acquire(storage, part=Part(2, 3)) as second:
        found = {str(holder.part): holder for holder in locks.holders(storage)}
        assert set(found) == {"1/3", "2/3"}
        with pytest.raises(locks.LockHeld, match=rf"{held}.*shard 2/3 of a sweep"):
            locks.acquire(storage, part=Part(2, 3))
        with pytest.raises(locks.LockHeld, match=rf"{held}.*shard ./3 of a sweep"):
            locks.acquire(storage)
        with pytest.raises(locks.LockHeld, match="of a sweep"):
            locks.acquire(storage, part=Part(1, 2))
        second.note = {"stages": {"search": {"done": 1}}}
        second._beat_once()
        notes = {str(holder.part): holder.note for holder in locks.holders(storage)}
        assert notes == {"1/3": {}, "2/3": second.note}
    with locks.acquire(storage):
        with pytest.raises(locks.LockHeld, match=held):
            locks.acquire(storage, part=Part(1, 3))
        assert [holder.part for holder in locks.holders(storage)] == [None]
    assert locks.holders(storage) == []
    assert storage.list() == []


def test_a_dead_part_stops_nobody(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    me = locks.this_process()
    gone = replace(me, pid=2**22 - 3, start=f"{me.start.rpartition('-')[0]}-0")
    locks._write(storage, gone, locks.lock_name(Part(1, 3)))
    assert locks.holders(storage) == []
    with locks.acquire(storage):
        pass


def test_a_part_whose_place_was_taken_ends(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    lock = locks.acquire(storage, heartbeat=1e6, part=Part(1, 2))
    locks._write(storage, Process("elsewhere", 5, "x"), lock.name)
    lock._beat_once()
    with pytest.raises(locks.LockLost, match="process 5 on elsewhere"):
        lock.check()
    lock.release()
    assert storage.exists(lock.name)  # it is the other's now
