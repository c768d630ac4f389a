"""The extension drill: everything that is open is added from outside, in one file each, and a
sweep from one YAML uses all of it. Bad versions of each are refused before any work.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from command_line import call, elsewhere  # noqa: F401  a fixture

from ld3_dist import Schedule, load_results, load_schedule
from ld3_dist.core.errors import InputError
from ld3_dist.core.grid import discretize
from ld3_dist.core.noise import EDM
from ld3_dist.core.sample import draw_noise
from ld3_dist.core.solver import make_solver
from ld3_dist.experiment import load_experiment
from ld3_dist.experiment.plan import Plan
from ld3_dist.models import load_model
from ld3_dist.report import read_sweep_tables
from ld3_dist.schedule.export import export_sigmas
from ld3_dist.tasks.planning import make_plan

HERE = Path(__file__).parent
SOLVER = "extrapolated_solver.py:extrapolated?weight=0.25"
START = "blended_start.py:blended"
FILES = sorted(path.name for path in (HERE / "files").glob("*.py"))


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files and the YAML; names in it are relative to the working folder."""
    folder = tmp_path / "mine"
    shutil.copytree(HERE / "files", folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(HERE / "sweep.yaml", folder)
    monkeypatch.chdir(folder)
    return folder


def settings(folder: Path) -> dict[str, Any]:
    return yaml.safe_load((folder / "sweep.yaml").read_text())


def test_every_file_is_short() -> None:
    assert len(FILES) == 8
    for name in FILES:
        assert len((HERE / "files" / name).read_text().splitlines()) <= 30, name


@pytest.mark.cluster
def test_a_sweep_of_extensions(
    mine: Path,
    local_ray: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = mine.parent / "out"
    code, said, err = call(monkeypatch, capsys, "sweep", "sweep.yaml", "--output", out)
    assert code == 0, said + err
    frame = load_results(out)
    check_rows(frame)
    check_scores(out, frame)
    check_schedules(out, frame, mine)
    page = (out / "report/index.html").read_text()
    assert "Smallest gaps" in page
    assert "could not be drawn" not in page
    summary = (out / "report/summary.md").read_text()
    for text in (SOLVER, START, "gap.mean learned", "steep_procedure.py:Steep"):
        assert text in summary, text
        assert text.replace(" learned", "") in page, text
    assert str(mine) not in summary  # files are shown without their folders
    before = {path: path.read_bytes() for path in (out / "rows").iterdir()}
    evaluated = sorted(path.name for path in (out / "evaluations").rglob("*"))
    code, said, err = call(monkeypatch, capsys, "sweep", "sweep.yaml", "--output", out)
    assert code == 0, said + err
    assert {path: path.read_bytes() for path in (out / "rows").iterdir()} == before
    assert sorted(path.name for path in (out / "evaluations").rglob("*")) == evaluated


def check_rows(frame: pd.DataFrame) -> None:
    assert (frame["status"] == "ok").all()
    assert set(frame["cell"]) == {f"{model}/{SOLVER}/3" for model in ("ring", "stretched")}
    assert set(frame["solver"]) == {SOLVER}
    assert set(frame["distance"]) == {"huber_distance.py:huber"}
    learned = frame[frame["kind"] == "learned"]
    assert len(learned) == 4
    assert set(learned["procedure"]) == {"steep_procedure.py:Steep"}
    assert sorted(learned["learn.steepness"]) == [1.0, 1.0, 3.0, 3.0]
    assert set(learned["start"]) == {START}
    assert set(frame[frame["kind"] == "baseline"]["start"]) == {"uniform", START}
    # held-out losses are in the distance of the experiment, whatever was learned from
    grids = frame[(frame["kind"] == "baseline") & (frame["start"] == START)].set_index("cell")
    for _, row in learned.iterrows():
        known = float(grids.loc[row["cell"], "valid_loss"])
        assert math.isclose(row["start_loss"], known, rel_tol=1e-5)
    best = learned[learned["best"]]
    assert (best["valid_loss"] < best["start_loss"]).all()


def check_scores(out: Path, frame: pd.DataFrame) -> None:
    scores = read_sweep_tables(out).evaluations.set_index("key")
    assert [key for key in scores.index if key.startswith("data:")]
    ring = frame[(frame["model"] == "ring") & frame["best"]].iloc[0]
    assert ring["extractor"] == "radius"
    assert ring["reference"] == "data of ring_model.py:build"
    for column in ("metric.gap.mean", "metric.gap.variance", "fid"):
        assert math.isfinite(ring[column]), column
    assert "metric.gap" not in frame
    other = frame[(frame["model"] == "stretched") & frame["best"]].iloc[0]
    assert (other["extractor"], other["reference"]) == ("identity", "teacher")


def check_schedules(out: Path, frame: pd.DataFrame, mine: Path) -> None:
    row = frame[(frame["model"] == "stretched") & frame["best"]].iloc[0]
    schedule = load_schedule(out / f"schedules/{row['key']}.json")
    assert schedule.solver == f"python:{mine}/{SOLVER}"
    assert schedule.order == 1
    assert schedule.start == START
    assert schedule.metrics["metric.gap.mean"] == pytest.approx(row["metric.gap.mean"])
    name = f"analytic:gaussian?shape=2&std=0.5&noise=python:{mine}/stretched_noise.py:Stretched"
    assert schedule.noise["name"] == f"python:{mine}/stretched_noise.py:Stretched"
    model = load_model(name)
    expected = spread(schedule, 1.5, 0.5) * draw_noise(1, range(9), (2,)).double()
    torch.testing.assert_close(schedule.sample(model, n=9, seed=1).double().abs(), expected.abs())
    levels = [s / a for s, a in zip(schedule.noise["sigma"], schedule.noise["alpha"], strict=True)]
    assert export_sigmas(schedule)[:-1] == pytest.approx(levels[:-1])
    with pytest.raises(InputError, match="those of another noise schedule"):
        schedule.sample(load_model("analytic:gaussian?shape=2"), n=2)


def spread(schedule: Schedule, p: float, std: float) -> float:
    """Standard deviation of the samples for data N(0, std^2), where D(x, t) = c(t) x."""
    states: list[float] = [1.0]
    made: list[float] = []
    for i, t in enumerate(schedule.evals):
        alpha = math.exp(-(t**p))
        c = alpha * std**2 / (alpha**2 * std**2 + 1 - alpha**2)
        made.append(c * states[i])
        row = schedule.outputs[i + 1]
        states.append(schedule.state[i + 1] + sum(w * m for w, m in zip(row, made, strict=False)))
    return abs(states[-1])


def test_the_solver_is_what_it_says() -> None:
    noise, own = EDM(), f"python:{HERE}/files/extrapolated_solver.py:extrapolated"
    knots = discretize(noise, 5, "karras")
    tables = [
        solver.tableau(noise, solver.coupled(noise, knots))
        for solver in map(make_solver, (f"{own}?weight=0", "ddim", own))
    ]
    torch.testing.assert_close(tables[0].outputs, tables[1].outputs, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(tables[0].outputs, tables[2].outputs)


def plan_of(folder: Path) -> Plan:
    return make_plan(load_experiment(folder / "sweep.yaml"))


def keys(plan: Plan) -> list[str]:
    trials = [plan.trial(cell, point).key for cell in plan.cells for point in plan.points()]
    bases = [key for cell in plan.cells for key, *_ in plan.baselines(cell)]
    teachers = [plan.teacher_key(model) for model in plan.experiment.models]
    return [plan.fingerprint, *teachers, *bases, *trials]


def test_keys_follow_the_content_of_files_not_their_place(
    mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = keys(plan_of(mine))
    other = mine.parent / "elsewhere"
    shutil.copytree(mine, other)
    monkeypatch.chdir(other)
    assert keys(plan_of(other)) == first


@pytest.mark.parametrize(
    ("file", "teachers", "rows"),
    [
        ("extrapolated_solver.py", 0, 8),
        ("huber_distance.py", 0, 8),
        ("steep_procedure.py", 0, 4),
        ("blended_start.py", 2, 8),
        ("ring_model.py", 1, 4),
        ("stretched_noise.py", 1, 4),
        ("gap_metric.py", 0, 0),
    ],
)
def test_an_edited_file_gives_new_keys(mine: Path, file: str, teachers: int, rows: int) -> None:
    """How many of two teachers and of four baselines and four trials get another key."""
    before = keys(plan_of(mine))
    with (mine / file).open("a") as opened:
        opened.write("\n# edited\n")
    after = keys(plan_of(mine))
    changed = [a != b for a, b in zip(before, after, strict=True)]
    assert changed[0]
    assert (sum(changed[1:3]), sum(changed[3:])) == (teachers, rows)


def test_the_figure_alone_changes_no_key(mine: Path) -> None:
    before = keys(plan_of(mine))
    (mine / "gap_figure.py").write_text("smallest_gaps = print\n")
    assert keys(plan_of(mine)) == before
