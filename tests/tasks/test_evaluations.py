"""Evaluations: which rows have one, what is kept of them, and what another setting changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from forked_sweeps import SMALL
from plain_sweep import sweep
from tiny_sweep import changed

from ld3_dist import InputError, load_results
from ld3_dist.experiment.reading import parse_experiment
from ld3_dist.metrics.paired import compare, interval_over_sets
from ld3_dist.report import read_sweep_tables
from ld3_dist.report.ablation import ablation_table
from ld3_dist.store.opening import open_storage
from ld3_dist.store.tables import read_table
from ld3_dist.tasks.evaluate import evaluation_name
from ld3_dist.tasks.kept_samples import read_kept

SEARCH = SMALL["search"] | {"grid": {"gamma": [0, 0.1], "lr": [0.1, 0.2]}}
SEARCH |= {"members": {"seeds": 2, "starts": ["log_snr"]}}


def experiment(**evaluate: Any) -> dict[str, Any]:
    """Four trials of two members and two hand-made grids in one cell."""
    data = changed(**SMALL)
    return data | {
        "search": SEARCH,
        "baselines": ["karras", "uniform"],
        "evaluate": {"samples": 40} | evaluate,
    }


def swept(folder: Path, **evaluate: Any) -> pd.DataFrame:
    sweep(open_storage(folder), experiment(**evaluate))
    return load_results(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("evaluations")
    swept(place, rows="all", repeats=3)
    return place


def test_every_row_is_evaluated_where_all_are_asked_for(folder: Path) -> None:
    frame = load_results(folder)
    ok = frame[frame["status"] == "ok"]
    assert len(ok) == 10
    assert ok["eval_loss"].notna().all()
    assert (ok["samples"] == 120).all()
    assert (ok["repeats"] == 3).all()


def test_the_losses_of_every_sample_are_kept(folder: Path) -> None:
    storage, frame = open_storage(folder), load_results(folder)
    table = read_table(storage, "losses")
    assert sorted(table["start"].unique()) == [10**9, 10**9 + 10**7, 10**9 + 2 * 10**7]
    for row in frame.to_dict("records"):
        kept = read_kept(storage, row["key"], row["evaluation"])
        assert kept is not None
        x = kept.losses.double().numpy()
        assert len(x) == 120
        assert row["eval_loss"] == pytest.approx(x.mean(), rel=1e-6)
        assert row["eval_loss_median"] == pytest.approx(np.median(x), rel=1e-6)
        assert row["eval_loss_iqm"] == pytest.approx(np.sort(x)[30:90].mean(), rel=1e-6)


def test_gains_have_the_interval_of_their_losses(folder: Path) -> None:
    storage, frame = open_storage(folder), load_results(folder)
    grids = frame[frame["kind"] == "baseline"]
    best = grids.sort_values("eval_loss").iloc[0]
    base = read_kept(storage, best["key"], best["evaluation"])
    assert base is not None
    for row in frame[frame["kind"] == "learned"].to_dict("records"):
        mine = read_kept(storage, row["key"], row["evaluation"])
        assert mine is not None
        found = compare(base.losses.double().numpy(), mine.losses.double().numpy())
        assert row["eval_gain"] == pytest.approx(best["eval_loss"] / row["eval_loss"])
        assert row["eval_gain_low"] == pytest.approx(found.ratio.low, rel=0.02)
        assert row["eval_gain_high"] == pytest.approx(found.ratio.high, rel=0.02)
        assert row["eval_gain_low"] < row["eval_gain"] < row["eval_gain_high"]
        assert row["eval_p_improvement"] == pytest.approx(1 - found.p_improvement)
        held = row["eval_gain_low"] <= 1 <= row["eval_gain_high"]
        assert row["decided"] == (not held)
    assert grids["decided"].isna().all()


def test_scores_have_an_interval_over_the_sets(folder: Path) -> None:
    frame = load_results(folder)
    for row in frame.to_dict("records"):
        assert row["fid_low"] < row["fid"] < row["fid_high"]
        assert row["kid_low"] < row["kid"] < row["kid_high"]
    assert frame["recall"].notna().all()
    assert interval_over_sets([1.0, 2.0]).low < 1


def test_one_set_has_an_interval_of_the_frechet_distance_alone(tmp_path: Path) -> None:
    frame = swept(tmp_path, rows="best")
    scored = frame[frame["fid"].notna()]
    assert (scored["fid_low"] < scored["fid"]).all()
    assert frame["kid_low"].isna().all()
    learned = frame[frame["kind"] == "learned"]
    best_trial = learned.loc[learned["best"], "trial"].item()
    measured = learned["eval_loss"].notna()
    assert (measured == (learned["trial"] == best_trial)).all()
    assert measured.sum() == 2


def test_the_best_of_every_level(tmp_path: Path) -> None:
    frame = swept(tmp_path, rows={"best_per": ["gamma"]})
    learned = frame[frame["kind"] == "learned"]
    for _, rows in learned.groupby("gamma"):
        best = rows.sort_values("valid_loss").iloc[0]["trial"]
        assert (rows["eval_loss"].notna() == (rows["trial"] == best)).all()
    assert learned["eval_loss"].notna().sum() == 4


def test_other_settings_make_another_evaluation_beside_the_first(tmp_path: Path) -> None:
    first = swept(tmp_path, rows="best", extractor="none")
    assert first["fid"].isna().all()
    rows = {p.name: p.read_bytes() for p in (tmp_path / "rows").iterdir()}
    second = swept(tmp_path, rows="best", samples=60)
    assert {p.name: p.read_bytes() for p in (tmp_path / "rows").iterdir()} == rows
    table = read_table(open_storage(tmp_path), "evaluations")
    assert table["evaluation"].nunique() == 2
    assert table["key"].duplicated().sum() == len(first[first["eval_loss"].notna()]) + 1
    assert second["fid"].notna().any()
    known = second[second["eval_loss"].notna()]
    assert (known["samples"] == 60).all()
    alone = swept(tmp_path / "alone", rows="best", samples=60)
    pd.testing.assert_series_equal(second["eval_loss"], alone["eval_loss"])
    pd.testing.assert_series_equal(second["eval_gain_low"], alone["eval_gain_low"])


def test_an_axis_that_is_not_searched_has_no_best() -> None:
    with pytest.raises(InputError, match=r"best_per: 'epochs' is not an axis .*gamma, lr"):
        parse_experiment(experiment(rows={"best_per": ["epochs"]}))


def test_names_of_evaluations_differ() -> None:
    assert evaluation_name("a", "1") != evaluation_name("a", "2")
    assert "/" not in evaluation_name("teacher:a/b", "1")


def test_an_ablation_scores_every_level_and_the_base(tmp_path: Path) -> None:
    """A learned teacher of another number of evaluations still compares on fresh samples."""
    vary = {"gamma": [0.1], "pairs.train": [4], "teacher.nfe": [6], "distance": ["l1"]}
    data = experiment(samples=20)
    data |= {
        "ablate": {"base": {"gamma": 0.0}, "vary": vary},
        "search": {"members": {"seeds": 3, "starts": ["log_snr"]}},
    }
    sweep(open_storage(tmp_path), data)
    frame = load_results(tmp_path)
    learned = frame[(frame["kind"] == "learned") & (frame["status"] == "ok")]
    assert learned["eval_loss"].notna().all()
    assert learned["trial"].nunique() == 5
    table = ablation_table(read_sweep_tables(tmp_path)).query("score == 'loss'")
    assert list(table["factor"]) == ["distance", "gamma", "pairs.train", "teacher.nfe"]
    assert list(table["base"]) == ["l2", 0.0, 8, 12]
    assert (table["seeds"] == 3).all()
    for line in table.to_dict("records"):
        column = {"pairs.train": "train_pairs", "teacher.nfe": "teacher_nfe"}
        at = learned[learned[column.get(line["factor"], line["factor"])] == line["level"]]
        base = learned.query(
            "distance == 'l2' and gamma == 0 and train_pairs == 8 and teacher_nfe == 12"
        )
        mean = [np.log(rows.sort_values("seed")["eval_loss"]).mean() for rows in (at, base)]
        assert line["ratio"] == pytest.approx(np.exp(mean[0] - mean[1]), rel=1e-4)


def test_frechet_distances_compare_sample_by_sample(folder: Path) -> None:
    storage, frame = open_storage(folder), load_results(folder)
    grid = frame[frame["kind"] == "baseline"].sort_values("eval_loss").iloc[0]
    theirs = read_kept(storage, grid["key"], grid["evaluation"])
    assert theirs is not None
    assert theirs.frechet is not None
    assert grid["fid"] == pytest.approx(theirs.frechet.mean().item(), rel=1e-5)
    for row in frame[frame["kind"] == "learned"].to_dict("records"):
        mine = read_kept(storage, row["key"], row["evaluation"])
        assert mine is not None
        assert mine.frechet is not None
        assert row["fid"] == pytest.approx(mine.frechet.mean().item(), rel=1e-5)
        assert row["fid_gain"] == pytest.approx(grid["fid"] / row["fid"], rel=1e-5)
        x, y = theirs.frechet.double().numpy(), mine.frechet.double().numpy()
        error = np.sqrt(np.mean((x / x.mean() - y / y.mean()) ** 2) / len(x))
        ratio = row["fid_gain_high"] / row["fid_gain_low"]
        assert ratio == pytest.approx(np.exp(2 * 1.96 * error), rel=1e-4)
