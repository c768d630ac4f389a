"""The reference is made from the code, and leaves out none of it."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import generated
import pytest
from command_line import call
from docstrings import as_markdown
from pages import ROOT, commands

import ld3_dist
from ld3_dist.core.learning.procedure import procedures
from ld3_dist.core.noise import noise_schedules
from ld3_dist.core.solver import SOLVERS, make_solver
from ld3_dist.experiment import Experiment
from ld3_dist.experiment.shape import all_keys
from ld3_dist.store.columns import SCHEMAS


@pytest.mark.parametrize("name", [n for n in ld3_dist.__all__ if n != "__version__"])
def test_every_public_name_has_its_place(name: str) -> None:
    page = generated.python_api()
    assert f"## ld3.{name}\n" in page
    (place,) = re.findall(rf"## ld3\.{name}\n\n::: ([\w.]+)\n", page)
    module, _, attribute = place.rpartition(".")
    found = getattr(sys.modules[module], attribute)
    assert found is getattr(ld3_dist, name)
    assert inspect.getdoc(found)


def test_a_public_name_without_a_page_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ld3_dist, "__all__", [*ld3_dist.__all__, "nothing"])
    with pytest.raises(AttributeError, match="nothing"):
        generated.python_api()


def test_every_command_and_every_option_is_there() -> None:
    page = generated.command_line()
    for name, command in commands().items():
        section = page.split(f"\n## {name}\n")[1].split("\n## ")[0]
        assert " ".join((command.help or "").split())[:60] in " ".join(section.split())
        for parameter in command.params:
            if parameter.name == "help":
                continue
            assert parameter.help, f"{name} {parameter.name}: no help"
            flags = parameter.opts if parameter.param_type_name == "option" else [parameter.metavar]
            for flag in flags:
                assert f"`{flag or parameter.name.upper()}`" in section, f"{name} {flag}"


def test_the_keys_of_json_are_those_that_are_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = generated.json_output()
    results = str(ROOT / "results" / "quickstart")
    for command in ("status", "check"):
        code, out, _ = call(monkeypatch, capsys, command, results, "--json")
        assert code in (0, 1)
        (row,) = re.findall(rf"^\| `{command}` \| (.*) \|$", page, re.M)
        found = json.loads(out)
        assert {key.partition("[")[0] for key in re.findall(r"`([^`]+)`", row)} == set(found)


def test_every_key_of_the_yaml_has_a_meaning() -> None:
    page = generated.experiment()
    searched = ("search.grid.", "search.optuna.", "ablate.base.", "ablate.vary.", "evaluate.rows.")
    for key in all_keys(Experiment):
        if not key.startswith(searched):
            row = re.search(rf"^\| `{re.escape(key)}` \|([^|]*)\|([^|]*)\|([^|]*)\|$", page, re.M)
            assert row, key
            assert all(cell.strip() for cell in row.groups()), key


def test_defaults_are_those_of_the_models() -> None:
    page = generated.experiment()
    assert "| `teacher.nfe` | whole number, at least 1, at most 1,000 | `20` |" in page
    assert "| `nfe` | list of: whole number, at least 1, at most 1,000 | `required` |" not in page
    assert re.search(r"^\| `nfe` \| [^|]* \| required \|", page, re.M)
    for field in dataclasses.fields(procedures.get("default").Config):
        if field.name not in ("seed", "procedure"):
            default = re.escape(generated.code(field.default))
            assert re.search(rf"^\| `learn\.{field.name}` \| [^|]* \| {default} \|", page, re.M)


def test_every_column_is_there() -> None:
    page = generated.columns()
    for table, schema in SCHEMAS.items():
        section = page.split(f"## `{table}`")[1].split("\n## ")[0]
        for name in schema.names:
            assert f"| `{name}` |" in section


def test_every_solver_has_its_order_and_a_formula() -> None:
    page = generated.solver_table()
    for name in SOLVERS:
        solver = make_solver(name)
        row = f"| `{name}` | {solver.order} | {solver.stages} |"
        assert row in page
        assert generated.family_of(name) in generated.FORMULAS
    assert set(generated.FORMULAS) == {generated.family_of(name) for name in SOLVERS}


def test_every_noise_schedule_and_procedure_is_there() -> None:
    page = generated.names()
    assert all(f"| `{name}` |" in page for name in noise_schedules.names())
    assert all(f"### {name}\n" in page for name in procedures.names())


def test_the_schemas_are_part_of_the_reference() -> None:
    made = generated.pages()
    for name in ("experiment", "schedule"):
        assert "$schema" in json.loads(made[f"reference/{name}.schema.json"])
    keys = json.loads(made["reference/schedule.schema.json"])["properties"]
    assert all(f"| `{key}` |" in made["reference/schedule-file.md"] for key in keys)


def test_examples_of_docstrings_become_code() -> None:
    text = "Return x.\n\nnoise, unit: of it.\nn: number.\n\n>>> f(1)[2]\n3\n\nArgs:\n    x: it."
    found = as_markdown(text)
    assert "```pycon\n>>> f(1)[2]\n3\n```" in found
    assert "- `noise, unit`: of it.\n- `n`: number." in found
    assert found.endswith("Args:\n    x: it.")


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_needs_no_network(tmp_path: Path) -> None:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "WARNING" not in done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 25
    for page in pages:
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe)[^>]+src=\"([^\"]+)\"", text)
        loaded += re.findall(
            r"<link[^>]+rel=\"(?:stylesheet|icon|preload)\"[^>]+href=\"([^\"]+)\"", text
        )
        assert not [place for place in loaded if "//" in place], page
    api = (tmp_path / "site" / "reference" / "python.html").read_text(encoding="utf-8")
    for name in ld3_dist.__all__:
        if name != "__version__":
            assert f'id="{generated.home(name)}"' in api
