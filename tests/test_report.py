"""The report: its numbers recomputed from the records, its page on its own, and every state a sweep can be left in."""

from __future__ import annotations

import re
import statistics
import xml.etree.ElementTree as ET
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save
from synthetic_sweep import records, write_sweep

from ld3_dist.core.errors import InputError
from ld3_dist.report import read_sweep, summary_markdown, summary_table, write_report
from ld3_dist.report.cells import MOST_PANELS, legible
from ld3_dist.report.grids import _level
from ld3_dist.report.style import label_ends, panels, styled
from ld3_dist.report.wording import number, ratio
from ld3_dist.store.results import load_results
from ld3_dist.store.storage import open_storage
from ld3_dist.store.tables import write_table


class Tags(HTMLParser):
    """Tags that were opened and what they point to; fails on a tag closed out of order."""

    VOID = frozenset({"meta", "link", "br", "img", "hr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


# the page of a synthetic sweep whose records were changed first
def page_of(folder: Path, change: Callable[[list[dict], list[dict]], None] | None = None, **kinds) -> str:
    write_sweep(folder, **kinds)
    if change:
        rows, evaluations = records(**kinds)
        change(rows, evaluations)
        write_table(open_storage(folder), "rows", "all", rows)
        write_table(open_storage(folder), "evaluations", "all", evaluations)
    text = Path(write_report(folder).html).read_text()
    Tags(text)
    return text


def by_cell(rows: list[dict]) -> dict[str, list[dict]]:
    found: dict[str, list[dict]] = {}
    for row in rows:
        found.setdefault(row["cell"], []).append(row)
    return found


# --- numbers --------------------------------------------------------------------------------------------------------


def test_summary_agrees_with_the_records(tmp_path: Path) -> None:
    rows, evaluations = records()
    sweep = read_sweep(write_sweep(tmp_path))
    table = summary_table(sweep.results, sweep.evaluations).set_index("cell")
    scores = {record["key"]: record for record in evaluations}
    assert list(table.index) == sorted(by_cell(rows))
    for cell, inside in by_cell(rows).items():
        hand_made = min((r for r in inside if r["kind"] == "baseline"), key=lambda r: r["valid_loss"])
        ok = [r for r in inside if r["kind"] == "learned" and r["status"] == "ok"]
        best = min(ok, key=lambda r: r["valid_loss"])
        seeds = [r["valid_loss"] for r in ok if (r["trial"], r["start"]) == (best["trial"], best["start"])]
        line = table.loc[cell]
        assert (line["baseline"], line["start"], line["gamma"]) == (hand_made["start"], best["start"], best["gamma"])
        assert line["gain"] == pytest.approx(hand_made["valid_loss"] / best["valid_loss"], rel=1e-12)
        assert line["seeds"] == len(seeds)
        assert line["seed_mean"] == pytest.approx(statistics.mean(seeds))
        if len(seeds) > 1:
            assert line["seed_std"] == pytest.approx(statistics.stdev(seeds))
        measured = [scores[r["key"]] for r in inside if r["kind"] == "baseline"]
        assert line["fid"] == scores[best["key"]]["fid"]
        assert line["baseline_fid"] == min(m["fid"] for m in measured)
        assert line["eval_gain"] == pytest.approx(
            min(m["eval_loss"] for m in measured) / scores[best["key"]]["eval_loss"]
        )
        assert line["teacher_fid"] == 1.9
        assert (line["ok"], line["not_ok"]) == (16, 2)


def test_headline_and_markdown(tmp_path: Path) -> None:
    frame = load_results(write_sweep(tmp_path))
    gains = [float(g) for g in summary_table(frame)["gain"]]
    text = summary_markdown(frame)
    assert f"in {len(gains)} of {len(gains)} cells" in text
    assert f"{number(statistics.median(gains))} times smaller in the median" in text
    assert f"{number(max(gains))} times smaller at best" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(gains)
    assert len({line.count("|") for line in lines}) == 1


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.00242, "0.00242"),
        (12.345, "12.3"),
        (1234.5, "1,234"),
        (0, "0"),
        (None, "–"),
        (float("nan"), "–"),
        (3e-9, "3.00e-09"),
    ],
)
def test_numbers(value: float | None, text: str) -> None:
    assert number(value) == text
    assert ratio(value) == (text if text == "–" else text + "×")


def test_noise_levels_of_another_schedule() -> None:
    from ld3_dist.core.noise import FlowMatching

    t = np.array([0.9, 0.5, 0.1])
    np.testing.assert_allclose(_level(FlowMatching())(t), t / (1 - t), rtol=1e-9)
    np.testing.assert_array_equal(_level(None)(t), t)


# --- the page -------------------------------------------------------------------------------------------------------


