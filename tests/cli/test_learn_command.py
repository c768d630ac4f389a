"""`ld3-dist learn`: presets, coefficients, starts from a neighbour's schedule; NaN, too little
memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import FakeSweep, call, elsewhere  # noqa: F401
from schedules import coupled_schedule
from tiny_sweep import changed, write

from ld3_dist import load_results, load_schedule
from ld3_dist.core.grid import Grid, discretize, resample
from ld3_dist.core.learning.learn import Pairs, Problem, learn
from ld3_dist.core.noise import EDM
from ld3_dist.core.sample import draw_noise
from ld3_dist.core.solver import make_solver
from ld3_dist.experiment import load_experiment
from ld3_dist.models import open_model
from ld3_dist.schedule.starts import start_knots
from ld3_dist.store.opening import open_storage
from ld3_dist.tasks.baselines import run_baselines
from ld3_dist.tasks.planning import make_plan
from ld3_dist.tasks.teach import make_shard, missing_shards, seal
from ld3_dist.tasks.trial import run_trial

LEARN = (
    "learn",
    "--model",
    "analytic:mixture-2d",
    "--out",
    "mine.json",
    "--pairs",
    6,
    "--device",
    "cpu",
)


def watched(found: dict[str, Any]) -> Any:
    """`learn` of the core, which notes what it was asked for."""

    def noted(problem: Problem, config: Any, resume: Any = None) -> Any:
        found.update(knots=problem.knots, config=config)
        return learn(problem, config, resume=resume)

    return noted


def test_learn_from_the_schedule_of_a_neighbour(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    four = coupled_schedule(EDM(), 4, "poly-3")
    four.save("four.json")
    knots = torch.tensor(four.knots, dtype=torch.float64)
    found = {}
    monkeypatch.setattr("ld3_dist.schedule.learning.learn_members", watched(found))
    starts = ("--start", "four.json", "--start", "uniform", "--start", "log_snr")
    code, out, _ = call(monkeypatch, capsys, *LEARN, "--nfe", 6, "--epochs", 1, *starts)
    assert code == 0
    torch.testing.assert_close(found["knots"][0], resample(EDM(), knots, 6))
    torch.testing.assert_close(found["knots"][1], discretize(EDM(), 6, "uniform"))
    # uniform in time^(1/3), as the neighbour is, to what a cubic through five points can know
    assert (found["knots"][0] ** (1 / 3)).diff().std() < 0.15
    assert "started from " in out


@pytest.mark.parametrize(
    ("options", "starts"),
    [
        ((), ("log_snr", "optimal-steps")),
        (("--procedure", "paper"), ("log_snr",)),
        (("--start", "karras"), ("karras",)),
    ],
)
def test_what_a_preset_starts_from(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    starts: tuple[str],
) -> None:
    found = {}
    monkeypatch.setattr("ld3_dist.schedule.learning.learn_members", watched(found))
    code, *_ = call(monkeypatch, capsys, *LEARN, "--nfe", 4, "--epochs", 1, *options)
    assert code in (0, 1)  # one epoch need not beat the best hand-made grid
    opened, solver = open_model("analytic:mixture-2d"), make_solver("ipndm-3")
    pairs = Pairs(
        draw_noise(0, range(10**6, 10**6 + 6), (2,)),
        torch.empty(6, 2),
        opened.draw_condition(0, range(10**6, 10**6 + 6)),
    )
    expected = [start_knots(name, opened, solver, 4, pairs) for name in starts]
    torch.testing.assert_close(found["knots"], torch.stack(expected))


def test_an_unknown_start_is_told_of_all_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call(monkeypatch, capsys, *LEARN, "--nfe", 4, "--start", "optimal-step")
    assert code == 2
    assert "--start: unknown start 'optimal-step': did you mean 'optimal-steps'" in err
    assert "Traceback" not in out + err


@pytest.mark.parametrize(
    ("options", "learned", "epochs"),
    [
        (("--procedure", "paper"), {"procedure": "paper", "lr": 0.005, "batch": 2}, 7),
        (("--procedure", "paper", "--epochs", 2), {"procedure": "paper", "lr_noise": 12.0}, 2),
        (
            ("--coefficients", "--epochs", 3, "--checkpointing", "always"),
            {"coefficients": True, "checkpointing": "always"},
            3,
        ),
    ],
)
def test_learn_with_another_recipe(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    learned: dict[str, Any],
    epochs: int,
) -> None:
    found = {}
    monkeypatch.setattr("ld3_dist.schedule.learning.learn_members", watched(found))
    code, _, _ = call(monkeypatch, capsys, *LEARN, "--nfe", 4, *options)
    assert code == 0
    assert learned | {"epochs": epochs} == {
        key: getattr(found["config"], key) for key in [*learned, "epochs"]
    }
    schedule = load_schedule("mine.json")
    solver = make_solver("ipndm-3")
    table = solver.tableau(
        EDM(),
        Grid(*(torch.tensor(v, dtype=torch.float64) for v in (schedule.knots, schedule.evals))),
    )
    own = torch.allclose(table.outputs, schedule.tableau.outputs, atol=1e-9)
    assert schedule.coefficients == (not own) == learned.get("coefficients", False)


SMALL_MEMORY = """
import torch
from ld3_dist.models import open_model

