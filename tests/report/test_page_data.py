"""The JSON of the page and the paragraphs about the sweep, against the tables they are made of."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from report_pages import Tags, page_of
from synthetic_sweep import write_sweep

from ld3_dist.metrics.paired import compare
from ld3_dist.report import read_sweep_tables, summary_table, write_report
from ld3_dist.report.about import span
from ld3_dist.report.page import enlarged
from ld3_dist.report.page_data import page_data, status_of
from ld3_dist.store.opening import open_storage
from ld3_dist.store.results import load_results

MOST_BYTES = 20_000


def data_in(text: str) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert found is not None
    return json.loads(found.group(1))


def data_of(folder: Path, **kinds) -> dict:
    sweep = read_sweep_tables(write_sweep(folder, **kinds))
    table = summary_table(sweep.results, sweep.evaluations)
    return json.loads(page_data(sweep, table, dict.fromkeys(table.index, 0)))


@pytest.mark.usefixtures("undrawn")
def test_the_script_is_small(tmp_path: Path) -> None:
    text = page_of(tmp_path, solvers=("heun",), nfes=(4,), gammas=(0.0,))
    script = text[text.rindex("<script>") : text.rindex("</script>")]
    assert 1000 < len(script.encode()) <= MOST_BYTES


def test_data_repeats_the_tables(tmp_path: Path) -> None:
    data = data_of(tmp_path)
    frame = load_results(tmp_path).set_index("key")
    names = [metric["id"] for metric in data["metrics"]]
    assert names[:2] == ["eval_loss", "valid_loss"]
    assert {m["id"] for m in data["metrics"] if not m["lower"]} == {
        "density",
        "precision",
        "recall",
        "coverage",
    }
    assert sum(len(cell["rows"]) for cell in data["cells"]) == len(frame)
    for cell in data["cells"]:
        best = cell["rows"][cell["best"]]
        assert frame.loc[best["key"], "best"]
        for row in cell["rows"]:
            line = frame.loc[row["key"]]
            assert line["cell"] == cell["cell"]
            for name, value in zip(names, row["v"], strict=True):
                assert value == (None if np.isnan(line[name]) else line[name])
            if line["knots"] is not None:
                assert row["t"] == list(line["knots"])
                assert row["e"] == list(line["evals"])


def test_gains_over_every_grid_have_paired_intervals(tmp_path: Path) -> None:
    data = data_of(tmp_path, solvers=("unipc-3",), nfes=(4,))
    (cell,) = data["cells"]
    sweep = read_sweep_tables(tmp_path)
    grids = {row["name"]: row["key"] for row in cell["rows"] if row["kind"] == "baseline"}
    assert set(cell["gains"]) == set(grids)
    mine = cell["rows"][cell["best"]]["key"]
    losses = sweep.losses([mine, *grids.values()])
    for name, key in grids.items():
        wanted = compare(losses[key], losses[mine]).ratio
        assert cell["gains"][name] == pytest.approx([wanted.low, wanted.high], rel=0.05)


def test_many_schedules_are_cut_to_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ld3_dist.report.page_data.MOST_ROWS", 16)
    data = data_of(tmp_path)
    frame = load_results(tmp_path)
    for cell in data["cells"]:
        learned = [row["key"] for row in cell["rows"] if row["kind"] == "learned"]
        ranked = frame[(frame["cell"] == cell["cell"]) & (frame["kind"] == "learned")]
        assert learned == list(ranked.sort_values("valid_loss")["key"][:4])
        assert cell["more"] == len(ranked) - 4


@pytest.mark.usefixtures("undrawn")
def test_names_cannot_end_the_block(tmp_path: Path) -> None:
    name = "</script><b>&\u2028"
    text = page_of(tmp_path, models=(name,), solvers=("heun",), nfes=(4,), gammas=(0.0,))
    assert "<b>&" not in text
    assert Tags(text).seen
    assert data_in(text)["cells"][0]["model"] == "</script><b>&\\u2028"


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ({"key": None, "learned": 0}, "nothing learned"),
        ({"key": None, "learned": 3}, "failed"),
        ({"key": "k", "decided": None}, "not evaluated"),
        ({"key": "k", "decided": False, "eval_gain": 1.1}, "undecided"),
        ({"key": "k", "decided": True, "eval_gain": 1.1}, "better"),
        ({"key": "k", "decided": True, "eval_gain": 0.9}, "worse"),
    ],
)
def test_states_of_a_cell(line: dict, status: str) -> None:
    assert status_of(line) == status


@pytest.mark.usefixtures("undrawn")
def test_a_folder_without_evaluations(tmp_path: Path) -> None:
    text = page_of(tmp_path, metrics=False, solvers=("heun",), nfes=(4,), gammas=(0.0,))
    data = data_in(text)
    assert [metric["id"] for metric in data["metrics"]] == ["valid_loss"]
    assert data["cells"][0]["gains"] == {}
    assert data["cells"][0]["status"] == "not evaluated"
    assert "Nothing was sampled from fresh noise." in text
    heads = re.findall(r'data-name="([^"]+)"', text)
    assert heads[:3] == ["solver", "nfe", "gain"]  # the held-out gain is in view then


def test_the_sweep_is_told(tmp_path: Path) -> None:
    write_sweep(tmp_path, solvers=("heun",), nfes=(4,), gammas=(0.0,))
    settings = {"name": "<synthetic>", "nfe": [4], "shift": None}
    experiment = {
        "name": "synthetic",
        "fingerprint": "3f9a1c0de4",
        "settings": settings,
        "first_run": "2026-11-26T20:33:30+00:00",
        "last_run": "2026-11-26T20:36:30+00:00",
    }
    open_storage(tmp_path).write_bytes("experiment.json", json.dumps(experiment).encode())
    text = Path(write_report(tmp_path, figures=[]).html).read_text()
    assert "<dd>2026-11-26 20:33 UTC</dd>" in text
    assert "<dd>3.00 min</dd>" in text
    assert "learned from 50 pairs" in text
    assert "same 2000 fresh noises" in text
    assert "features of digits-classifier" in text
    found = re.search(r"<pre tabindex=\"0\"><code>(.*?)</code></pre>", text, re.S)
    assert found is not None
    shown = found.group(1).replace("&lt;", "<").replace("&gt;", ">").replace("&#39;", "'")
    assert yaml.safe_load(shown) == {"name": "<synthetic>", "nfe": [4]}


@pytest.mark.parametrize(
    ("seconds", "text"), [(48.0, "48.0 s"), (197.0, "3.28 min"), (7560.0, "2.10 h")]
)
def test_durations(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_strips_are_enlarged_by_whole_factors(tmp_path: Path) -> None:
    from ld3_dist.report.figures import Pictures

    for width, room, factor in ((8, 960, 10), (64, 960, 1), (256, 350, 1)):
        assert enlarged(Pictures("c", 12, width, width, ()), room) == factor