def test_page_stands_alone_and_says_what_it_shows(tmp_path: Path) -> None:
    text = page_of(tmp_path)
    assert "http:" not in text
    assert "https:" not in text
    tags = Tags(text).seen
    assert not {tag for tag, _ in tags} & {"script", "link", "iframe", "img"}
    for tag, attributes in tags:
        for name in ("src", "href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))
        if tag == "svg":
            assert attributes["role"] == "img"
            assert len(attributes["aria-label"] or "") > 20
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = re.findall(r'(?:href="#|url\(#)([^")]+)', text)
    assert set(used) <= set(ids)
    for drawing in re.findall(r"<svg.*?</svg>", text, flags=re.S):
        ET.fromstring(drawing)
    for word in ("synthetic", "3f9a1c0de4", "2.14.1", "64 ok, 8 not ok", "Gain against γ", "Convergence", "collapsed"):
        assert word in text


def test_same_tables_same_bytes(tmp_path: Path) -> None:
    write_sweep(tmp_path / "sweep")
    first = write_report(tmp_path / "sweep", tmp_path / "a")
    second = write_report(tmp_path / "sweep", tmp_path / "b")
    assert len(first.figures) == 5
    for one, other in zip(
        (first.html, first.markdown, *first.figures), (second.html, second.markdown, *second.figures), strict=True
    ):
        assert Path(one).read_bytes() == Path(other).read_bytes()


def test_a_section_a_model(tmp_path: Path) -> None:
    text = page_of(tmp_path, models=("digits", "edm:<other>.safetensors"), solvers=("unipc-3",))
    assert text.count('<section id="model-') == 2
    assert "edm:&lt;other&gt;.safetensors</h2>" in text


def test_samples_are_drawn_pixel_by_pixel(tmp_path: Path) -> None:
    write_sweep(tmp_path)
    storage = open_storage(tmp_path)
    image = torch.rand(4, 3, 8, 8) * 2 - 1
    tensors = {"teacher": image, "baseline": -image, "learned": image.clone()}
    storage.write_bytes("samples/digits_class_w1_unipc-3_4.safetensors", save(tensors, {"cell": "x"}))
    storage.write_bytes("samples/digits_class_w1_unipc-3_5.safetensors", b"not a file of tensors")
    paths = write_report(tmp_path)
    text = Path(paths.html).read_text()
    assert text.count('class="samples"') == 1
    assert text.count("data:image/png;base64,") == 12
    assert any(name.endswith("samples-0.png") for name in paths.figures)


# --- states a sweep can be in ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kinds",
    [
        {"metrics": False}, {"nfes": (4,)}, {"gammas": (0.001,), "seeds": (0,), "broken": False}, {"learned": False},
        {"gammas": (0.0, *np.geomspace(1e-4, 1e-1, 9))},
        {"solvers": ("heun",), "nfes": (4,), "gammas": (0.0,)},
    ],
    ids=["no metrics", "one NFE", "one gamma, one seed", "baselines only", "continuous gamma", "one cell"],
)  # fmt: skip
def test_partial_sweeps(tmp_path: Path, kinds: dict) -> None:
    text = page_of(tmp_path, **kinds)
    assert ("Fréchet distance against NFE" in text) == kinds.get("metrics", True)
    assert ("Learned grids" in text) == kinds.get("learned", True)


def test_nothing_yet(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    paths = write_report(tmp_path)
    assert "There are no results yet." in Path(paths.html).read_text()
    assert paths.figures == ()
    assert Path(paths.markdown).read_text().startswith("There are no results yet.")


def test_no_sweep_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        write_report(tmp_path / "absent")


def test_a_cell_without_an_ok_row(tmp_path: Path) -> None:
    def change(rows: list[dict], evaluations: list[dict]) -> None:
        for row in rows:
            if row["kind"] == "learned" and row["nfe"] == 5:
                row |= {"status": "failed", "message": "<out of memory>", "valid_loss": None, "valid_curve": None}

    text = page_of(tmp_path, change)
    assert "No learned schedule came out ok in dpmpp-3 at 5 NFE, unipc-3 at 5 NFE." in text
    assert "&lt;out of memory&gt;" in text


def test_everything_failed(tmp_path: Path) -> None:
    def change(rows: list[dict], evaluations: list[dict]) -> None:
        for row in rows:
            row |= {"status": "failed", "valid_loss": None, "knots": None, "evals": None}

    assert "No schedule has been learned yet" in page_of(tmp_path, change, metrics=False)


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
    assert "Coverage is below the teacher&#x27;s" in text
    assert "The best hand-made grid was not beaten in unipc-3 at 4 NFE (gain 0.00" in text
    assert "is gone on fresh pairs in dpmpp-3" in text
    assert "nearly coincide" in text


def test_failed_attempts_and_unreadable_files(tmp_path: Path) -> None:
    write_sweep(tmp_path)
    storage = open_storage(tmp_path)
    write_table(storage, "failures", "one", [{"stage": "teach", "item": "0-50", "attempt": 1, "reason": "killed"}])
    storage.write_bytes("rows/torn.parquet", b"PAR1 torn")
    with pytest.warns(UserWarning, match=r"torn\.parquet"):
        text = Path(write_report(tmp_path).html).read_text()
    assert "Stage teach: 1 failed attempt, most often: killed." in text
    assert "1 file could not be read" in text


def test_large_sweeps_stay_legible(tmp_path: Path) -> None:
    solvers = tuple(f"deis-{i}" for i in range(20))
    text = page_of(tmp_path, solvers=solvers, nfes=(3, 4, 5, 6, 7, 8), gammas=(0.0,), seeds=(0,), broken=False)
    assert text.count("<tr>") == 1 + 120
    assert f"Shown are {MOST_PANELS} of 120 cells" in text
    assert len(text) < 4_000_000


def test_legible_keeps_both_ends() -> None:
    kept, note = legible(list(range(100)), "cells", 5)
    assert (kept[0], kept[-1], len(kept)) == (0, 99, 5)
    assert "5 of 100 cells" in note
    assert legible([1, 2], "cells") == ([1, 2], "")


def test_labels_do_not_overlap() -> None:
    with styled():
        _, (axis,) = panels(1, 3.0)
        axis.set_ylim(0, 1)
        label_ends(axis, [(0.5, "a", "#000000"), (0.5, "b", "#000000"), (0.501, "c", "#000000"), (0.0, "d", "#000000")])
        places = sorted(text.xy[1] for text in axis.texts)
    assert (np.diff(places) > 0.074).all()