def build(most):
    inner = open_model("analytic:mixture-2d").denoiser
    class Model(torch.nn.Module):
        noise, shape = inner.noise, inner.shape
        def forward(self, x, t, condition=None):
            if len(x) > most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB")
            return inner(x, t)
        def decode(self, x0):
            return x0
    return Model()

def large(options): return build(10**6)
def small(options): return build(3)
def none(options):
    model = build(2)  # enough to be opened
    model.forward_ = model.forward
    def forward(x, t, condition=None):
        if t.max() > 10:
            raise RuntimeError("[alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        return model.forward_(x, t)
    model.forward = forward
    return model
"""


def test_more_members_than_memory_go_through_in_parts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, caplog: Any
) -> None:
    (tmp_path / "memory.py").write_text(SMALL_MEMORY)
    found = {}
    for factory in ("large", "small"):
        options = (
            "--nfe",
            3,
            "--epochs",
            2,
            "--model",
            f"python:memory.py:{factory}",
            "--out",
            f"{factory}.json",
        )
        code, _, _ = call(monkeypatch, capsys, *LEARN, *options)
        assert code == 0
        found[factory] = load_schedule(f"{factory}.json")
    assert "out of memory with 12 samples at once: going on with 6" in caplog.text
    assert found["small"].knots == pytest.approx(found["large"].knots, rel=1e-3)
    assert found["small"].losses["valid_loss"] == pytest.approx(
        found["large"].losses["valid_loss"], rel=1e-3
    )


def test_no_memory_for_a_single_sample(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "memory.py").write_text(SMALL_MEMORY)
    code, out, err = call(
        monkeypatch, capsys, *LEARN, "--nfe", 3, "--model", "python:memory.py:none"
    )
    assert code == 2
    assert "not even one sample fits into memory" in err
    assert "Traceback" not in out + err


NAN_MODEL = """
import torch
from ld3_dist.core.noise import EDM
from ld3_dist.core.denoiser import NetworkDenoiser

def build(worst, nan_above):
    class Model(torch.nn.Module):
        noise, shape = EDM(), (2,)
        def forward(self, x, t, condition=None):
            bad = (t > nan_above) & (t < worst)
            return torch.where(bad[:, None], torch.nan, x / (1 + t[:, None] ** 2))
        def decode(self, x0):
            return x0
    return Model()

def always(options): return build(1e9, -1)
def in_the_middle(options): return build(0.5, 0.3)
"""


@pytest.mark.parametrize(
    ("factory", "teacher", "exit_code", "say"),
    [
        ("always", "unipc-3/12/karras", 2, "returned values that are not finite at t = 1"),
        (
            "in_the_middle",
            "unipc-3/12/karras",
            1,
            "12 of 12 samples of the teacher unipc-3/12/karras are not finite",
        ),
        # the teacher's two steps pass the hole, the start has a knot in it
        ("in_the_middle", "euler/2/uniform", 1, "held-out loss was inf from the start on"),
    ],
)
def test_models_that_diverge(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    factory: str,
    teacher: str,
    exit_code: int,
    say: str,
) -> None:
    (tmp_path / "bad.py").write_text(NAN_MODEL)
    options = (
        "--model",
        f"python:bad.py:{factory}",
        "--teacher",
        teacher,
        "--start",
        "log_snr",
        "--epochs",
        2,
    )
    code, out, err = call(monkeypatch, capsys, *LEARN, "--nfe", 4, *options)
    assert code == exit_code
    assert say in out + err
    assert "Traceback" not in out + err
    assert not (tmp_path / "mine.json").exists()


def test_a_sweep_of_a_model_that_diverges_records_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """What the workers do, done here; then the command's end: rows with status diverged, exit code
    1.
    """
    (tmp_path / "bad.py").write_text(NAN_MODEL)
    settings = changed(
        name="nan",
        models=["python:bad.py:in_the_middle"],
        solvers=["ddim"],
        nfe=[4],
        baselines=["log_snr", "karras"],
        teacher={"solver": "euler", "nfe": 2, "start": "uniform"},
        evaluate={"samples": 4},
    ) | {"search": {"members": {"seeds": 2, "starts": ["log_snr"]}}}
    file, storage = write(tmp_path, settings), open_storage(tmp_path / "out")
    plan = make_plan(load_experiment(file))
    (model,), (cell,) = plan.experiment.models, plan.cells
    for start, stop in missing_shards(plan, model, storage)[0]:
        make_shard(plan, model, storage, start, stop, "cpu")
    seal(plan, model, storage)
    run_baselines(plan, cell, storage, "cpu")
    outcome = run_trial(plan, plan.trial(cell, {}), storage, {"round": 0, "attempts": 1}, "cpu")
    assert outcome.status == "diverged"
    monkeypatch.setattr("ld3_dist.cluster.sweep.Sweep", FakeSweep)
    code, out, err = call(monkeypatch, capsys, "sweep", file, "--output", tmp_path / "out")
    assert code == 1
    assert "every learned schedule diverged" in " ".join(out.split())
    assert "Traceback" not in out + err
    rows = load_results(tmp_path / "out")
    learned = rows[rows["kind"] == "learned"]
    assert learned["status"].tolist() == ["diverged"] * 2
    assert all(
        "held-out loss was inf from the start on" in message for message in learned["message"]
    )
    assert set(rows.loc[rows["start"] == "karras", "status"]) == {"ok"}
    assert not list((tmp_path / "out").glob("schedules/*"))


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        (
            {"models": ["digits"], "distance": "lpips-vgg"},
            ["lpips-vgg needs images of at least 16 pixels", "upsample"],
        ),
        (
            {"search": {"members": {"starts": ["karas"]}}},
            ["unknown start 'karas': did you mean 'karras'"],
        ),
        ({"pairs": {"train": 1}}, ["pairs.train = 1"]),
        ({"pairs": {"train": 0}}, ["pairs.train = 0"]),
        ({"pairs": {"valid": 0}}, ["pairs.valid = 0"]),
    ],
)
def test_sweeps_that_cannot_learn_are_refused_before_anything_is_written(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    settings: dict[str, Any],
    parts: list[str],
) -> None:
    file = write(tmp_path, changed(**settings))
    code, out, err = call(monkeypatch, capsys, "sweep", file, "--output", tmp_path / "out")
    assert code == 2
    for part in parts:
        assert part in err
    assert "Traceback" not in out + err
    assert not (tmp_path / "out").exists()
