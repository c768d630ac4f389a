"""The report of every state a sweep can be left in: unfinished, failed, unmeasured, misleading, or
very large.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import pytest
from report_pages import page_of
from slowly import few
from synthetic_sweep import write_sweep

from ld3_dist.core.errors import InputError
from ld3_dist.report import write_report
from ld3_dist.report.figures.cells import MOST_PANELS, legible
from ld3_dist.report.figures.style import STYLE, label_ends, panels
from ld3_dist.store.opening import open_storage
from ld3_dist.store.tables import write_table

PARTIAL = {
    "no metrics": {"metrics": False},
    "one NFE": {"nfes": (4,)},
    "one gamma, one seed": {"gammas": (0.001,), "seeds": (0,), "broken": False},
    "baselines only": {"learned": False},
    "continuous gamma": {"gammas": (0.0, *np.geomspace(1e-4, 1e-1, 9))},
    "one cell": {"solvers": ("heun",), "nfes": (4,), "gammas": (0.0,)},
}


def says_what_is_there(text: str, kinds: dict) -> None:
    assert ("Fréchet distance against NFE" in text) == kinds.get("metrics", True)
    assert ("Learned grids" in text) == kinds.get("learned", True)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("name", few(PARTIAL, ("no metrics", "one cell")))
def test_partial_sweeps(tmp_path: Path, name: str) -> None:
    kinds = PARTIAL[name]
    says_what_is_there(page_of(tmp_path, **kinds), kinds)


@pytest.mark.slow  # the test above does all but the drawing
@pytest.mark.parametrize("kinds", PARTIAL.values(), ids=PARTIAL)
def test_partial_sweeps_are_drawn(tmp_path: Path, kinds: dict) -> None:
    says_what_is_there(page_of(tmp_path, **kinds), kinds)


def test_nothing_yet(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    paths = write_report(tmp_path)
    assert "There are no results yet." in Path(paths.html).read_text()
    assert paths.figures == ()
    assert Path(paths.markdown).read_text().startswith("There are no results yet.")


def test_no_sweep_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        write_report(tmp_path / "absent")


@pytest.mark.usefixtures("undrawn")
def test_a_cell_without_an_ok_row(tmp_path: Path) -> None:
    def change(rows: list[dict], evaluations: list[dict]) -> None:
        for row in rows:
            if row["kind"] == "learned" and row["nfe"] == 5:
                row |= {
                    "status": "failed",
                    "message": "<out of memory>",
                    "valid_loss": None,
                    "valid_curve": None,
                }

    text = page_of(tmp_path, change)
    assert "No learned schedule came out ok in dpmpp-3 at 5 NFE, unipc-3 at 5 NFE." in text
    assert "&lt;out of memory&gt;" in text


@pytest.mark.usefixtures("undrawn")
def test_everything_failed(tmp_path: Path) -> None:
    def change(rows: list[dict], evaluations: list[dict]) -> None:
        for row in rows:
            row |= {"status": "failed", "valid_loss": None, "knots": None, "evals": None}

    assert "No schedule has been learned yet" in page_of(tmp_path, change, metrics=False)


@pytest.mark.usefixtures("undrawn")
def test_what_speaks_against_a_schedule_is_said(tmp_path: Path) -> None:
    def change(rows: list[dict], evaluations: list[dict]) -> None:
        for record in evaluations:
            if record["kind"] == "learned":
                record |= {"fid": 500.0, "coverage": 0.3, "eval_loss": 9.0}
        for row in rows:
            if row["solver"] == "unipc-3" and row["kind"] == "baseline":
                row["valid_loss"] /= 1e4
            row["min_gap"] = 1e-5

    text = page_of(tmp_path, change)
    assert "the Fréchet distance did not in dpmpp-3 at 4 NFE (500 against" in text
    assert "Coverage is below the teacher&#39;s" in text
    assert "The best hand-made grid was not beaten in unipc-3 at 4 NFE (gain 0.0124×" in text
    assert "is gone on fresh pairs in dpmpp-3" in text
    assert "nearly coincide" in text


@pytest.mark.usefixtures("undrawn")
def test_failed_attempts_and_unreadable_files(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_sweep(tmp_path)
    storage = open_storage(tmp_path)
    write_table(
        storage,
        "failures",
        "one",
        [{"stage": "teach", "item": "0-50", "attempt": 1, "reason": "killed"}],
    )
    storage.write_bytes("rows/torn.parquet", b"PAR1 torn")
    text = Path(write_report(tmp_path).html).read_text()
    assert [r for r in caplog.records if "torn.parquet" in r.getMessage()]
    assert "Stage teach: 1 failed attempt, most often: killed." in text
    assert "1 file could not be read" in text


@pytest.mark.slow  # the next test draws nothing; here the size of the page counts
def test_large_sweeps_stay_small(tmp_path: Path) -> None:
    text = large_page(tmp_path, 20)
    assert f"Shown are {MOST_PANELS} of 120 cells" in text
    assert len(text) < 4_000_000


@pytest.mark.slow  # a page of hundreds of cells
@pytest.mark.usefixtures("undrawn")
def test_large_sweeps_stay_legible(tmp_path: Path) -> None:
    text = large_page(tmp_path, 4)
    assert text.count("<tr data-cell=") == 24
    assert f"Shown are {MOST_PANELS} of 24 cells" in text


def large_page(folder: Path, solvers: int) -> str:
    nfes = (3, 4, 5, 6, 7, 8)
    names = tuple(f"deis-{i}" for i in range(solvers))
    return page_of(folder, solvers=names, nfes=nfes, gammas=(0.0,), seeds=(0,), broken=False)


def test_legible_keeps_both_ends() -> None:
    kept, note = legible(list(range(100)), "cells", 5)
    assert (kept[0], kept[-1], len(kept)) == (0, 99, 5)
    assert "5 of 100 cells" in note
    assert legible([1, 2], "cells") == ([1, 2], "")


def test_labels_do_not_overlap() -> None:
    with matplotlib.rc_context(STYLE):
        _, (axis,) = panels(1, 3.0)
        axis.set_ylim(0, 1)
        label_ends(
            axis,
            [
                (0.5, "a", "#000000"),
                (0.5, "b", "#000000"),
                (0.501, "c", "#000000"),
                (0.0, "d", "#000000"),
            ],
        )
        places = sorted(text.xy[1] for text in axis.texts)
    assert (np.diff(places) > 0.074).all()
