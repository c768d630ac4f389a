"""A folder that grew equals one made in one go, row for row but for times, for every kind of
growth; what is there already is not done again, and nothing that was there is lost.

The sweeps run in this process, without Ray, each task after the other.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from growing import CHAIN, START, asked_rows, members, quick, version
from slowly import few
from tiny_sweep import lasting

from ld3_dist.cluster.growth import growth_of
from ld3_dist.experiment import parse_experiment
from ld3_dist.schedule.provenance import provenance
from ld3_dist.store.opening import open_storage
from ld3_dist.store.tables import read_table
from ld3_dist.tasks.planning import make_plan

GAMMA = START["search"]["grid"]["gamma"]

KINDS: dict[str, tuple[dict[str, Any], int, int]] = {
    # settings, rows of the first version that are asked for again, rows that are made
    "models": (version(models=["analytic:mixture-2d", "analytic:mixture-1d"]), 3, 3),
    "solvers": (version(solvers=["ddim", "ipndm-2"]), 3, 3),
    "nfe": (version(nfe=[3, 4]), 3, 3),
    "seeds": (version(search=members(seeds=3)), 3, 4),
    "starts": (version(search=members(starts=["karras", "log_snr"])), 3, 2),
    "a start that follows trajectories": (
        version(search=members(seeds=2, starts=["log_snr", "optimal-steps"])),
        3,
        6,
    ),
    "grid values": (version(search={"grid": {"gamma": [0.003, *GAMMA]}}), 3, 1),
    "another axis": (version(search={"grid": {"gamma": GAMMA, "lr": [0.2, 0.1]}}), 3, 2),
    "baselines": (version(baselines=["uniform", "karras", "optimal-steps"]), 3, 2),
    "fewer": (version(search={"grid": {"gamma": [0.01]}}), 2, 0),
    "nothing": (version(resources={"shard": 4}, name="other"), 3, 0),
    "an axis of pairs": (
        version(search={"grid": {"gamma": [0], "pairs.train": [4, 6, 8]}}),
        2,
        2,
    ),
    "an axis of teachers": (
        version(search={"grid": {"gamma": [0], "teacher.nfe": [12, 9]}}),
        2,
        2,
    ),
    "an axis of distances": (
        version(search={"grid": {"gamma": [0], "distance": ["l2", "l1"]}}),
        2,
        2,
    ),
    "an ablation": (
        version(
            search={"grid": {}},
            ablate={"base": {"gamma": 0}, "vary": {"gamma": [0.01, 0.1], "lr": [0.1]}},
        ),
        3,
        2,
    ),
    "another teacher": (version(teacher={"nfe": 13}), 0, 3),
    "another seed": (version(seed=1), 0, 3),
    "another distance": (version(distance="l1"), 0, 3),
    "more pairs": (version(pairs={"train": 9, "valid": 7}), 0, 3),
}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the first version; not to be changed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LD3_DIST_COMMIT", "none")  # asking git takes as long as a sweep
        provenance.cache_clear()
        folder = tmp_path_factory.mktemp("first") / "out"
        quick(version(), open_storage(folder))
        yield folder
    provenance.cache_clear()


def equal(grown: Path, whole: Path) -> None:
    """Row for row; packed with other members, a row may differ by rounding."""
    pd.testing.assert_frame_equal(
        asked_rows(open_storage(grown)), asked_rows(open_storage(whole)), rtol=1e-6
    )


QUICK = (
    "nfe",
    "seeds",
    "a start that follows trajectories",
    "grid values",
    "fewer",
    "an ablation",
)


@pytest.mark.parametrize("kind", few(KINDS, QUICK))
@pytest.mark.siblings(3)
def test_the_grown_folder_equals_the_folder_made_in_one_go(
    kind: str, first: Path, tmp_path: Path
) -> None:
    settings, again, made = KINDS[kind]
    grown, whole = tmp_path / "grown", tmp_path / "whole"
    shutil.copytree(first, grown)
    storage = open_storage(grown)
    plan = make_plan(parse_experiment(settings))
    told = growth_of(plan, storage)
    before = {name: storage.read_bytes(name) for name in storage.list("rows")}
    old = set(read_table(storage, "rows")["key"])
    quick(settings, storage)
    quick(settings, open_storage(whole))
    equal(grown, whole)
    found = set(read_table(storage, "rows")["key"])
    assert old <= found
    asked = set(asked_rows(storage)["key"])
    assert (len(old & asked), len(found - old)) == (again, made)
    assert {name: storage.read_bytes(name) for name in before} == before
    # and it was said before
    counts = {count.name: count for count in told.counts}
    assert counts["baselines"].missing + counts["members"].missing == made
    assert counts["baselines"].there + counts["members"].there == again
    assert told.left_out == len(old) - again
    assert all(count.missing == 0 for count in growth_of(plan, storage).counts[:4])


def test_going_back_does_nothing(first: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(first, out)
    expected = asked_rows(open_storage(out))
    quick(version(nfe=[3, 4], seed=0), open_storage(out))
    before = {file: file.stat().st_mtime_ns for file in (out / "rows").iterdir()}
    quick(version(), open_storage(out))
    assert {file: file.stat().st_mtime_ns for file in (out / "rows").iterdir()} == before
    pd.testing.assert_frame_equal(asked_rows(open_storage(out)), expected, check_exact=True)


@pytest.mark.parametrize("sampler", few(["tpe", "random"], ["tpe"]))
def test_rounds_and_grid_values_of_a_search_with_optuna(sampler: str, tmp_path: Path) -> None:
    axes = {"optuna": {"lr": {"low": 0.03, "high": 0.3}}, "sampler": sampler}
    few = version(search=axes | {"rounds": 2})
    more = version(search=axes | {"rounds": 4, "grid": {"gamma": [0, 0.003, 0.01]}})
    grown, whole = open_storage(tmp_path / "grown"), open_storage(tmp_path / "whole")
    quick(few, grown)
    old = set(read_table(grown, "rows")["key"])
    assert len(old) == 2 * 2 + 1
    quick(more, grown)
    quick(more, whole)
    equal(tmp_path / "grown", tmp_path / "whole")
    assert old < set(asked_rows(grown)["key"])
    assert len(asked_rows(grown)) == 3 * 4 + 1


def test_a_member_does_not_depend_on_what_it_is_packed_with(tmp_path: Path) -> None:
    """Members that stop early beside others that go on: epochs and work are a member's own."""
    learn = {"epochs": 6, "batch": 3, "patience": 1, "lr": 0.3, "lr_times": 0.05}
    several = version(learn=learn, search=members(seeds=3) | {"grid": {"gamma": [0.01]}})
    alone = version(learn=learn, search=members(seeds=1) | {"grid": {"gamma": [0.01]}})
    packed, grown = open_storage(tmp_path / "packed"), open_storage(tmp_path / "grown")
    quick(several, packed)
    quick(alone, grown)
    quick(several, grown)
    rows = asked_rows(packed)
    assert rows["epochs_run"].dropna().nunique() > 1, "all members stopped in the same epoch"
    learned = rows[rows["kind"] == "learned"]
    assert (learned["valid_curve"].map(len) == learned["epochs_run"] + 1).all()
    equal(tmp_path / "grown", tmp_path / "packed")


