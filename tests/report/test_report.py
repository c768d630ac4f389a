"""The report: its numbers recomputed from the records, and a page that stands on its own."""

from __future__ import annotations

import re
import statistics
import xml.etree.ElementTree as ET
from base64 import b64decode
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from report_pages import Tags, page_of
from safetensors.torch import save
from synthetic_sweep import losses_of, records, write_sweep

from ld3_dist.core.noise import EDM, FlowMatching, VPLinear
from ld3_dist.metrics.paired import compare
from ld3_dist.report import read_sweep_tables, summary_markdown, summary_table, write_report
from ld3_dist.report.figures import FigureData
from ld3_dist.report.figures.grids import grids_plot, noise_level
from ld3_dist.report.formats import number, ratio
from ld3_dist.schedule.file import Schedule, noise_to_dict
from ld3_dist.store.opening import open_storage
from ld3_dist.store.results import load_results


def by_cell(rows: list[dict]) -> dict[str, list[dict]]:
    found: dict[str, list[dict]] = {}
    for row in rows:
        found.setdefault(row["cell"], []).append(row)
    return found


# --- numbers --------------------------------------------------------------------------------------


def test_summary_agrees_with_the_records(tmp_path: Path) -> None:
    rows, evaluations = records()
    sweep = read_sweep_tables(write_sweep(tmp_path))
    table = summary_table(sweep.results, sweep.evaluations).set_index("cell")
    scores = {record["key"]: record for record in evaluations}
    assert list(table.index) == sorted(by_cell(rows))
    for cell, inside in by_cell(rows).items():
        hand_made = min(
            (r for r in inside if r["kind"] == "baseline"),
            key=lambda r: scores[r["key"]]["eval_loss"],
        )
        ok = [r for r in inside if r["kind"] == "learned" and r["status"] == "ok"]
        best = min(ok, key=lambda r: r["valid_loss"])
        seeds = [
            r["valid_loss"]
            for r in ok
            if (r["trial"], r["start"]) == (best["trial"], best["start"])
        ]
        line = table.loc[cell]
        assert (line["baseline"], line["start"], line["gamma"]) == (
            hand_made["start"],
            best["start"],
            best["gamma"],
        )
        assert line["gain"] == pytest.approx(
            hand_made["valid_loss"] / best["valid_loss"], rel=1e-12
        )
        assert line["seeds"] == len(seeds)
        assert line["seed_mean"] == pytest.approx(statistics.mean(seeds))
        if len(seeds) > 1:
            assert line["seed_std"] == pytest.approx(statistics.stdev(seeds))
        measured = [scores[r["key"]] for r in inside if r["kind"] == "baseline"]
        assert line["fid"] == scores[best["key"]]["fid"]
        assert line["baseline_fid"] == scores[hand_made["key"]]["fid"]
        assert line["lowest_fid"] == min(m["fid"] for m in measured)
        assert line["baseline_eval_loss"] == min(m["eval_loss"] for m in measured)
        assert line["eval_gain"] == pytest.approx(
            line["baseline_eval_loss"] / scores[best["key"]]["eval_loss"]
        )
        losses = {r["key"]: np.array(r["losses"]) for r in losses_of(evaluations)}
        interval = compare(losses[hand_made["key"]], losses[best["key"]]).ratio
        assert line["eval_gain_low"] == pytest.approx(interval.low, rel=0.02)
        assert line["eval_gain_high"] == pytest.approx(interval.high, rel=0.02)
        assert line["decided"]
        assert line["teacher_fid"] == 1.9
        assert (line["ok"], line["not_ok"]) == (16, 2)


def test_headline_and_markdown(tmp_path: Path) -> None:
    frame = load_results(write_sweep(tmp_path))
    gains = [float(g) for g in summary_table(frame)["eval_gain"]]
    text = summary_markdown(frame)
    assert f"in {len(gains)} of {len(gains)} cells" in text
    assert f"{number(statistics.median(gains))} times smaller in the median" in text
    assert f"{number(max(gains))} times smaller at best" in text
    assert "on fresh samples" in text
    assert "95 % interval of the gain" in text
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
    t = np.array([0.9, 0.5, 0.1])
    np.testing.assert_allclose(noise_level(FlowMatching())(t), t / (1 - t), rtol=1e-9)
    np.testing.assert_array_equal(noise_level(None)(t), t)


# --- the page -------------------------------------------------------------------------------------


