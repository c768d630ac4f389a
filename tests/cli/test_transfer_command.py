"""`ld3-dist transfer` and `ld3-dist learn --budget`: what is printed, written, kept and refused."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from command_line import call, elsewhere  # noqa: F401
from schedules import coupled_schedule, one_thread  # noqa: F401

from ld3_dist import load_schedule
from ld3_dist.core.noise import EDM
from ld3_dist.schedule import site_scores
from ld3_dist.store.columns import TRANSFERS

TWO = "analytic:mixture-2d"
FEW = ("--samples", 10, "--teacher", "ipndm-2/12/karras", "--device", "cpu")


@pytest.fixture(autouse=True)
def files(elsewhere: None) -> None:  # noqa: F811
    for nfe, grid in ((3, "poly-5"), (4, "cosine")):
        made = coupled_schedule(EDM(), nfe, grid, "ipndm-2")
        replace(made, model=TWO).save(f"{grid}.json")


def test_table_picture_and_answers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("transfer", "poly-5.json", "cosine.json", *FEW, "--out", "moved")
    models = ("--models", f"base,wide={TWO}?std=0.3", "--solvers", "ipndm-2,ddim")
    code, out, _ = call(monkeypatch, capsys, *asked, *models)
    assert code == 0
    frame = pd.read_parquet("moved/transfer.parquet")
    assert pq.read_schema("moved/transfer.parquet").names == TRANSFERS.names
    assert Path("moved/transfer.png").read_bytes()[:4] == b"\x89PNG"
    read = pd.read_csv("moved/transfer.csv")
    assert list(read.columns) == TRANSFERS.names
    assert read["eval_loss"].tolist() == pytest.approx(frame["eval_loss"].tolist())
    learned = frame[frame["kind"] == "learned"]
    assert len(learned) == 2 * 2 * 2
    assert "40 schedules and grids" in out
    evaluations = 2 * 10 * (12 + 2 * (4 + 1) * (3 + 4))
    assert f"{evaluations:,} network evaluations" in out
    said = re.findall(r"  (\S+), (\S+), \d evaluations: (\S+)x \(.*hand-made grid here", out)
    assert len(said) == 8
    for name, solver, ratio in said:
        rows = learned[(learned["schedule"] == name) & (learned["solver"] == solver)]
        assert any(1 / gain == pytest.approx(float(ratio), rel=0.06) for gain in rows["eval_gain"])
    matrix = out[out.index(" A  ") - 60 :].splitlines()
    assert max(map(len, matrix[:-1])) <= 80


def test_the_same_command_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("transfer", "poly-5.json", *FEW, "--out", "moved", "--baselines", "karras")
    assert call(monkeypatch, capsys, *asked)[0] == 0
    first = Path("moved/transfer.csv").read_text()

    def no_work(*_: object, **__: object) -> None:
        raise AssertionError("nothing is missing")

    monkeypatch.setattr(site_scores, "measure", no_work)
    monkeypatch.setattr(site_scores, "teach", no_work)
    assert call(monkeypatch, capsys, *asked)[0] == 0
    assert Path("moved/transfer.csv").read_text() == first


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (("--guidance", "3,x"), "--guidance 'x': is no number"),
        (("--sizes", "64y64"), "--sizes '64y64': write a size as 512"),
        (("--models", ","), "--models ',': is empty"),
        (("--jobs", 0), "--jobs 0"),
        (("--out", "full"), "exists already"),
        (("--models", "analytic:mixture-2d?noise=flow"), "--map lambda"),
        (("--map", "time"), "unknown mapping 'time'"),
    ],
)
def test_bad_input(
    given: tuple, match: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("full").mkdir()
    Path("full/mine.txt").write_text("")
    code, _, err = call(monkeypatch, capsys, "transfer", "poly-5.json", *FEW, *given)
    assert code == 2
    assert match in err
    assert "Traceback" not in err


LEARN = ("learn", "--model", TWO, "--solver", "ddim", "--nfe", 3, "--device", "cpu")


def test_learn_for_a_budget_says_its_plan_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = (*LEARN, "--teacher", "ddim/10/karras", "--out", "mine.json")
    code, out, _ = call(monkeypatch, capsys, *asked, "--budget", 3000)
    assert code in (0, 1)
    told = r"Plan: (\d+) \+ \d+ pairs, (\d+) epochs from later:log_snr: at most ([\d,]+)"
    plan = re.search(told, out)
    assert plan is not None
    assert 2000 < int(plan[3].replace(",", "")) <= 3000
    assert out.index("Plan:") < out.index("held-out")
    assert load_schedule("mine.json").nfe == 3


def test_a_budget_keeps_what_is_given_and_is_refused_where_it_is_too_small(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = (*LEARN, "--teacher", "ddim/10/karras")
    given = ("--pairs", 12, "--start", "karras", "--set", "batch=4")
    _, out, _ = call(monkeypatch, capsys, *asked, *given, "--out", "a.json", "--budget", 2000)
    assert "Plan: 12 + 12 pairs" in out
    assert "epochs from karras" in out
    code, _, err = call(monkeypatch, capsys, *asked, "--out", "b.json", "--budget", 100)
    assert code == 2
    assert "--budget: budget = 100: too small for one epoch" in err
    assert not Path("b.json").exists()
    both = ("--out", "b.json", "--budget", 3000, "--minutes", 1)
    code, _, err = call(monkeypatch, capsys, *asked, *both)
    assert code == 2
    assert "give one of the two" in err
