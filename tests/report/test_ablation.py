"""Ablations: ratios recomputed from the records, what is compared with what, tables and figures."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from synthetic_sweep import records, write_sweep

from ld3_dist.metrics.paired import holm
from ld3_dist.report import read_sweep_tables, write_report
from ld3_dist.report.ablation import ablation_table, factors_of, verdict
from ld3_dist.report.figures import FigureData, figures
from ld3_dist.report.figures.ablation import ratio_squares
from ld3_dist.report.figures.style import stacked
from ld3_dist.report.interactions import interaction_table
from ld3_dist.report.scores import label_of

KINDS: dict[str, Any] = {
    "solvers": ("unipc-3", "dpmpp-3"), "nfes": (4,), "seeds": tuple(range(8)), "broken": False,
    "everything": True, "gammas": (0.0, 0.001, 0.1),
}  # fmt: skip
SETTINGS: dict[str, Any] = {
    "models": [{"model": "digits"}],
    "solvers": ["unipc-3", "dpmpp-3"],
    "nfe": [4],
    "learn": {"epochs": 30},
    "ablate": {"base": {"gamma": 0.0}, "vary": {"gamma": [0.0, 0.001, 0.1]}, "full": False},
}


def with_settings(folder: Path, settings: dict[str, Any]) -> Path:
    about = {"name": "synthetic", "fingerprint": "3f9a1c0de4", "settings": settings}
    (folder / "experiment.json").write_text(json.dumps(about))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("ablation")
    return with_settings(write_sweep(place, **KINDS), SETTINGS)


@pytest.fixture(scope="module")
def table(folder: Path) -> pd.DataFrame:
    return ablation_table(read_sweep_tables(folder))


def measured(name: str) -> dict[tuple[Any, ...], float]:
    """(cell, start, seed, gamma) -> a score of the records."""
    rows, evaluations = records(**KINDS)
    scores = {record["key"]: record[name] for record in evaluations if name in record}
    return {
        (row["cell"], row["start"], row["seed"], row["gamma"]): scores[row["key"]]
        for row in rows
        if row["kind"] == "learned"
    }


def test_ratios_are_geometric_means_over_cells_and_seeds(table: pd.DataFrame) -> None:
    for score, name in (("loss", "eval_loss"), ("fid", "fid")):
        values = measured(name)
        scored = table[table["score"] == score]
        for level in (0.001, 0.1):
            logs = [
                np.log(value / values[(*place[:3], 0.0)])
                for place, value in values.items()
                if place[3] == level
            ]
            (line,) = scored[scored["level"] == level].to_dict("records")
            assert line["ratio"] == pytest.approx(np.exp(np.mean(logs)), rel=1e-5)
            assert (line["units"], line["seeds"]) == (4, 8)  # two cells with two starts
            assert line["low"] < line["ratio"] < line["high"]
            assert line["base"] == 0


def test_scores_that_are_better_where_they_are_higher(table: pd.DataFrame) -> None:
    values = measured("precision")
    scored = table[table["score"] == "precision"]
    assert set(scored["better"]) == {"higher"}
    for line in scored.to_dict("records"):
        logs = [
            np.log(value / values[(*place[:3], 0.0)])
            for place, value in values.items()
            if place[3] == line["level"]
        ]
        assert line["ratio"] == pytest.approx(np.exp(np.mean(logs)), rel=1e-5)
    line = {"p_holm": 0.01, "low": 1.1, "ratio": 1.2, "better": "higher"}
    assert verdict(line) == "better"
    assert verdict(line | {"better": "lower"}) == "worse"
    assert verdict(line | {"ratio": 0.8}) == "worse"


def test_a_metric_of_ones_own_is_compared_whatever_its_name(folder: Path) -> None:
    sweep = read_sweep_tables(folder)
    sweep.results["metric.weight_loss"] = sweep.results["fid"]
    table = ablation_table(sweep).set_index(["score", "level"])["ratio"]
    assert table["metric.weight_loss"].to_dict() == table["fid"].to_dict()


def test_p_values_are_corrected_for_the_comparisons_of_a_score(table: pd.DataFrame) -> None:
    assert list(table["factor"].unique()) == ["gamma"]
    for _, rows in table.groupby("score"):
        np.testing.assert_allclose(rows["p_holm"].astype(float), holm(rows["p_value"]))
    worse = table.query("level == 0.1 and score == 'loss'").iloc[0]
    assert worse["ratio"] > 1.5  # the records say twice the loss
    assert worse["p_holm"] < 0.05
    assert verdict(worse.to_dict()) == "worse"
    same = table.query("level == 0.001 and score == 'loss'").iloc[0]
    assert verdict(same.to_dict()) == "no difference seen"
    assert verdict(same.to_dict() | {"p_holm": None}) == "not tested"


def test_seeds_that_are_missing_somewhere_are_left_out(tmp_path: Path) -> None:
    sweep = read_sweep_tables(with_settings(write_sweep(tmp_path, **KINDS), SETTINGS))
    frame = sweep.results
    lost = frame.query("seed == 2 and gamma == 0.1 and solver == 'unipc-3'").index
    frame.loc[lost, "status"] = "diverged"
    lines = ablation_table(sweep).set_index(["score", "level"])["seeds"]
    assert lines["loss", 0.1] == 7
    assert lines["loss", 0.001] == 8


def test_factors_are_compared_at_the_base_of_the_others(tmp_path: Path) -> None:
    """`start` as a second factor: each gamma is compared at the base's start alone."""
    vary = {"gamma": [0.0, 0.1], "start": ["karras", "log_snr"]}
    ablate = {"base": {"gamma": 0.0, "start": "karras"}, "vary": vary, "full": False}
    place = with_settings(write_sweep(tmp_path, **KINDS), SETTINGS | {"ablate": ablate})
    sweep = read_sweep_tables(place)
    off_base = sweep.results.query("gamma == 0.1 and start == 'log_snr'").index
    sweep.results.drop(index=off_base, inplace=True)
    lines = ablation_table(sweep).query("score == 'loss'").set_index("factor")
    assert lines.at["gamma", "units"] == 2
    assert lines.at["start", "level"] == "log_snr"
    values = measured("eval_loss")
    logs = [
        np.log(values[cell, "log_snr", seed, 0.0] / value)
        for (cell, start, seed, gamma), value in values.items()
        if start == "karras" and gamma == 0.0
    ]
    assert lines.at["start", "ratio"] == pytest.approx(np.exp(np.mean(logs)), rel=1e-5)


