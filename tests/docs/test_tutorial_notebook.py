"""The notebook: its cells run in order, here with a small budget, whole in the slow suite."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

FILE = Path(__file__).parents[2] / "experiments" / "tutorial.ipynb"
NOTEBOOK = json.loads(FILE.read_text(encoding="utf-8"))
CELLS = ["".join(c["source"]) for c in NOTEBOOK["cells"] if c["cell_type"] == "code"]

SMALLER = [
    ("STEPS = 1500", "STEPS = 30"),
    ("pairs=pairs)", "pairs=pairs, starts=['log_snr'], epochs=2)"),
    ("n=100,", "n=20,"),
    ("samples=500", "samples=20"),
    ("n=500,", "n=20,"),
]
"""What is made smaller for the quick run; each must be there."""


def test_the_cells_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    code = "\n\n".join(CELLS)
    for whole, small in SMALLER:
        assert whole in code, whole
        code = code.replace(whole, small)
    names: dict[str, Any] = {"__name__": "notebook"}
    with torch.random.fork_rng():
        exec(compile(code, str(FILE), "exec"), names)
    assert names["samples"].shape == (20, 2)
    assert names["schedule"].nfe == 5
    assert names["scores"]["name"].tolist()[-3:] == ["karras", "log_snr", "uniform"]
    assert len(names["figure"].axes) == 3
    names["plt"].close("all")


def test_what_is_committed_was_run_in_order() -> None:
    cells = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    kinds = {kind for cell in cells for out in cell["outputs"] for kind in out.get("data", ())}
    assert "image/png" in kinds
    assert not [out for cell in cells for out in cell["outputs"] if out["output_type"] == "error"]


@pytest.mark.slow
def test_the_notebook_runs_as_it_stands_and_learns(tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    notebook = nbformat.read(FILE, as_version=4)
    check = "gain = scores.eval_loss[2:].min() / scores.eval_loss[1]\nassert gain > 2, gain"
    notebook.cells.append(nbformat.v4.new_code_cell(check))
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=1200, resources=resources).execute()
