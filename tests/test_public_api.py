"""The public API: every name has a docstring with an example that runs, and importing is light."""

from __future__ import annotations

import doctest
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import ld3_dist as ld3
from ld3_dist.schedule.file import Schedule

NAMES = [name for name in ld3.__all__ if name not in ("__version__", "InputError")]
HEAVY = ("ray", "optuna", "pandas", "matplotlib")


def examples_of(thing: object, name: str) -> list[doctest.DocTest]:
    finder = doctest.DocTestFinder(recurse=inspect.isclass(thing))
    module = inspect.getmodule(thing)
    return [test for test in finder.find(thing, name, module=module) if test.examples]


def test_the_names_of_the_design_are_there() -> None:
    assert {"load_model", "Model", "teach", "learn", "learning", "load_schedule"} <= set(NAMES)
    assert {"Schedule", "evaluate", "load_results", "load_curves", "load_samples"} <= set(NAMES)
    assert callable(Schedule.sample)


@pytest.mark.parametrize("name", NAMES)
def test_every_example_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tests = examples_of(getattr(ld3, name), name)
    assert tests, f"{name} has no example"
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for test in tests:
        runner.run(test, clear_globs=True)
    assert runner.summarize(verbose=False).failed == 0, capsys.readouterr().out


def test_a_schedule_s_sample_has_an_example() -> None:
    assert any("sample" in test.name for test in examples_of(Schedule, "Schedule"))


def test_importing_loads_nothing_heavy() -> None:
    code = f"import sys, ld3_dist; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_learning_loads_no_cluster() -> None:
    code = (
        "import sys, ld3_dist as ld3\n"
        "model = ld3.load_model('analytic:mixture-2d')\n"
        "ld3.learn(model, 'ddim', 2, ld3.teach(model, 8), starts=['karras'], epochs=1)\n"
        "print([name for name in ('ray', 'optuna', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