def test_a_procedure_is_compared_though_it_lacks_another_factor(tmp_path: Path) -> None:
    """Of two starts, one stands for `paper`, whose rows have no coefficients."""
    vary = {"procedure": ["paper"], "coefficients": [True]}
    ablate = {"base": {"procedure": "default", "coefficients": False}, "vary": vary}
    place = with_settings(write_sweep(tmp_path, **KINDS), SETTINGS | {"ablate": ablate})
    sweep, names = read_sweep_tables(place), ["procedure", "coefficients", "start"]
    sweep.results.drop(index=sweep.results.query("gamma > 0").index, inplace=True)
    rows = sweep.results
    published = (rows["start"] == "log_snr") & (rows["kind"] == "learned")
    rows[names[:2]] = rows[names[:2]].astype(object)
    rows.loc[rows["kind"] == "learned", names] = ["default", False, "karras"]
    rows.loc[published, names[:2]] = ["paper", None]
    (line,) = ablation_table(sweep).query("score == 'loss'").to_dict("records")
    assert (line["factor"], line["level"], line["base"]) == ("procedure", "paper", "default")
    values = measured("eval_loss")
    logs = [
        np.log(values[cell, "log_snr", seed, 0.0] / values[cell, "karras", seed, 0.0])
        for cell in {cell for cell, *_ in values}
        for seed in KINDS["seeds"]
    ]
    assert (line["units"], line["seeds"]) == (2, 8)
    assert line["ratio"] == pytest.approx(np.exp(np.mean(logs)), rel=1e-5)


