"""The summary's columns: each score belongs to the grid that the row names, and user metrics."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from synthetic_sweep import records, write_sweep

from ld3_dist.report import headline, read_sweep_tables, readme_markdown, summary_table
from ld3_dist.report.columns import COLUMNS, shown
from ld3_dist.report.findings import findings
from ld3_dist.report.markdown import table_markdown
from ld3_dist.report.page import summary_view
from ld3_dist.store.opening import open_storage
from ld3_dist.store.tables import write_table

ONE_CELL = {
    "solvers": ("heun",), "nfes": (4,), "gammas": (0.0,), "seeds": (0, 1), "broken": False,
}  # fmt: skip


def test_every_column_is_listed_once() -> None:
    names = [column.name for column in COLUMNS]
    assert len(names) == len(set(names))
    headings = [column.heading for column in COLUMNS if column.heading]
    assert len(headings) == len(set(headings))
    ranks = [column.rank for column in COLUMNS if "terminal" in column.places]
    assert len(ranks) == len(set(ranks))


def test_scores_belong_to_the_grid_that_the_row_names(tmp_path: Path) -> None:
    """The grid with the smallest loss is not the one with the best scores here."""
    write_sweep(tmp_path, **ONE_CELL)
    rows, evaluations = records(**ONE_CELL)
    hand_made = {row["key"]: row for row in rows if row["kind"] == "baseline"}
    for record in evaluations:
        if record["key"] in hand_made:
            place = ["karras", "log_snr", "uniform"].index(hand_made[record["key"]]["start"])
            record |= {"fid": [9.0, 3.0, 5.0][place], "coverage": [0.5, 0.6, 0.7][place]}
            record |= {"inception_score": [1.0, 2.0, 3.0][place], "eval_loss": [3, 2, 1][place]}
        elif record["kind"] == "learned":
            record |= {"fid": 4.0, "eval_loss": 0.5}
    write_table(open_storage(tmp_path), "evaluations", "all", evaluations)
    sweep = read_sweep_tables(tmp_path)
    table = summary_table(sweep.results, sweep.evaluations)
    line = table.iloc[0]
    assert line["baseline"] == "uniform"  # the smallest loss on fresh samples
    assert line["baseline_fid"] == 5.0
    assert line["baseline_coverage"] == 0.7
    assert line["baseline_inception_score"] == 3.0
    assert line["baseline_eval_loss"] == 1
    uniform = sweep.results.query("start == 'uniform' and kind == 'baseline'").iloc[0]
    assert line["baseline_loss"] == uniform["valid_loss"]
    assert line["gain"] == pytest.approx(line["baseline_loss"] / line["loss"])
    assert line["eval_gain"] == pytest.approx(line["baseline_eval_loss"] / line["eval_loss"])
    assert (line["lowest_fid"], line["lowest_fid_grid"]) == (3.0, "log_snr")
    assert "The Fréchet distance is lower in 0 of 1 cell." in headline(table)
    (sentence,) = [text for text in findings(sweep, table) if "Fréchet" in text]
    assert "heun at 4 NFE (4.00 against 3.00 of log_snr)" in sentence


def frame_with_metric() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Results and evaluations with a user's metric, as `load_results` may give them."""
    base = {"cell": "m/ddim/4", "model": "m", "conditioning": None, "guidance": None}
    base |= {"solver": "ddim", "nfe": 4, "status": "ok", "teacher": "t", "distance": "l2"}
    base |= {"eval_loss": None, "fid": None, "coverage": None, "inception_score": None}
    base |= {"coordinate": None, "procedure": "default", "coefficients": False, "eval_gain": None}
    rows = [
        base | {"key": "a", "kind": "baseline", "start": "karras", "valid_loss": 2.0, "best": False,
                "metric.sharpness": 0.25, "gain": 1.0},
        base | {"key": "b", "kind": "baseline", "start": "uniform", "valid_loss": 3.0,
                "best": False, "metric.sharpness": 0.125, "gain": 2 / 3},
        base | {"key": "c", "kind": "learned", "start": "karras", "valid_loss": 1.0, "best": True,
                "metric.sharpness": 0.5, "gain": 2.0, "trial": 0, "gamma": 0.0},
    ]  # fmt: skip
    evaluations = [{"key": "teacher:t", "kind": "teacher", "metric.sharpness": 0.75}]
    return pd.DataFrame(rows), pd.DataFrame(evaluations)