@pytest.mark.slow
def test_twenty_kills_at_random_during_growth(tmp_path: Path) -> None:
    support = Path(__file__).parents[1] / "support"
    path = os.pathsep.join([str(support), str(support.parents[1])])
    done = subprocess.run(
        [sys.executable, str(support / "growing.py"), "7", "20", tmp_path / "a", tmp_path / "b"],
        capture_output=True,
        text=True,
        timeout=1500,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    codes = json.loads(done.stdout.splitlines()[-1])
    assert set(codes) == {0, -signal.SIGKILL}
    assert codes.count(-signal.SIGKILL) == 20
    assert codes.count(0) == 1 + len(CHAIN)
    equal(tmp_path / "a", tmp_path / "b")


EVALUATIONS = {
    "samples": {"samples": 9},
    "repeats": {"samples": 6, "repeats": 2},
    "rows": {"samples": 6, "rows": "all"},
    "extractor": {"samples": 6, "extractor": "none"},
    "pictures": {"samples": 6, "pictures": 2},
}


@pytest.mark.parametrize("kind", few(EVALUATIONS, ("repeats", "rows")))
@pytest.mark.siblings(2)
def test_evaluations_grow_without_learning(kind: str, first: Path, tmp_path: Path) -> None:
    settings = version(evaluate=EVALUATIONS[kind])
    grown, whole = tmp_path / "grown", tmp_path / "whole"
    shutil.copytree(first, grown)
    storage = open_storage(grown)
    plan = make_plan(parse_experiment(settings))
    told = {count.name: count for count in growth_of(plan, storage).counts}
    assert told["members"].missing == told["baselines"].missing == 0
    before = {name: storage.read_bytes(name) for name in storage.list("rows")}
    quick(settings, storage)
    quick(settings, open_storage(whole))
    assert {name: storage.read_bytes(name) for name in storage.list("rows")} == before
    mine, other = (frame.drop(columns=["experiment"]) for frame in (lasting(grown), lasting(whole)))
    pd.testing.assert_frame_equal(mine, other, check_like=True, rtol=1e-9)
    after = {count.name: count for count in growth_of(plan, storage).counts}
    assert after["evaluations"].missing == 0
    if kind in ("samples", "repeats"):  # other settings are other evaluations
        assert told["evaluations"].there == 0
