"""Tables for papers, and the critical differences of their ranks."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lineage_folders import baseline, learned, tailed, write_folder
from scipy.stats import gmean, gstd, rankdata
from synthetic_sweep import write_sweep
from typer.testing import CliRunner

import ld3_dist as ld3
from ld3_dist import InputError
from ld3_dist.cli.app import app
from ld3_dist.report.crosstab import chosen, crosstab, write_table
from ld3_dist.report.figures.differences import cliques, draw_differences
from ld3_dist.report.formats import number
from ld3_dist.report.ranks import differences

SOLVERS = ("ddim", "dpmpp-3", "unipc-3")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("out")
    return write_sweep(folder, solvers=SOLVERS, nfes=(4, 5, 6))


def test_entries_are_means_of_the_best_schedules(out: Path) -> None:
    frame = ld3.load_results(out)
    table = crosstab(frame, value="fid")
    best = frame[frame["best"]].set_index(["solver", "nfe"])["fid"]
    assert table.row_names == list(SOLVERS)
    assert table.column_names == [(4,), (5,), (6,)]
    for solver in SOLVERS:
        for nfe in (4, 5, 6):
            entry = table.entries[solver, (nfe,)]
            assert entry.mean == pytest.approx(float(best[solver, nfe]))
            column = [float(best[other, nfe]) for other in SOLVERS]
            assert entry.best == (float(best[solver, nfe]) == min(column))
    scores = [[float(best[s, n]) for s in SOLVERS] for n in (4, 5, 6)]
    ranks = np.mean([rankdata(row) for row in scores], axis=0)
    assert table.ranks == pytest.approx(ranks)


def test_several_results_have_their_spread_and_more_may_be_better(out: Path) -> None:
    frame = ld3.load_results(out)
    table = crosstab(frame, "gamma", ["nfe"], "gain", "learned")
    ok = frame[(frame["kind"] == "learned") & (frame["status"] == "ok")]
    part = ok[(ok["gamma"] == 0.001) & (ok["nfe"] == 5)]["gain"]
    entry = table.entries[0.001, (5,)]
    assert (entry.mean, entry.spread) == pytest.approx((part.mean(), part.std()))
    assert entry.count == len(part)
    means = {g: table.entries[g, (5,)].mean for g in table.row_names}
    assert table.entries[max(means, key=means.get), (5,)].best  # type: ignore[arg-type]


def test_grids_stand_beside_learned_schedules(out: Path) -> None:
    table = crosstab(ld3.load_results(out), "method", ["solver", "nfe"], "valid_loss")
    assert table.row_names == ["karras", "learned", "log_snr", "uniform"]
    assert table.ranks[1] == 1.0
    assert len(table.column_names) == 9


def test_rows_of_several_columns_say_what_was_set(out: Path) -> None:
    frame = ld3.load_results(out)
    learned_rows = frame["kind"] == "learned"
    frame["coefficients"] = np.where(learned_rows, frame["gamma"] == 0.001, None)
    frame["epochs"] = np.where(learned_rows, 5, np.nan)
    names = ["method", "gamma", "coefficients", "epochs"]
    table = crosstab(frame, names, ["nfe"], "valid_loss", "all")
    assert table.rows == "method, gamma, coefficients, epochs"
    gammas = sorted(frame["gamma"].dropna().unique())
    said = {
        f"learned, gamma {gamma:g}{', coefficients' if gamma == 0.001 else ''}, epochs 5"
        for gamma in gammas
    }
    assert said | {"karras", "log_snr", "uniform"} == set(table.row_names)
    ok = frame[learned_rows & (frame["status"] == "ok") & (frame["nfe"] == 5)]
    here = table.entries["learned, gamma 0.001, coefficients, epochs 5", (5,)]
    assert here.mean == pytest.approx(ok[ok["gamma"] == 0.001]["valid_loss"].mean())
    found = differences(
        chosen(frame, names, ["nfe"], "valid_loss", "all"), table.rows, "valid_loss"
    )
    assert set(found.names) == set(table.row_names)


def test_geometric_means(out: Path) -> None:
    frame = ld3.load_results(out)
    table = crosstab(frame, "solver", ["nfe"], "valid_loss", "learned", "geometric")
    rows = (frame["kind"] == "learned") & (frame["status"] == "ok") & (frame["nfe"] == 5)
    values = frame[rows & (frame["solver"] == "ddim")]["valid_loss"].to_numpy()
    entry = table.entries["ddim", (5,)]
    assert entry.mean == pytest.approx(gmean(values))
    assert entry.spread == pytest.approx(gstd(values))
    assert f"×/÷ {number(entry.spread, 2)}" in write_table(table, "markdown")
    assert r"$\times\!/\!\div$" in write_table(table, "latex")
    frame.loc[frame.index[-1], "valid_loss"] = 0.0
    frame["status"] = "ok"
    with pytest.raises(InputError, match="needs positive values, and valid_loss has others"):
        crosstab(frame, "solver", ["nfe"], "valid_loss", "all", "geometric")


def test_formats(tmp_path: Path) -> None:
    rows = [learned("a", "1", 0, 1.0, solver="x_1&"), learned("b", "2", 0, 2.0, solver="y")]
    rows[1] |= {"cell": "m/c/y/4"}
    rows += [baseline("g", 4.0)]
    frame = ld3.load_results(write_folder(tmp_path, rows, {"a": tailed(0), "b": tailed(1, 2.0)}))
    frame["valid_loss_low"], frame["valid_loss_high"] = 0.5, 3.0
    table = crosstab(frame, "solver", ["nfe"], "valid_loss")
    latex = write_table(table, "latex")
    assert r"\toprule" in latex
    assert r"x\_1\& & \textbf{1.00} [0.500, 3.00] & 1.00 \\" in latex
    assert latex.count(r"\textbf") == 1
    markdown = write_table(table, "markdown")
    assert "| x_1& | **1.00** [0.500, 3.00] | 1.00 |" in markdown
    listed = list(csv.DictReader(io.StringIO(write_table(table, "csv"))))
    assert [float(row["mean"]) for row in listed] == [1.0, 2.0]
    assert [row["best"] for row in listed] == ["True", "False"]
    assert listed[0]["nfe"] == "4"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rows": "slover"}, "column in --rows: 'slover': did you mean 'solver'"),
        ({"columns": ["nef"]}, "column in --columns: 'nef': did you mean 'nfe'"),
        ({"value": "fdi"}, "value of --value: 'fdi': did you mean 'fid'"),
        ({"which": "bset"}, "value of --which: 'bset': did you mean 'best'"),
        ({"mean": "geometrc"}, "value of --mean: 'geometrc': did you mean 'geometric'"),
        ({"value": "kid_std"}, "unknown value of --value"),
        ({"value": "inception_score"}, "--value inception_score: was not measured"),
        ({"rows": "knots"}, "unknown column in --rows"),
    ],
)
def test_unknown_names_are_refused(out: Path, arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        crosstab(ld3.load_results(out), **arguments)


def test_what_the_choice_of_rows_leaves_out_is_named(tmp_path: Path) -> None:
    """As while the grids of a sweep are scored, before anything is learned."""
    frame = ld3.load_results(write_folder(tmp_path, [baseline("g", 4.0), baseline("h", 2.0, 6)]))
    for which in ("best", "learned"):
        with pytest.raises(InputError, match=f"--which {which} leaves out, 2 of them; --which all"):
            crosstab(frame, value="valid_loss", which=which)
    assert len(crosstab(frame, value="valid_loss", which="all").entries) == 2


@pytest.mark.parametrize(
    ("change", "name"),
    [({"distance": "l1"}, "distance"), ({"teacher_nfe": 50}, "teacher_nfe"),
     ({"teacher_solver": "heun"}, "teacher_solver"), ({"teacher_start": "beta"}, "teacher_start")],
)  # fmt: skip
def test_losses_that_do_not_compare_are_not_averaged(
    tmp_path: Path, change: dict[str, Any], name: str
) -> None:
    plain = {"distance": "l2", "teacher_nfe": 20, "teacher_solver": "ddim", "teacher_start": "edm"}
    rows = [learned("a", "1", 0, 1.0, **plain), learned("b", "2", 0, 3.0, **(plain | change))]
    frame = ld3.load_results(write_folder(tmp_path, rows))
    for value in ("valid_loss", "train_loss"):
        with pytest.raises(
            InputError, match=f"--value {value}: losses of different {name} .*--col"
        ):
            crosstab(frame, "solver", ["nfe"], value, "all")
        with pytest.raises(InputError, match="do not compare"):  # the best of a column is marked
            crosstab(frame, name, ["nfe"], value, "all")
    apart = crosstab(frame, "solver", ["nfe", name], "valid_loss", "all")
    assert sorted(entry.mean for entry in apart.entries.values()) == [1.0, 3.0]


def test_fresh_losses_of_sweeps_in_other_distances_are_not_averaged(tmp_path: Path) -> None:
    """Within a sweep they are in its own distance, whatever was learned in."""
    places = [
        write_folder(
            tmp_path / name, [learned(name, "1", 0, 1.0, distance=name)], {name: tailed(0)}
        )
        for name in ("l1", "l2")
    ]
    with pytest.raises(InputError, match=r"losses of different distance .l1, l2. do not"):
        crosstab(ld3.load_results(*places), "solver", ["nfe"], "eval_loss", "all")
    both = [learned(name, "1", 0, 1.0, distance=name) for name in ("l1", "l2")]
    one = write_folder(tmp_path / "one", both, {name: tailed(0) for name in ("l1", "l2")})
    table = crosstab(ld3.load_results(one), "solver", ["nfe"], "eval_loss", "all")
    assert [entry.count for entry in table.entries.values()] == [2]


def test_ranks_across_cells(out: Path) -> None:
    frame = crosstab_frame(out)
    found = differences(frame, "method", "valid_loss")
    assert found.blocks == 9
    scores = frame.pivot_table(index="cell", columns="method", values="valid_loss")
    ranks = np.mean([rankdata(row) for row in scores.to_numpy()], axis=0)
    assert found.ranks == pytest.approx(ranks)
    assert found.critical == pytest.approx(2.569 * math.sqrt(4 * 5 / (6 * 9)), rel=1e-3)


def crosstab_frame(out: Path):  # type: ignore[no-untyped-def]
    return chosen(ld3.load_results(out), "method", ["nfe"], "valid_loss", "best")


def test_bars_join_ranks_that_do_not_differ() -> None:
    assert cliques([1.0, 1.5, 3.0, 3.4], 1.0) == [(1.0, 1.5), (3.0, 3.4)]
    assert cliques([1.0, 2.0, 3.0], 1.0) == [(1.0, 2.0), (2.0, 3.0)]
    assert cliques([1.0, 2.0, 3.0], 0.5) == []
    assert cliques([3.0, 1.0, 2.0], 5.0) == [(1.0, 3.0)]


def test_the_figure_is_the_same_every_time(out: Path, tmp_path: Path) -> None:
    found = differences(crosstab_frame(out), "method", "valid_loss")
    files = [draw_differences(found, tmp_path / f"{i}.png", "loss") for i in (0, 1)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_command(out: Path, tmp_path: Path) -> None:
    call = CliRunner().invoke
    shown = call(app, ["table", str(out), "--format", "latex"])
    assert shown.exit_code == 0
    assert shown.output.startswith(r"\begin{tabular}{lrrrr}")
    figure, target = tmp_path / "cd.pdf", tmp_path / "t.md"
    wanted = ["--rows", "method", "--value", "valid_loss", "--figure", str(figure)]
    assert call(app, ["table", str(out), "--out", str(target), *wanted]).exit_code == 0
    assert "**" in target.read_text()
    assert figure.read_bytes().startswith(b"%PDF")
    again = call(app, ["table", str(out), "--out", str(target)])
    assert isinstance(again.exception, InputError)
    assert "exists already" in str(again.exception)
    several = ["--rows", "method,gamma", "--mean", "geometric", "--which", "all"]
    shown = call(app, ["table", str(out), "--value", "valid_loss", *several])
    assert "| learned, gamma 0.001 |" in shown.output
    empty = call(app, ["table", str(out), "--rows", ","])
    assert "--rows is empty; name a column" in str(empty.exception)
    bad = call(app, ["table", str(out), "--figure", str(tmp_path / "x.doc")])
    assert "end its name with" in str(bad.exception)
    one = call(app, ["table", str(out), "--rows", "model", "--figure", str(tmp_path / "y.png")])
    assert "ranks need two model or more" in str(one.exception)
