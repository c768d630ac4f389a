"""The JSON Schema of experiments, by an independent implementation: it takes what reading takes,
and refuses what reading refuses.
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from bad_experiments import FINE, UNBOUNDED, VALUES

from ld3_dist.core.yaml_text import load_yaml
from ld3_dist.experiment import load_experiment
from ld3_dist.experiment.schema import NAME, experiment_schema

ROOT = Path(__file__).parents[2]
COMMITTED = [f for f in sorted(ROOT.glob("experiments/**/*.yaml")) if f.parent.name != "cluster"]
CHECK = jsonschema.Draft202012Validator(experiment_schema())

BEYOND = [
    ("search.optuna", {"lr": {"low": 2, "high": 1}}),  # two keys that must be in order
    ("resources.checkpoint_seconds", float("inf")),  # JSON has no infinity
    ("models", ["edm:a[b].pkl"]),  # a path that would need a name
]
"""Mistakes that only reading finds."""


def changed(path: str, value: Any) -> dict[str, Any]:
    data = copy.deepcopy(FINE)
    *outer, last = path.split(".")
    place: Any = data
    for part in outer:
        place = place.setdefault(part, {})
    place[last] = value
    return data


def test_it_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(experiment_schema())


def test_the_file_of_the_package_is_current() -> None:
    """In a process of its own: other tests register names."""
    code = "from ld3_dist.experiment.schema import as_json; print(as_json(), end='')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    kept = files("ld3_dist.experiment").joinpath(NAME).read_text(encoding="utf-8")
    assert kept == done.stdout, (
        "run: python -m ld3_dist.cli schema > ld3_dist/experiment/schema.json"
    )


@pytest.mark.parametrize("file", COMMITTED, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_committed_experiments_name_it_and_fit(file: Path) -> None:
    first = file.read_text(encoding="utf-8").splitlines()[0]
    mark = "# yaml-language-server: $schema="
    assert first.startswith(mark)
    named = (file.parent / first.removeprefix(mark)).resolve()
    assert named == ROOT / "ld3_dist" / "experiment" / NAME
    assert not [e.message for e in CHECK.iter_errors(load_yaml(file, "an experiment"))]


def test_experiments_of_tests_fit() -> None:
    assert CHECK.is_valid(FINE)
    own = ROOT / "tests" / "extending" / "sweep.yaml"  # names of a user's files
    assert not [e.message for e in CHECK.iter_errors(load_yaml(own, "an experiment"))]


@pytest.mark.parametrize(
    ("path", "value"), [(p, v) for p, v, _ in [*VALUES, *UNBOUNDED] if (p, v) not in BEYOND]
)
def test_what_reading_refuses_it_refuses(path: str, value: Any) -> None:
    assert not CHECK.is_valid(changed(path, value))


@pytest.mark.parametrize(("path", "value"), BEYOND)
def test_these_are_beyond_it(path: str, value: Any) -> None:
    assert CHECK.is_valid(changed(path, value))


FINE_TOO: list[tuple[str, Any]] = [
    ("models", [{"model": "digits", "guidance": 2, "size": [32, 32]}]),
    ("models", ["analytic:mixture-2d?components=3", "python:a.py:build", "edm:a.pkl"]),
    ("solvers", ["unipc-3-bh2", "dpmpp-3?lower_order_final=false", "python:a.py:make"]),
    ("baselines", ["poly-3.5", "file:their.json", "my.json", "ays-sd15"]),
    ("distance", {"l2": 1, "feature": 0.1}),
    ("distance", "l2+0.1*feature@stage-2"),
    ("distance", "resized:64:lpips-alex"),
    ("evaluate.extractor", "inception:weights.pt"),
    ("evaluate.rows", {"best_per": ["gamma"]}),
    ("evaluate.metrics", ["fid", "python:a.py:mine"]),
    ("search.optuna", {"lr": {"low": 0.1, "high": 1, "log": True}}),
    ("search.optuna", {"coordinate": ["time", "lambda"]}),
    ("search.grid", {"teacher.nfe": [10, 20], "start": ["karras"], "pairs.train": [10]}),
    ("search.members.starts", None),
    ("ablate", {"base": {"gamma": 0.1}, "vary": {"distance": ["l1"]}, "full": True}),
    ("learn", {"procedure": "python:mine.py:Steep", "steepness": 3}),
    ("search.grid", {"procedure": ["python:mine.py:Steep"], "steepness": [3, 4]}),
    ("resources", {"gpus_per_trial": "auto", "trial": {"accelerator_type": "A100"}}),
]


@pytest.mark.parametrize(("path", "value"), FINE_TOO)
def test_forms_that_a_value_may_have(path: str, value: Any) -> None:
    assert not [e.message for e in CHECK.iter_errors(changed(path, value))]


def test_every_key_says_what_it_means() -> None:
    schema = experiment_schema()

    def lacking(rule: Any, place: str) -> list[str]:
        found = []
        for name, inner in (rule.get("properties") or {}).items():
            target = inner.get("$ref", "").removeprefix("#/$defs/")
            whole = schema["$defs"].get(target, {}) | inner
            if "description" not in whole:
                found.append(f"{place}.{name}")
        return found

    inner = ("Search", "Ablate")  # whose sections hold settings, which have a meaning of their own
    missing = lacking(schema, "")
    for name, rule in schema["$defs"].items():
        missing += lacking(rule, name) if name not in inner else []
    assert not missing


def test_the_default_of_every_key_is_the_model_s() -> None:
    written = load_experiment(ROOT / "experiments" / "quickstart.yaml")
    schema = experiment_schema()
    for name, rule in schema["properties"].items():
        if "default" in rule:
            field = type(written).model_fields[name]
            plain = json.loads(json.dumps(rule["default"]))
            made = field.get_default(call_default_factory=True)
            made = made.model_dump(mode="json") if hasattr(made, "model_dump") else made
            assert plain == (list(made) if isinstance(made, tuple) else made), name
