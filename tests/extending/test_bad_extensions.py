"""Bad code of a user's own: one message with the name and what to do, exit code 2."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import warm_python
import yaml
from command_line import call, elsewhere  # noqa: F401  a fixture

TOP = Path(__file__).parents[2]
SMALL: dict[str, Any] = {
    "models": ["analytic:mixture-2d"],
    "solvers": ["ddim"],
    "nfe": [3],
    "teacher": {"nfe": 5},
    "pairs": {"train": 4, "valid": 4},
    "learn": {"epochs": 1},
    "search": {"members": {"seeds": 1, "starts": ["uniform"]}},
    "baselines": ["uniform"],
    "evaluate": {"samples": 8},
}
PLACES = {
    "solver": ("solvers", ["python:own.py:NAME"]),
    "noise": ("models", ["analytic:gaussian?shape=2&noise=python:own.py:NAME"]),
    "distance": ("distance", "python:own.py:NAME"),
    "metric": ("evaluate", {"samples": 8, "metrics": ["python:own.py:NAME"]}),
    "extractor": ("evaluate", {"samples": 8, "extractor": "python:own.py:NAME"}),
    "start": ("baselines", ["python:own.py:NAME"]),
    "model": ("models", ["python:own.py:NAME"]),
    "procedure": ("learn", {"procedure": "python:own.py:NAME", "epochs": 1}),
    "figure": ("report", {"figures": ["python:own.py:NAME"]}),
}
"""Where the YAML takes a name of each kind. A model needs a `name:` where its own holds a `?`."""

PROCEDURE = """
import math
from dataclasses import dataclass
import torch
from ld3_dist.core.learning.config import LearnConfig, setting
from ld3_dist.core.learning.descent import Descent, DescentConfig
from ld3_dist.core.learning.objective import Objective

class Lost(Objective):
    def gradients(self, *given):
        return super().gradients(*given) * math.nan
    def losses(self, *given):
        return super().losses(*given) * math.nan

class NotFinite(Descent):
    @classmethod
    def make_objective(cls, problem, config):
        return Lost(problem.denoiser, problem.distance)
    def hard_loss(self, tableau, rows=None):
        return super().hard_loss(tableau, rows) * math.nan

class Raises(Descent):
    def epoch(self, epoch):
        raise KeyError("no such thing")

class WithoutDefault(Descent):
    @dataclass(frozen=True, kw_only=True)
    class Config(DescentConfig):
        extra: float

class WithoutStarts(Descent):
    starts = ()