VARY = {"gamma": [0.0, 0.1], "start": ["karras", "log_snr"]}
FULL = {"ablate": {"base": {"gamma": 0.0, "start": "karras"}, "vary": VARY, "full": True}}


def test_a_full_ablation_compares_at_each_level_of_the_other_factor(tmp_path: Path) -> None:
    place = with_settings(write_sweep(tmp_path / "sweep", **KINDS), SETTINGS | FULL)
    table = interaction_table(read_sweep_tables(place)).query("score == 'loss'")
    assert len(table) == 4  # one level of each factor, at both levels of the other
    table = table.set_index(["factor", "other_level"])
    values = measured("eval_loss")
    for start in ("karras", "log_snr"):
        logs = [
            np.log(values[cell, start, seed, 0.1] / value)
            for (cell, at, seed, gamma), value in values.items()
            if at == start and gamma == 0.0
        ]
        assert table.at[("gamma", start), "ratio"] == pytest.approx(np.exp(np.mean(logs)), rel=1e-5)
        assert table.at[("gamma", start), "units"] == 2
    p = table["p_value"].to_numpy()
    assert table["p_holm"].to_numpy() == pytest.approx(holm(p), rel=1e-12)
    paths = write_report(place, tmp_path / "report", figures=["interactions"])
    assert len(pd.read_csv(tmp_path / "report" / "interactions.csv")) == 28
    names = [Path(name).stem for name in paths.figures]
    assert names == ["digits-ablation-gamma-by-start", "digits-ablation-start-by-gamma"]


def test_one_factor_at_a_time_has_no_interactions(folder: Path, tmp_path: Path) -> None:
    assert interaction_table(read_sweep_tables(folder)).empty
    write_report(folder, tmp_path, figures=["interactions"])
    assert not (tmp_path / "interactions.csv").exists()


def test_the_report_has_table_figures_and_csv(folder: Path, tmp_path: Path) -> None:
    paths = write_report(folder, tmp_path, figures=["ablation"])
    csv = pd.read_csv(tmp_path / "ablation.csv")
    assert len(csv) == 14
    assert set(csv["score"]) == {
        "loss", "fid", "kid", "precision", "recall", "density", "coverage"
    }  # fmt: skip
    summary = Path(paths.markdown).read_text(encoding="utf-8")
    assert "## Ablation" in summary
    lines = [line for line in summary.splitlines() if line.startswith("| gamma |")]
    assert len(lines) == 4
    assert len({line.count(" | ") for line in lines}) == 1
    page = Path(paths.html).read_text(encoding="utf-8")
    assert "Factor gamma" in page
    assert '<section id="ablation">' in page
    names = ["digits-ablation-gamma", "digits-ablation-gamma-scores"]
    assert [Path(name).stem for name in paths.figures] == names


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("fresh loss", ["fresh loss"]),
        ("interquartile fresh loss", ["interquartile", "fresh loss"]),
        ("distance.efficientnet-lite0", ["distance.", "efficientnet-", "lite0"]),
        ("l2+0.1*feature", ["l2+", "0.1*feature"]),
        ("unipc-3-bh1-predictor", ["unipc-3-bh1-", "predictor"]),
        ("a_name_that_is_one_long_word", ["a_name_that_is_one_long_word"]),
        ("cost in $, or more", ["cost in \\$, or", "more"]),
        ("", [""]),
    ],
)
def test_a_long_name_is_broken_where_a_reader_would(name: str, lines: list[str]) -> None:
    assert stacked(name).split("\n") == lines


