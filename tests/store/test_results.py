"""load_results over folders, what it leaves out, and its tidy views."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from lineage_folders import EVAL_START, SETTINGS, baseline, learned, tailed, write_folder
from synthetic_sweep import write_sweep

import ld3_dist as ld3
from ld3_dist import InputError
from ld3_dist.store.columns import SCHEMAS
from ld3_dist.store.folding import Segments
from ld3_dist.store.opening import open_storage
from ld3_dist.store.results import COMPARABLE
from ld3_dist.store.tables import row_index, write_table


def slow_results(place: Path) -> pd.DataFrame:
    """What `load_results` derives, row by row from the definitions, from the files themselves."""
    rows = [row for f in sorted((place / "rows").glob("[!_]*.parquet")) for row in _records(f)]
    scores = {r["key"]: r for f in (place / "evaluations").glob("*.parquet") for r in _records(f)}
    found = []
    for row in rows:
        same = [r for r in rows if all(r[c] == row[c] for c in COMPARABLE)]
        grids = [r for r in same if r["kind"] == "baseline" and r["status"] == "ok"]
        base = min((r["valid_loss"] for r in grids), default=np.nan)
        loss = row["valid_loss"] if row["valid_loss"] is not None else np.nan
        in_cell = [r for r in rows if r["cell"] == row["cell"] and r["kind"] == "baseline"]
        fresh = [scores[r["key"]]["eval_loss"] for r in in_cell if r["key"] in scores]
        own = scores[row["key"]]["eval_loss"] if row["key"] in scores else np.nan
        rivals = [r for r in same if r["kind"] == "learned" and r["status"] == "ok"]
        best = min(rivals, key=lambda r: r["valid_loss"], default=None)
        found.append(
            {
                "key": row["key"],
                "gain": base / loss,
                "eval_gain": min(fresh, default=np.nan) / own,
                "best": row is best,
            }
        )
    return pd.DataFrame(found).set_index("key")


def _records(file: Path) -> list[dict]:
    import pyarrow.parquet as pq

    return pq.read_table(file).to_pylist()


@pytest.mark.parametrize("merged", [False, True])
def test_derived_columns_are_what_their_definitions_say(tmp_path: Path, merged: bool) -> None:
    out = write_sweep(tmp_path)
    expected = slow_results(out)
    if merged:
        for folder in ("rows", "evaluations"):
            Segments(open_storage(out), folder).fold(1)
    frame = ld3.load_results(out).set_index("key")
    assert set(frame.index) == set(expected.index)
    expected = expected.loc[frame.index]
    for name in ("gain", "eval_gain"):
        np.testing.assert_allclose(frame[name], expected[name], rtol=1e-12)
    assert frame["best"].tolist() == expected["best"].tolist()
    assert frame["source"].unique().tolist() == [str(out)]


def test_rows_of_another_teacher_or_other_pairs_do_not_compare(tmp_path: Path) -> None:
    rows = [
        baseline("b1", 2.0),
        baseline("b2", 8.0, teacher="u"),
        learned("a", "1", 0, 1.0),
        learned("b", "2", 0, 1.0, teacher="u"),
        learned("c", "3", 0, 1.0, valid_pairs=20),
    ]
    frame = ld3.load_results(write_folder(tmp_path, rows)).set_index("key")
    assert frame["gain"][["a", "b"]].tolist() == [2.0, 8.0]
    assert np.isnan(frame["gain"]["c"])
    assert frame["best"][["a", "b", "c"]].tolist() == [True] * 3


def test_what_is_no_longer_asked_for_is_left_out(tmp_path: Path) -> None:
    rows = [
        baseline("b1", 2.0),
        baseline("b2", 1.0, start="log_snr"),
        *(learned(f"{t}{s}", t, s, 0.5) for t in "xy" for s in (0, 1)),
    ]
    asked = {"trials": ["x"], "members": [[0, "karras"]], "baselines": ["b1"], "complete": True}
    losses = {"x0": tailed(0), "b1": tailed(1)}
    write_folder(tmp_path, rows, losses, asked=asked)
    older = {"key": "x0", "evaluation": "v0", "kind": "learned", "eval_loss": 99.0}
    storage = open_storage(tmp_path)
    write_table(storage, "evaluations", "x0-v0", [older])
    older["key"] = "y1"
    write_table(storage, "evaluations", "y1-v0", [older])
    frame = ld3.load_results(tmp_path).set_index("key")
    assert sorted(frame.index) == ["b1", "x0"]
    assert frame["gain"]["x0"] == 4.0
    assert frame["eval_loss"]["x0"] == pytest.approx(float(tailed(0).mean()))
    full = ld3.load_results(tmp_path, all=True).set_index("key")
    assert len(full) == 6
    assert full["gain"]["x0"] == 2.0
    assert full["evaluation"][["x0", "y1"]].tolist() == ["v1", "v0"]
    assert len(row_index(storage)) == 6
    assert set(ld3.load_curves(tmp_path)["key"]) == {"x0"}
    assert set(ld3.load_curves(tmp_path, all=True)["key"]) == {"x0", "x1", "y0", "y1"}
    assert set(ld3.load_samples(tmp_path)["key"]) == {"x0", "b1"}


def test_several_folders_are_read_as_one(tmp_path: Path) -> None:
    shared = [baseline("b1", 2.0), learned("a", "1", 0, 1.0)]
    one = write_folder(tmp_path / "one", [*shared, learned("c", "2", 0, 0.5)])
    two = write_folder(tmp_path / "two", [*shared, baseline("b2", 1.0)], {"a": tailed(0)})
    frame = ld3.load_results(one, two)
    assert frame["key"].tolist() == ["b1", "b2", "a", "c"]
    frame = frame.set_index("key")
    assert frame["source"]["a"] == str(two)  # the one that evaluated it
    assert frame["source"]["c"] == str(one)
    assert frame["gain"]["c"] == 2.0
    assert frame["best"].tolist() == [False, False, False, True]
    for places, message in [
        ((), "no folder was given"),
        ((one, tmp_path / "one" / ".." / "one"), "the same folder was given twice"),
        ((one, tmp_path / "none"), "no such folder"),
    ]:
        with pytest.raises(InputError, match=message):
            ld3.load_results(*places)


def test_settings_without_a_column_get_one_where_they_differ(tmp_path: Path) -> None:
    def settings(seed: int, window: int, own: object = None) -> str:
        learn = {"epochs": 5, "seed": 7} | ({"tau": own} if own is not None else {})
        options = {"distance_options": {"window": window}}
        return json.dumps({"learn": learn, "seed": seed, "start": "a, \\"} | options)

    rows = [
        learned("a", "1", 0, 1.0, settings=settings(0, 3)),
        learned("b", "1", 1, 1.0, settings=settings(1, 3)),
        learned("c", "2", 0, 1.0, settings=settings(0, 5, own=[1, 2])),
    ]
    frame = ld3.load_results(write_folder(tmp_path, rows)).set_index("key")
    assert frame["settings.distance_options.window"].tolist() == [3, 3, 5]
    assert frame["learn.tau"]["c"] == [1, 2]
    assert frame["learn.tau"][["a", "b"]].isna().all()
    assert not [name for name in frame if name.endswith((".seed", ".start", ".epochs"))]


def test_tidy_has_one_number_per_row(tmp_path: Path) -> None:
    out = write_sweep(tmp_path)
    frame, tidy = ld3.load_results(out), ld3.load_results(out, tidy=True)
    assert tidy["value"].notna().all()
    for name in ("valid_loss", "gain", "fid"):
        part = tidy[tidy["metric"] == name].set_index("key")["value"]
        whole = frame.set_index("key")[name].dropna().astype(float)
        pd.testing.assert_series_equal(part.sort_index(), whole.sort_index(), check_names=False)
    assert {"source", "cell", "solver", "nfe", "gamma", "low", "high"} <= set(tidy.columns)


def test_curves_begin_at_the_start(tmp_path: Path) -> None:
    out = write_folder(tmp_path, [baseline("b", 1.0), learned("a", "1", 3, 0.25)])
    curves = ld3.load_curves(out)
    assert curves["epoch"].tolist() == [0, 1, 2]
    assert curves["valid_loss"].tolist() == [1.0, 0.75, 0.25]
    assert np.isnan(curves["train_loss"][0])
    assert curves["train_loss"][1:].tolist() == [0.5, 0.25]
    assert curves["seed"].unique().tolist() == [3]


def test_samples_have_their_index(tmp_path: Path) -> None:
    rows = [learned("a", "1", 0, 1.0), learned("b", "2", 0, 1.0, nfe=6)]
    out = write_folder(tmp_path, rows, {"a": tailed(0, count=5), "b": tailed(1, count=5)})
    samples = ld3.load_samples(out)
    mine = samples[samples["key"] == "a"]
    assert mine["index"].tolist() == list(range(EVAL_START, EVAL_START + 5))
    np.testing.assert_array_equal(mine["loss"], tailed(0, count=5).astype(float))
    assert set(ld3.load_samples(out, cell="m/c/ddim/6")["key"]) == {"b"}
    assert ld3.load_samples(write_folder(tmp_path / "no", rows)).empty


def test_folders_of_older_formats_are_whole(tmp_path: Path) -> None:
    out = write_sweep(tmp_path)
    assert len(ld3.load_results(out)) == len(ld3.load_results(out, all=True)) > 0
    assert set(SCHEMAS) == {"rows", "evaluations", "losses", "failures", "transfers"}


def test_an_experiment_that_cannot_be_read_hides_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = {"trials": [], "members": [["x", 1, 2]], "baselines": []}
    out = write_folder(tmp_path, [learned("a", "1", 0, 1.0)], asked=asked, settings=SETTINGS)
    assert ld3.load_results(out)["key"].tolist() == ["a"]
    assert "does not say what it asks for" in caplog.text