def test_a_users_metric_adds_its_columns_everywhere() -> None:
    table = summary_table(*frame_with_metric())
    line = table.iloc[0]
    assert line["baseline_metric.sharpness"] == 0.25
    assert line["metric.sharpness"] == 0.5
    assert line["teacher_metric.sharpness"] == 0.75
    head, _, body = table_markdown(table).splitlines()[2:]
    cells = dict(zip(head.split(" | "), body.split(" | "), strict=True))
    assert cells["sharpness hand-made"] == "0.250"
    assert cells["sharpness learned"] == "0.500"
    assert cells["sharpness teacher"] == "0.750"
    page = summary_view(table)
    assert [(group.name, group.width) for group in page.groups][-2] == ("sharpness", 3)
    assert sum(group.width for group in page.groups) == len(page.heads) == len(page.lines[0])
    assert {"0.250", "0.500", "0.750"} <= {cell.text for cell in page.lines[0]}
    terminal = [column.name for column in shown(table, "terminal")]
    assert {"baseline_metric.sharpness", "metric.sharpness"} <= set(terminal)


def test_a_metric_that_is_no_number_is_shown_as_it_is() -> None:
    frame, evaluations = frame_with_metric()
    frame["metric.verdict"] = ["poor", "poor", "go|od"]
    assert r"go\|od" in table_markdown(summary_table(frame, evaluations))


def test_what_was_never_measured_is_not_shown() -> None:
    frame, _ = frame_with_metric()
    names = {column.name for column in shown(summary_table(frame), "page")}
    assert not names & {"fid", "baseline_fid", "eval_gain", "teacher_metric.sharpness", "model"}
    assert {"solver", "nfe", "baseline", "loss", "gain"} <= names


def test_the_readmes_table_is_short(tmp_path: Path) -> None:
    sweep = read_sweep_tables(write_sweep(tmp_path, **ONE_CELL))
    head, rule, *lines = readme_markdown(summary_table(sweep.results)).splitlines()
    assert head == (
        "| cell | best hand-made | its loss | learned loss | gain | 95 % interval | "
        "Fréchet hand-made | Fréchet learned |"
    )
    assert rule.count("---") == 8
    assert len(lines) == 1
    assert lines[0].startswith("| digits/class/w1/heun/4 | karras | ")


def test_an_undecided_gain_is_shown_as_such() -> None:
    frame, _ = frame_with_metric()
    frame["eval_loss"] = [2.0, 3.0, 1.9]
    frame["eval_gain"] = [1.0, 2 / 3, 2 / 1.9]
    frame["eval_gain_low"] = [None, None, 0.97]
    frame["eval_gain_high"] = [None, None, 1.1]
    frame["decided"] = pd.array([None, None, False], dtype="boolean")
    table = summary_table(frame)
    (interval,) = [known for known in shown(table, "terminal") if known.name == "eval_gain_low"]
    assert interval.text(table.iloc[0].to_dict()) == "0.970–1.10, undecided"
    assert "undecided: the interval holds 1" in headline(table)
    (gain,) = [cell for cell in summary_view(table).lines[0] if "undecided" in cell.classes]
    assert (gain.text, gain.bar) == ("1.05×", None)
    frame["decided"] = pd.array([None, None, True], dtype="boolean")
    assert "undecided" not in headline(summary_table(frame))
    (line,) = summary_view(summary_table(frame)).lines
    assert not any("undecided" in cell.classes for cell in line)
    assert any(cell.bar for cell in line if "gain" in cell.classes)


def test_held_out_losses_are_shown_where_there_are_no_fresh_ones() -> None:
    frame, _ = frame_with_metric()
    names = [known.name for known in shown(summary_table(frame), "terminal")]
    assert {"baseline_loss", "loss", "gain"} <= set(names)
    assert headline(summary_table(frame)).startswith("Nothing was evaluated on fresh samples.")
    frame["eval_loss"], frame["eval_gain"] = [2.0, 3.0, 1.0], [1.0, 2 / 3, 2.0]
    table = summary_table(frame)
    assert not {"baseline_loss", "loss", "gain"} & {c.name for c in shown(table, "terminal")}
    assert {"baseline_loss", "loss", "gain"} <= {c.name for c in shown(table, "page")}


def test_a_narrow_terminal_drops_the_hand_made_score_before_the_learned_one() -> None:
    ranks = {column.name: column.rank for column in COLUMNS}
    assert ranks["fid"] < ranks["baseline_fid"]
    assert ranks["eval_gain"] < ranks["eval_gain_low"] < ranks["fid"]