def test_page_stands_alone_and_says_what_it_shows(tmp_path: Path) -> None:
    text = page_of(tmp_path, solvers=("unipc-3",))
    assert "http:" not in text
    assert "https:" not in text
    tags = Tags(text).seen
    assert not {tag for tag, _ in tags} & {"link", "iframe", "object"}
    policy = next(a["content"] for tag, a in tags if a.get("http-equiv"))
    assert "default-src 'none'" in (policy or "")
    assert all("src" not in attributes for tag, attributes in tags if tag == "script")
    for tag, attributes in tags:
        for name in ("src", "href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))
        if tag == "svg" and set(attributes) != {"viewbox"}:
            assert attributes["role"] == "img"
            assert len(attributes["aria-label"] or "") > 20
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = re.findall(r'(?:href="#|url\(#)([^")]+)', text)
    assert set(used) <= set(ids)
    markup = text[: text.index('<script type="application/json"')]
    for drawing in re.findall(r"<svg.*?</svg>", markup, flags=re.S):
        ET.fromstring(drawing)
    for word in (
        "synthetic",
        "3f9a1c0de4",
        "2.14.1",
        "32 ok, 4 not ok",
        "Gain against γ",
        "Convergence",
        "collapsed",
    ):
        assert word in text


def test_same_tables_same_bytes(tmp_path: Path) -> None:
    write_sweep(tmp_path / "sweep", solvers=("unipc-3",))
    chosen = ["distance", "grids"]
    first = write_report(tmp_path / "sweep", tmp_path / "a", figures=chosen)
    second = write_report(tmp_path / "sweep", tmp_path / "b", figures=chosen)
    assert len(first.figures) == 2
    for one, other in zip(
        (first.html, first.markdown, *first.figures),
        (second.html, second.markdown, *second.figures),
        strict=True,
    ):
        assert Path(one).read_bytes() == Path(other).read_bytes()


def test_figures_of_an_earlier_report_go(tmp_path: Path) -> None:
    write_sweep(tmp_path / "sweep", solvers=("unipc-3",))
    out = tmp_path / "out"
    first = write_report(tmp_path / "sweep", out, figures=["distance", "grids"])
    own = out / "figures" / "mine.png"
    own.write_bytes(b"somebody's")
    second = write_report(tmp_path / "sweep", out, figures=["distance"])
    assert {*second.figures} < {*first.figures}
    assert {str(file) for file in (out / "figures").iterdir()} == {*second.figures, str(own)}
    (out / "_files.json").write_text('["../sweep/experiment.json", 3]')  # nothing of it is believed
    assert Path(write_report(tmp_path / "sweep", out, figures=["grids"]).html).exists()
    assert (tmp_path / "sweep" / "experiment.json").exists()


@pytest.mark.usefixtures("undrawn")
def test_a_section_a_model(tmp_path: Path) -> None:
    text = page_of(tmp_path, models=("digits", "edm:<other>.safetensors"), solvers=("unipc-3",))
    assert text.count('<section id="model-') == 2
    assert "edm:&lt;other&gt;.safetensors</h2>" in text


def test_axis_is_the_noise_level_where_a_schedule_file_names_it(tmp_path: Path) -> None:
    sweep = read_sweep_tables(write_sweep(tmp_path))
    assert sweep.noise_of(sweep.results) is None
    best = sweep.results[sweep.results["best"]].iloc[0]
    Schedule(
        knots=(0.9, 0.1),
        evals=(0.9,),
        state=(1.0, 0.1),
        outputs=((0.0,), (0.9,)),
        noise=noise_to_dict(VPLinear()),
        prior_scale=1.0,
        solver="ddim",
        nfe=1,
        model="digits",
    ).save(tmp_path / "schedules" / f"{best['key'].replace('/', '_')}.json")
    renamed = sweep.results.assign(key=sweep.results["key"].str.replace("/", "_"))
    noise = sweep.noise_of(renamed)
    assert noise == VPLinear()
    rows = renamed[renamed["cell"] == best["cell"]]
    plot = grids_plot(FigureData("digits", rows, {}, EDM(), "digits", lambda cell: {}))
    assert plot is not None
    assert plot.figure.axes[0].get_xlabel().startswith("noise level")


def test_samples_are_drawn_pixel_by_pixel(tmp_path: Path) -> None:
    write_sweep(tmp_path, solvers=("unipc-3",), nfes=(4,))
    storage = open_storage(tmp_path)
    image = torch.rand(4, 3, 8, 8) * 2 - 1
    tensors = {"teacher": image, "baseline": -image, "learned": image.clone()}
    storage.write_bytes(
        "samples/digits_class_w1_unipc-3_4.safetensors", save(tensors, {"cell": "x"})
    )
    storage.write_bytes("samples/digits_class_w1_unipc-3_5.safetensors", b"not a file of tensors")
    paths = write_report(tmp_path, figures=["distance", "samples"])
    text = Path(paths.html).read_text()
    assert text.count('class="samples"') == 1
    strips = [attributes for tag, attributes in Tags(text).seen if tag == "img"]
    assert [strip["data-kind"] for strip in strips] == ["teacher", "baseline", "learned"]
    for strip, kind in zip(strips, tensors, strict=True):
        data = b64decode((strip["src"] or "").removeprefix("data:image/png;base64,"))
        pixels = np.asarray(Image.open(BytesIO(data)), dtype=float)
        side_by_side = torch.cat(list(tensors[kind]), dim=2).permute(1, 2, 0).numpy()
        assert np.abs(pixels / 127.5 - 1 - side_by_side).max() < 1 / 127.5
    assert any(name.endswith("samples-0.png") for name in paths.figures)