def test_long_names_of_columns_do_not_touch(table: pd.DataFrame) -> None:
    rows = table[table["factor"] == "gamma"]
    rows = rows[rows["level"] == rows["level"].iloc[0]].head(4).copy()
    names = ("efficientnet-lite0", "feature", "l2+0.1*feature", "st-lpips-alex")
    rows["score"] = [f"metric.distance.{name}" for name in names]
    heads = [stacked(label_of(score)) for score in rows["score"]]
    figure = Figure(figsize=(2 + 1.05 * len(heads), 1.5), layout="constrained")
    axes = figure.subplots()
    ratio_squares(axes, rows, [rows["level"].iloc[0]], range(len(heads)))
    axes.set_xticks(range(len(heads)), heads)
    FigureCanvasAgg(figure).draw()
    boxes = [label.get_window_extent() for label in axes.get_xticklabels()]
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))


def test_without_an_ablation_there_is_none(tmp_path: Path) -> None:
    place = write_sweep(tmp_path, **KINDS)
    assert ablation_table(read_sweep_tables(place)).empty
    assert factors_of({"settings": {"models": ["digits"]}}) == []
    paths = write_report(place, tmp_path / "page", figures=["ablation"])
    assert not paths.figures
    assert not (tmp_path / "page" / "ablation.csv").exists()


def test_settings_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    ablate = {"base": {}, "vary": {"procedure": ["python:gone.py:mine"]}, "full": False}
    place = with_settings(write_sweep(tmp_path, **KINDS), SETTINGS | {"ablate": ablate})
    paths = write_report(place, tmp_path / "page", figures=[])
    assert "gone.py" in Path(paths.html).read_text(encoding="utf-8")


def test_importance_is_drawn_from_its_file(folder: Path) -> None:
    sweep = read_sweep_tables(folder)
    assert sweep.importance.empty
    cells = sorted(set(sweep.results["cell"]))
    found = pd.DataFrame(
        {"cell": cells * 2, "axis": ["gamma"] * 2 + ["lr"] * 2, "importance": [0.7, 0.9, 0.3, 0.1]}
    )
    data = FigureData("digits", sweep.results, {}, None, "d", lambda cell: {}, importance=found)
    plot = figures.get("importance")(data)
    assert plot is not None
    assert "gamma 0.80" in plot.alt  # type: ignore[union-attr]


def test_cost_is_drawn_where_schedules_cost_different_amounts(folder: Path) -> None:
    sweep = read_sweep_tables(folder)
    frame = sweep.results
    draw = figures.get("cost")
    data = FigureData("digits", frame, {}, None, "d", lambda cell: {})
    assert draw(data) is None  # all cost the same
    frame = frame.assign(network_evals=range(1000, 1000 + len(frame)))
    plot = draw(FigureData("digits", frame, {}, None, "d", lambda cell: {}))
    assert plot is not None
    assert "loss on fresh samples against network evaluations" in plot.alt  # type: ignore[union-attr]


def test_an_unfinished_sweep_says_what_is_there(folder: Path, tmp_path: Path) -> None:
    place = with_settings(write_sweep(tmp_path, **KINDS), SETTINGS)
    about = json.loads((place / "experiment.json").read_text())
    trials = ["trial-000", "trial-001", "trial-099"]
    rows = read_sweep_tables(place).results
    members = rows[rows["kind"] == "learned"][["seed", "start"]].drop_duplicates()
    about |= {"format": 3, "current": about["fingerprint"]}
    about["asked"] = {
        "trials": trials,
        "members": [[int(seed), start] for seed, start in members.itertuples(index=False)],
        "baselines": list(rows[rows["kind"] == "baseline"]["key"]),
        "complete": False,
    }
    (place / "experiment.json").write_text(json.dumps(about))
    page = Path(write_report(place, tmp_path / "page", figures=[]).html).read_text("utf-8")
    assert "This sweep is not finished: 2 of 3 trials learned" in page
    finished = Path(write_report(folder, tmp_path / "other", figures=[]).html).read_text("utf-8")
    assert "not finished" not in finished
