"""Published schedules as baselines of a sweep: `file:FILE`, with their own tables and sources."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from edm_pickles import format_modules
from growing import version
from plain_sweep import sweep
from published_files import dyweight_file
from schedules import one_thread  # noqa: F401

import ld3_dist as ld3
from ld3_dist.core.errors import InputError
from ld3_dist.core.sample import initial_state, sample
from ld3_dist.core.solver import make_solver
from ld3_dist.core.user_code import absolute, label
from ld3_dist.experiment import Plan, parse_experiment
from ld3_dist.schedule.file import load_schedule
from ld3_dist.schedule.imports import import_schedule
from ld3_dist.schedule.starts import start_knots
from ld3_dist.store import lock as locks
from ld3_dist.store.opening import open_storage
from ld3_dist.store.tables import read_table
from ld3_dist.tasks.opened import model_of
from ld3_dist.tasks.planning import make_plan

__all__ = ["format_modules"]


def published(folder: Path, plan: Plan) -> dict[str, str]:
    """Names of a schedule with a table of its own in 3 evaluations, and of a list of levels."""
    model = model_of(plan.models[0], "cpu")
    weights = torch.tensor([[1.1, 0, 0], [-0.4, 1.3, 0], [0, -0.2, 1.1]])
    file = dyweight_file(folder / "net.pkl", weights, torch.tensor([0.95, 1.01, 1.0]))
    import_schedule(file, "dyweight", model).schedule.save(folder / "theirs.json")
    (folder / "list.txt").write_text("80, 20, 5, 1, 0.1, 0.002")
    return {"own": f"file:{folder}/theirs.json", "list": f"file:{folder}/list.txt"}


def test_a_sweep_measures_and_scores_published_schedules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format_modules: None
) -> None:
    monkeypatch.setattr(locks, "SETTLE", 0.01)
    names = published(tmp_path, make_plan(parse_experiment(version())))
    given = version(baselines=["karras", *names.values()], nfe=[3, 4])
    storage = open_storage(tmp_path / "out")
    plan = sweep(storage, given)
    rows = read_table(storage, "rows")
    base = rows[rows["kind"] == "baseline"].set_index(["start", "nfe"])
    scores = read_table(storage, "evaluations").set_index("key")
    model = model_of(plan.models[0], "cpu")
    settings = json.loads(base.loc[("file:theirs.json", 3), "settings"])
    assert settings["source"].startswith("DyWeight (arXiv 2603.11607): net.pkl, sha256 ")
    assert "schedule" not in json.loads(base.loc[("file:theirs.json", 4), "settings"])
    assert "list.txt" in json.loads(base.loc[("file:list.txt", 3), "settings"])["source"]

    own = load_schedule(tmp_path / "theirs.json")
    assert tuple(base.loc[("file:theirs.json", 3), "evals"]) == own.evals
    teacher = ld3.teach(model, indices=range(*plan.eval_range), teacher=plan.teacher)
    made = sample(model.denoiser, own.tableau, initial_state(model.denoiser, teacher.noise))
    loss = ((made - teacher.target) ** 2).flatten(1).mean(1).double().mean()
    key = base.loc[("file:theirs.json", 3), "key"]
    assert scores.loc[key, "eval_loss"] == pytest.approx(float(loss), rel=1e-5)
    # its knots alone, where the number of evaluations is another; the list likewise
    for name, at in (("theirs.json", 4), ("list.txt", 3)):
        row = base.loc[(f"file:{name}", at)]
        knots = start_knots(f"file:{tmp_path}/{name}", model, make_solver("ddim"), at)
        assert list(row["knots"]) == pytest.approx(knots.tolist(), rel=1e-9)
        assert list(row["evals"]) == pytest.approx(knots[:-1].tolist(), rel=1e-9)


def test_keys_hold_the_content_of_the_file_and_not_its_place(
    tmp_path: Path, format_modules: None
) -> None:
    plans = []
    for folder, numbers in (("a", "80, 1, 0.002"), ("b", "80, 1, 0.002"), ("c", "80, 2, 0.002")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "list.txt").write_text(numbers)
        given = version(baselines=[f"file:{tmp_path}/{folder}/list.txt"])
        plans.append(make_plan(parse_experiment(given)))
    first, second, third = ([row[0] for row in p.baselines(p.cells[0])] for p in plans)
    assert first == second != third
    assert label("file:/a/b/list.txt") == "file:list.txt"
    assert absolute("file:list.txt") == f"file:{Path.cwd()}/list.txt"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot be read .No such file"),
        ("80, 90", "sigmas must decrease"),
        ('{"format": 2}', "key 'knots' is missing"),
        ("999, 20, 1", "times in 0..1000"),
    ],
)
def test_files_that_are_no_schedules_are_refused_before_any_work(
    tmp_path: Path, text: str | None, said: str
) -> None:
    if text is not None:
        (tmp_path / "x.json").write_text(text)
    given = version(baselines=[f"file:{tmp_path}/x.json"])
    with pytest.raises(InputError, match=rf"x\.json: .*{said}"):
        make_plan(parse_experiment(given))
    with pytest.raises(InputError, match="names no file; write file:their"):
        parse_experiment(version(baselines=["file:"]))


def test_evaluate_takes_a_published_schedule_by_name(tmp_path: Path, format_modules: None) -> None:
    model = ld3.load_model("analytic:mixture-2d")
    (tmp_path / "list.txt").write_text("80, 10, 2, 0.4, 0.002")
    made = import_schedule(tmp_path / "list.txt", "sigmas", model, "dpmpp-2").schedule
    made.save(tmp_path / "mine.json")
    names = [f"file:{tmp_path}/{name}" for name in ("list.txt", "mine.json")]
    frame = ld3.evaluate(model, [*names, made], 20, solver="dpmpp-2", nfe=4)
    losses = frame["eval_loss"].tolist()[-3:]
    assert losses == pytest.approx([losses[-1]] * 3, rel=1e-6)
