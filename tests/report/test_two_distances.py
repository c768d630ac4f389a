"""A sweep that learns in two distances: their losses differ in scale and are never compared."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support.forked_sweeps import SMALL, sweep
from support.tiny_sweep import changed

from ld3_dist import InputError, load_results
from ld3_dist.cluster.best_gain import BestGain
from ld3_dist.cluster.evaluate_stage import losses_of_baselines, picture_pairs
from ld3_dist.experiment.reading import parse_experiment
from ld3_dist.report.headline import headline
from ld3_dist.report.summary import summary_table
from ld3_dist.report.write import write_report
from ld3_dist.store.opening import open_storage
from ld3_dist.tasks.evaluate import Item
from ld3_dist.tasks.planning import make_plan

SEARCH = SMALL["search"] | {"grid": {"distance": ["l1", "l2"]}}
EXPERIMENT = changed(**{**SMALL, "search": SEARCH, "baselines": ["karras", "uniform"]})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("distances")
    sweep(open_storage(place), EXPERIMENT)
    return place


@pytest.fixture(scope="module")
def frame(folder: Path) -> pd.DataFrame:
    return load_results(folder)


def test_gains_compare_losses_of_one_distance(frame: pd.DataFrame) -> None:
    learned = frame[frame["kind"] == "learned"]
    assert set(learned["distance"]) == {"l1", "l2"}
    for _, row in learned.iterrows():
        grids = frame[(frame["kind"] == "baseline") & (frame["distance"] == row["distance"])]
        assert row["gain"] == pytest.approx(grids["valid_loss"].min() / row["valid_loss"])
    smallest = frame.groupby("distance")["valid_loss"].min()
    assert smallest["l1"] / smallest["l2"] > 1.5  # else a mixture would not have been seen


def test_a_cell_is_not_counted_twice_as_a_cell(frame: pd.DataFrame) -> None:
    said = headline(summary_table(frame))
    assert "of 2 cases (a cell and a distance that was learned in)" in said
    one = headline(summary_table(frame[frame["distance"] == "l2"]))
    assert "case" not in one


def test_each_distance_has_a_best_schedule_which_is_evaluated(frame: pd.DataFrame) -> None:
    best = frame[frame["best"]]
    assert sorted(best["distance"]) == ["l1", "l2"]
    assert best["eval_gain"].notna().all()
    grids = frame[frame["kind"] == "baseline"]
    assert len(grids) == 4
    for _, rows in grids.groupby("start"):  # a grid is evaluated once, in the experiment's distance
        assert rows["eval_loss"].notna().all()
        assert rows["eval_loss"].nunique() == 1
    np.testing.assert_allclose(best["eval_gain"], grids["eval_loss"].min() / best["eval_loss"])


def test_files_and_pictures_name_hand_made_grids_of_the_same_distance(frame: pd.DataFrame) -> None:
    plan = make_plan(parse_experiment(EXPERIMENT))
    (cell,) = plan.cells
    for _, row in frame[frame["best"]].iterrows():
        item = Item(row["key"], "learned", cell.model, cell)
        told = losses_of_baselines(frame, item)
        same = frame[(frame["kind"] == "baseline") & (frame["distance"] == row["distance"])]
        losses = same.set_index("start")["valid_loss"]
        assert {name: found["valid_loss"] for name, found in told.items()} == losses.to_dict()
        other = same.assign(teacher="another", valid_loss=0.0)
        assert losses_of_baselines(pd.concat([frame, other]), item) == told
    assert picture_pairs(plan, frame) == []  # points in the plane are no pictures


def test_the_largest_gain_is_that_of_the_table(folder: Path, frame: pd.DataFrame) -> None:
    best = BestGain(open_storage(folder))
    best.read()
    assert best.value == pytest.approx(frame.loc[frame["kind"] == "learned", "gain"].max())


@pytest.mark.usefixtures("undrawn")
def test_summary_and_report_have_a_part_for_each(folder: Path, frame: pd.DataFrame) -> None:
    table = summary_table(frame)
    assert list(table["distance"]) == ["l1", "l2"]
    for row in table.to_dict("records"):
        assert row["gain"] == pytest.approx(row["baseline_loss"] / row["loss"])
    page = Path(write_report(folder, folder / "page").html).read_text(encoding="utf-8")
    titles = re.findall(r"<h2>(analytic:mixture-2d, learned in l\d)</h2>", page)
    # the experiment's own distance first
    assert titles == [f"analytic:mixture-2d, learned in {distance}" for distance in ("l2", "l1")]


def test_optuna_is_not_given_losses_of_two_distances() -> None:
    """A grid point has a study of its own, so that only a proposed distance mixes losses."""
    given = EXPERIMENT | {"search": SEARCH | {"optuna": {"distance": ["l1", "l2"]}, "grid": {}}}
    with pytest.raises(InputError, match=r"search.optuna.distance with the sampler 'tpe'.*random"):
        parse_experiment(given)
    parse_experiment(given | {"search": given["search"] | {"sampler": "random"}})
    lr = {"lr": {"low": 0.03, "high": 0.3}}
    parse_experiment(EXPERIMENT | {"search": SEARCH | {"optuna": lr}})


def test_an_evaluation_that_was_stopped_is_read_and_goes_on(folder: Path, tmp_path: Path) -> None:
    """Whatever part of the rows has been evaluated, the folder can be read and reported."""
    part, whole = tmp_path / "part", load_results(folder)
    shutil.copytree(folder, part)
    files = sorted((part / "evaluations").iterdir())
    assert len(files) > 3
    for file in files:  # one fewer at a time, down to none
        file.unlink()
        read = load_results(part)
        assert set(read["key"]) == set(whole["key"])
        assert read["samples"].dtype == "Int64"
    write_report(part, part / "report")
    BestGain(open_storage(part)).read()