"""

CASES: list[tuple[str, str, str, list[str]]] = [
    ("solver", "NAME = lambda: 3", "NAME", ["made a int", "need a Solver"]),
    ("solver", "def NAME(): raise KeyError('x')", "NAME", ["cannot be made", "KeyError"]),
    (
        "solver",
        "from ld3_dist.core.solver import Solver\n"
        "NAME = lambda: Solver('x', 1, lambda points: 1 / 0)",
        "NAME",
        ["its rule fails", "ZeroDivisionError"],
    ),
    (
        "solver",
        "from ld3_dist.core.solver import Solver, make_solver\n"
        "def NAME():\n"
        "    rule = make_solver('ddim').rule\n"
        "    return Solver('x', 1, lambda points: [part / 0 for part in rule(points)])",
        "NAME",
        ["coefficients", "not finite"],
    ),
    ("noise", "def NAME(): pass", "NAME", ["must be a class that derives from"]),
    ("distance", "def NAME(a, b): return 1.0", "NAME", ["one number for each"]),
    ("distance", "def NAME(a, b): return a.nope", "NAME", ["fails on samples"]),
    (
        "distance",
        "def NAME(a, b): return (a - b).detach().flatten(1).mean(1)",
        "NAME",
        ["gradient"],
    ),
    ("distance", "def NAME(): return 1 / 0", "NAME", ["cannot be made"]),
    ("metric", "def NAME(samples, reference): return samples.nope", "NAME", ["fails on 64 random"]),
    ("metric", "def NAME(samples, reference): return 'word'", "NAME", ["fails on 64 random"]),
    ("metric", "def NAME(samples): return 1.0", "NAME", ["fails on 64 random", "is called with"]),
    ("extractor", "def NAME(argument, model, device): return 3", "NAME", ["returned int"]),
    ("extractor", "def NAME(model): return None", "NAME", ["cannot be opened", "is called with"]),
    ("start", "def NAME(problem): return [1.0]", "NAME", ["made list", "need knots [4]"]),
    ("start", "def NAME(problem): raise RuntimeError('x')", "NAME", ["fails (RuntimeError: x)"]),
    (
        "start",
        "import torch\ndef NAME(problem): return torch.linspace(80, 1, 4)",
        "NAME",
        ["start", "t_min"],
    ),
    ("model", "def NAME(options): return 3", "NAME", ["int"]),
    ("model", "def NAME(options): raise ValueError('x')", "NAME", ["the factory fails"]),
    ("procedure", "def NAME(): pass", "NAME", ["must be a class that derives from"]),
    ("procedure", PROCEDURE, "NotFinite", ["yields no finite held-out loss"]),
    ("procedure", PROCEDURE, "Raises", ["fails in its first epoch", "no such thing"]),
    ("procedure", PROCEDURE, "WithoutDefault", ["setting 'extra' needs a default"]),
    ("procedure", PROCEDURE, "WithoutStarts", ["name at least one start"]),
]


def experiment(kind: str, name: str) -> dict[str, Any]:
    key, value = PLACES[kind]
    value = json.loads(json.dumps(value).replace("NAME", name))
    if key == "models":
        value = [{"model": value[0], "name": "own"}]
    return {**SMALL, key: value}


def refused(
    kind: str, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    """The message of a sweep that must end with code 2 before it writes anything."""
    Path("bad.yaml").write_text(yaml.safe_dump(experiment(kind, name)))
    code, said, err = call(monkeypatch, capsys, "sweep", "bad.yaml", "--output", "out")
    assert code == 2, said + err
    assert "Traceback" not in said + err
    assert "Error:" in err
    assert not Path("out").exists()
    return err


@pytest.mark.parametrize(("kind", "code", "name", "words"), CASES)
def test_bad_code_is_named_before_any_work(
    kind: str,
    code: str,
    name: str,
    words: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("own.py").write_text(code)
    message = refused(kind, name, monkeypatch, capsys)
    for word in (*words, "own.py" if kind != "noise" else "noise"):
        assert word in message, message


@pytest.mark.parametrize("kind", list(PLACES))
@pytest.mark.parametrize(
    ("code", "name", "word"),
    [
        (None, "NAME", "not found"),
        ("other = print", "NAME", "unknown name"),
        ("NAME = 3", "NAME", "int"),
        ("import nowhere_to_be_found", "NAME", "fails while it is imported"),
        ("def NAME(:", "NAME", "line 1"),
    ],
)
def test_a_name_that_leads_nowhere(
    kind: str,
    code: str | None,
    name: str,
    word: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if code is not None:
        Path("own.py").write_text(code)
    message = refused(kind, name, monkeypatch, capsys)
    assert word in message, message
    assert "own.py" in message


def test_two_files_of_one_name_are_told_apart_or_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("a", "b"):
        Path(folder).mkdir()
        Path(folder, "own.py").write_text("def NAME(problem): return problem\n")
    data = {**SMALL, "baselines": [f"python:{folder}/own.py:NAME" for folder in ("a", "b")]}
    Path("bad.yaml").write_text(yaml.safe_dump(data))
    code, _, err = call(monkeypatch, capsys, "sweep", "bad.yaml", "--output", "out")
    assert code == 2
    assert "baselines: 'own.py:NAME' stands there twice" in err


def test_a_schedule_of_another_noise_schedule(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import ld3_dist as ld3

    model = ld3.load_model("analytic:gaussian?shape=2&noise=vp-linear")
    other = ld3.learn(model, "ddim", 3, ld3.teach(model, 6), starts=["uniform"], epochs=1)
    other.save("other.json")
    for places in ({"baselines": ["other.json"]}, {"teacher": {"start": "other.json", "nfe": 5}}):
        Path("bad.yaml").write_text(yaml.safe_dump({**SMALL, **places}))
        code, _, err = call(monkeypatch, capsys, "sweep", "bad.yaml", "--output", "out")
        assert code == 2
        assert "another noise schedule" in err
        assert "other.json" in err
        assert not Path("out").exists()
    code, _, err = call(
        monkeypatch, capsys, "learn", "--model", "analytic:mixture-2d", "--nfe", 3,
        "--start", "other.json", "--out", "new.json", "--device", "cpu",
    )  # fmt: skip
    assert code == 2
    assert "another noise schedule" in err
    assert not Path("new.json").exists()


def test_no_finite_loss_on_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ld3_dist.schedule import teaching

    Path("own.py").write_text(PROCEDURE)
    monkeypatch.setattr(teaching, "make_samples", lambda *_: pytest.fail("work was done"))
    code, _, err = call(
        monkeypatch, capsys, "learn", "--model", "analytic:mixture-2d", "--nfe", 3,
        "--procedure", "python:own.py:NotFinite", "--out", "new.json", "--device", "cpu",
    )  # fmt: skip
    assert code == 2
    assert "python:own.py:NotFinite" in err
    assert "no finite held-out loss" in err
    assert not Path("new.json").exists()


PLUGIN = """
from ld3_dist.core.grid import discretize
from ld3_dist.schedule.starts import starts

@starts.register("half-karras")
def half_karras(problem):
    return discretize(problem.noise, problem.steps, "karras")
"""


def distribution(folder: Path, name: str, module: str, code: str) -> None:
    """What installing a package leaves behind: a module, and metadata with an entry point."""
    (folder / f"{module}.py").write_text(code)
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[ld3_dist]\n{module} = {module}\n")


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(folder), str(TOP)])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return warm_python.run(["-m", "ld3_dist.cli", *arguments], folder, environment)


LEARN = (
    "learn", "--model", "analytic:mixture-2d", "--nfe", "3", "--solver", "ddim", "--pairs", "4",
    "--epochs", "1", "--device", "cpu", "--out", "made.json",
)  # fmt: skip


def test_a_start_of_an_installed_package(tmp_path: Path) -> None:
    distribution(tmp_path, "starts-of-mine", "starts_of_mine", PLUGIN)
    done = command(tmp_path, *LEARN, "--start", "half-karras")
    assert done.returncode in (0, 1), done.stderr  # 1: a hand-made grid is better
    assert json.loads((tmp_path / "made.json").read_text())["nfe"] == 3
    done = command(tmp_path, *LEARN, "--force", "--start", "half-kerras")
    assert done.returncode == 2
    assert "did you mean 'half-karras'" in done.stderr


@pytest.mark.parametrize(
    ("code", "word"),
    [
        ("import nowhere_to_be_found", "ModuleNotFoundError"),
        (PLUGIN.replace("half-karras", "karras"), "start 'karras' is registered twice"),
    ],
)
def test_an_installed_package_that_fails_is_named(tmp_path: Path, code: str, word: str) -> None:
    distribution(tmp_path, "starts-of-mine", "starts_of_mine", code)
    done = command(tmp_path, *LEARN, "--start", "uniform")
    assert done.returncode == 2, done.stderr
    assert "entry point 'starts_of_mine' of starts-of-mine" in done.stderr
    assert word in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "made.json").exists()
