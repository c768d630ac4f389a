"""The command line for programs and for a first look: JSON, schemas, a dry run, completion."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from command_line import call, elsewhere  # noqa: F401
from schedules import coupled_schedule

from ld3_dist.cli import app as cli
from ld3_dist.core.noise import EDM
from ld3_dist.experiment import load_experiment

ROOT = Path(__file__).parents[2]
TINY = {
    "name": "tiny",
    "models": ["analytic:mixture-2d"],
    "solvers": ["ddim"],
    "nfe": [3, 4],
    "pairs": {"train": 8, "valid": 6},
    "search": {"grid": {"gamma": [0, 0.1]}, "members": {"seeds": 2, "starts": ["karras"]}},
    "evaluate": {"samples": 20},
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    place = tmp_path / "tiny.yaml"
    place.write_text(yaml.safe_dump(TINY))
    return place


def test_show_as_json(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = call(monkeypatch, capsys, "show", file, "--json")
    assert code == 0
    found = json.loads(out)
    assert list(found) == [
        "name", "fingerprint", "settings", "cells", "cost", "absent", "growth"
    ]  # fmt: skip
    assert found["name"] == "tiny"
    assert found["growth"] is None
    assert found["absent"] == []
    assert [cell["cell"] for cell in found["cells"]] == [
        "analytic:mixture-2d/ddim/3",
        "analytic:mixture-2d/ddim/4",
    ]
    assert {cell["trials"] for cell in found["cells"]} == {2}
    assert {cell["members"] for cell in found["cells"]} == {2}
    again = load_experiment(_written(file.parent / "again.yaml", found["settings"]))
    assert again == load_experiment(file)


def _written(file: Path, settings: Any) -> Path:
    file.write_text(yaml.safe_dump(settings))
    return file


def test_a_dry_run_says_what_show_says_and_writes_nothing(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(os.listdir())
    _, shown, _ = call(monkeypatch, capsys, "show", file, "--output", "runs/tiny")
    code, dry, _ = call(monkeypatch, capsys, "sweep", file, "--dry-run")
    assert code == 0
    assert dry == shown
    assert "to do" in dry
    assert sorted(os.listdir()) == before


def test_growth_as_json(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out, _ = call(monkeypatch, capsys, "show", file, "--json", "--output", "runs/tiny")
    growth = json.loads(out)["growth"]
    assert growth["folder"].endswith("runs/tiny")
    assert growth["left_out"] == 0
    assert growth["counts"]["trials"] == {"asked": 4, "there": 0, "missing": 4}
    assert growth["counts"]["members"] == {"asked": 8, "there": 0, "missing": 8}


def test_doctor_as_json(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = call(monkeypatch, capsys, "doctor", file, "--json")
    found = json.loads(out)
    assert (code, found["missing"], found["experiment"]) == (0, 0, "tiny")
    assert all(
        set(check) == {"area", "name", "status", "detail", "remedy"} for check in found["checks"]
    )


def test_doctor_as_json_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = _written(tmp_path / "lost.yaml", TINY | {"models": ["edm:lost.pkl"]})
    code, out, _ = call(monkeypatch, capsys, "doctor", file, "--json")
    found = json.loads(out)
    missing = [check for check in found["checks"] if check["status"] == "missing"]
    assert code == 2
    assert len(missing) == found["missing"] >= 1
    assert any("lost.pkl" in check["detail"] + check["name"] for check in missing)


def test_weights_that_are_absent_are_told_as_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = _written(tmp_path / "lost.yaml", TINY | {"models": ["edm:lost.pkl"]})
    code, out, _ = call(monkeypatch, capsys, "show", file, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["fingerprint"] is None
    assert "lost.pkl" in found["absent"][0]
    code, out, err = call(monkeypatch, capsys, "show", file, "--json", "--output", "runs/x")
    assert (code, out) == (2, "")
    assert "lost.pkl" in err


def test_schemas_are_printed(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out, _ = call(monkeypatch, capsys, "schema")
    jsonschema.validate(TINY, json.loads(out))
    _, out, _ = call(monkeypatch, capsys, "schema", "schedule")
    jsonschema.validate(json.loads(coupled_schedule(EDM(), 3).to_json()), json.loads(out))
    code, out, err = call(monkeypatch, capsys, "schema", "experimnt")
    assert (code, out) == (2, "")
    assert "did you mean 'experiment'" in err


def test_a_call_without_arguments_says_what_to_type(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call(monkeypatch, capsys)
    assert (code, err) == (0, "")
    assert out == cli.FIRST_WORDS
    assert all(len(line) <= 80 for line in out.splitlines())
    for command in ("learn", "show", "doctor", "sweep", "--help"):
        assert f"ld3-dist {command}" in out


@pytest.mark.parametrize(
    ("words", "found"),
    [("ld3-dist sw", "sweep"), ("ld3-dist sweep --dry", "--dry-run"), ("ld3-dist sh", "show")],
)
def test_shells_complete_commands_and_options(words: str, found: str) -> None:
    asked = {
        "_LD3_DIST_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])),
    }
    code = "import sys; sys.argv = ['ld3-dist']; from ld3_dist.cli.app import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | asked
    )
    assert found in done.stdout.split(), done.stderr
