"""The same settings in Python, on the command line and in a sweep give the same schedule file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import call, elsewhere  # noqa: F401  a fixture

import ld3_dist as ld3
from ld3_dist.experiment import parse_experiment
from ld3_dist.store.opening import open_storage
from ld3_dist.tasks.baselines import run_baselines
from ld3_dist.tasks.planning import make_plan
from ld3_dist.tasks.teach import make_shard, seal
from ld3_dist.tasks.trial import run_trial

PROVENANCE = ("experiment", "row", "versions", "seeds")
MODEL, SOLVER, NFE, PAIRS, START = "analytic:mixture-2d", "dpmpp-2", 4, 6, "log_snr"
TEACHER = {"solver": "unipc-3", "nfe": 10, "start": "karras"}
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {"epochs": 3, "batch": 4, "gamma": 0.01},
    "paper": {"procedure": "paper", "epochs": 2, "lr": 0.01},
    "coefficients": {"epochs": 2, "coefficients": True, "coordinate": "time"},
}


def by_python(place: Path, settings: dict[str, Any], seed: int) -> None:
    model = ld3.load_model(MODEL)
    indices = [*range(PAIRS), *range(10**6, 10**6 + PAIRS)]
    pairs = ld3.teach(model, seed=seed, teacher="unipc-3/10/karras", indices=indices)
    schedule = ld3.learn(model, SOLVER, NFE, pairs, starts=[START], seed=seed, **settings)
    schedule.save(place)


def by_sweep(folder: Path, settings: dict[str, Any], seed: int) -> Path:
    """The tasks of a sweep, one after the other."""
    experiment = parse_experiment(
        {
            "seed": seed,
            "models": [MODEL],
            "solvers": [SOLVER],
            "nfe": [NFE],
            "teacher": TEACHER,
            "pairs": {"train": PAIRS, "valid": PAIRS},
            "learn": settings,
            "search": {"members": {"seeds": 1, "starts": [START]}},
            "evaluate": {"samples": 0},
        }
    )
    plan, storage = make_plan(experiment), open_storage(folder)
    (model,), (cell,) = experiment.models, plan.cells
    for start, stop in plan.shards():
        make_shard(plan, model, storage, start, stop, "cpu")
    seal(plan, model, storage)
    run_baselines(plan, cell, storage, "cpu")
    spec = plan.trial(cell, {})
    run_trial(plan, spec, storage, {"round": 0, "attempts": 1}, "cpu")
    return folder / f"schedules/{spec.keys[0]}.json"


@pytest.mark.parametrize("seed", [0, 3])
@pytest.mark.parametrize("kind", list(SETTINGS))
def test_three_doors_lead_to_the_same_file(
    kind: str,
    seed: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = SETTINGS[kind]
    by_python(tmp_path / "python.json", settings, seed)
    options = [
        part for key, value in settings.items() for part in ("--set", f"{key}={value}".lower())
    ]
    code, said, err = call(
        monkeypatch, capsys, "learn", "--model", MODEL, "--solver", SOLVER, "--nfe", NFE,
        "--pairs", PAIRS, "--teacher", "unipc-3/10/karras", "--start", START, "--seed", seed,
        "--device", "cpu", *options, "--out", tmp_path / "command.json",
    )  # fmt: skip
    assert code == 0, said + err
    files = [tmp_path / "python.json", tmp_path / "command.json"]
    files.append(by_sweep(tmp_path / "sweep", settings, seed))
    python, command, sweep = (json.loads(file.read_text()) for file in files)
    for body in (python, command, sweep):
        assert {key: body.pop(key) is not None for key in PROVENANCE}["versions"]
    assert python == command
    grids = python.pop("baselines"), sweep.pop("baselines")
    assert list(grids[0]) == list(grids[1])
    for name, losses in grids[0].items():
        assert losses["valid_loss"] == pytest.approx(grids[1][name]["valid_loss"], rel=1e-12), name
    assert python == sweep
