"""Open tables: registration, lazy loading, entry points, a user's own files; bad input is named."""

from __future__ import annotations

import sys
import types
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch

from ld3_dist.core import registry
from ld3_dist.core.errors import InputError
from ld3_dist.core.registry import Registry, load_plugins


@pytest.fixture
def table() -> Registry:
    made: Registry = Registry("thing", pattern=("poly-<rho>",))
    made.register("first", max)
    made.register("root", lazily="math:sqrt")

    @made.register("second")
    def second() -> int:
        return 2

    return made


def test_entries_by_value_by_decorator_and_lazily(table: Registry) -> None:
    assert table.get("first") is max
    assert table.get("second")() == 2
    assert table.get("root")(9) == 3
    assert set(table.names()) == {"first", "second", "root"}
    assert "root" in table
    assert "third" not in table


def test_an_unknown_name_lists_the_known_ones(table: Registry) -> None:
    with pytest.raises(
        InputError, match=r"unknown thing 'frist': did you mean 'first'.*poly-<rho>"
    ):
        table.get("frist")


@pytest.mark.parametrize("name", ["first", "root"])
def test_a_name_that_exists_twice(table: Registry, name: str) -> None:
    with pytest.raises(InputError, match=f"thing '{name}' is registered twice"):
        table.register(name, min)


def test_names_that_read_as_files_are_refused(table: Registry) -> None:
    with pytest.raises(InputError, match="must not begin with python:"):
        table.register("python:x", min)


OWN = """
import random
import torch
from helper_of_own import FACTOR
torch.manual_seed(5)
random.seed(5)
torch.set_default_dtype(torch.float64)
torch.set_grad_enabled(False)

def twice(x):
    return FACTOR * x

number = 3
"""


def test_a_file_of_ones_own(table: Registry, tmp_path: Path) -> None:
    (tmp_path / "helper_of_own.py").write_text("FACTOR = 2\n")
    (tmp_path / "own.py").write_text(OWN)
    before = torch.random.get_rng_state()
    name = f"python:{tmp_path}/own.py:twice"
    assert table.get(name)(4) == 8
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.get_default_dtype() == torch.float32
    assert torch.is_grad_enabled()
    old = table.version(name)
    assert old == table.version(name)
    (tmp_path / "helper_of_own.py").write_text("FACTOR = 3\n")
    assert table.version(name) != old, "a neighbour that changed changes what the name stands for"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("python:nowhere.py:f", "file .*nowhere.py' not found"),
        ("python:no_such_module:f", "no module 'no_such_module'"),
        ("python:own.py", "write python:FILE.py:NAME"),
        ("python:own.py:twise", "did you mean 'twice'"),
        ("python:own.py:number", "is a int, not callable"),
        ("python:broken.py:f", "fails while it is imported .line 1: "),
        ("python:raises.py:f", "fails while it is imported .ZeroDivisionError"),
        (
            "python:needs.py:f",
            "fails while it is imported .ModuleNotFoundError: No module named 'absent_'",
        ),
    ],
)
def test_bad_files(
    table: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "helper_of_own.py").write_text("FACTOR = 2\n")
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "broken.py").write_text("def f(:\n")
    (tmp_path / "raises.py").write_text("1 / 0\n")
    (tmp_path / "needs.py").write_text("import absent_\n")
    with pytest.raises(InputError, match=said) as caught:
        table.get(name)
    assert name in str(caught.value)


class Distribution:
    name = "their-package"


def plugin(name: str, value: str) -> EntryPoint:
    point = EntryPoint(name, value, registry.GROUP)
    vars(point)["dist"] = Distribution()
    return point


def with_plugins(monkeypatch: pytest.MonkeyPatch, *points: EntryPoint) -> None:
    monkeypatch.setattr(registry, "_loaded", {})
    monkeypatch.setattr(registry, "entry_points", lambda group: points)


def test_entry_points_register(table: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("their_module")
    monkeypatch.setitem(sys.modules, "their_module", module)
    with_plugins(monkeypatch, plugin("theirs", "their_module"))
    table.register("theirs", min)
    assert table.get("theirs") is min


def test_an_entry_point_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with_plugins(monkeypatch, plugin("theirs", "absent_module"))
    for _ in range(2):  # not only the first time
        with pytest.raises(InputError, match=r"entry point 'theirs' of their-package.*uninstall"):
            load_plugins()
