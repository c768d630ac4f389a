"""The rules of the house, read from the source: who may import what, and how long a file or a
function may be.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "ld3_dist"
FILES = sorted(ROOT.rglob("*.py"))

FLOORS = {
    "core": 1,  # inside it: CORE_FLOORS
    "training_free": 3, "models": 3, "store": 3,
    "metrics": 3.5,  # a model may bring its feature extractor
    "schedule": 4,
    "experiment": 5,
    "tasks": 6,
    "single": 7.5,
    "cluster": 7, "report": 7, "integrations": 7, "doctor": 7,
    "cli": 8,
    "__init__": 9,
}  # fmt: skip
CORE_FLOORS = {
    "__init__": 0, "errors": 0, "text": 0.2, "yaml_text": 0.3, "user_code": 0.3, "memory": 0.5, "registry": 0.5,
    "noise": 1, "distance": 1,
    "grid": 2, "denoiser": 2,
    "rules": 2.5,
    "solver": 3,
    "sample": 4,
    "learning": 5,
}  # fmt: skip
ONLY_IN = {
    "ray": {"cluster"},
    "optuna": {"cluster"},
    "pandas": {"store", "report"},
    "matplotlib": {"report"},
}
AT_TOP = {"integrations/diffusers.py": "diffusers"}
"""A module for a package, which nothing imports at the top, may need it throughout."""
HEAVY = {
    "diffusers",
    "transformers",
    "accelerate",
    "lpips",
    "sklearn",
    "torchmetrics",
    "torch_fidelity",
    "torchvision",
}
BANNED = {"utils", "util", "helpers", "helper", "base", "common", "misc"}


def name_of(file: Path) -> str:
    return str(file.relative_to(ROOT.parent))


def room_of(file: Path) -> str:
    first = file.relative_to(ROOT).parts[0]
    return first.removesuffix(".py")


def imports(file: Path) -> Iterator[tuple[str, ast.stmt, bool, bool]]:
    """(absolute dotted name, statement, inside a function?, for the type checker alone?) of every
    import statement.
    """
    package = ["ld3_dist", *file.relative_to(ROOT).parts[:-1]]

    def walk(
        node: ast.AST, inside: bool, typing: bool
    ) -> Iterator[tuple[str, ast.stmt, bool, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield alias.name, child, inside, typing
            elif isinstance(child, ast.ImportFrom):
                prefix = package[: len(package) - child.level + 1] if child.level else []
                module = ".".join([*prefix, *([child.module] if child.module else [])])
                for alias in child.names:
                    yield f"{module}.{alias.name}", child, inside, typing
            else:
                function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                only_types = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(
                    child.test
                )
                yield from walk(child, inside or function, typing or only_types)

    yield from walk(ast.parse(file.read_text(encoding="utf-8")), False, False)


def own_room(dotted: str) -> str | None:
    """The room that an import of ours leads to; None for the package's own name or for others'
    packages.
    """
    first, *rest = dotted.split(".")
    return rest[0] if first == "ld3_dist" and rest and rest[0] in FLOORS else None


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_rooms_import_from_lower_floors(file: Path) -> None:
    room = room_of(file)
    assert room in FLOORS, (
        f"{file}: a room without a floor; give it one in FLOORS (and in the design)"
    )
    for dotted, statement, _, typing in imports(file):
        target = own_room(dotted)
        if target is None or target == room or typing:
            continue
        assert FLOORS[target] < FLOORS[room], (
            f"{file}:{statement.lineno}: {room} must not import {dotted}"
        )


@pytest.mark.parametrize("file", [f for f in FILES if room_of(f) == "core"], ids=name_of)
def test_core_is_read_from_top_to_bottom(file: Path) -> None:
    own = file.relative_to(ROOT / "core").parts[0].removesuffix(".py")
    assert own in CORE_FLOORS, f"{file}: a module without a floor"
    for dotted, statement, _, _ in imports(file):
        parts = dotted.split(".")
        if (
            parts[:2] == ["ld3_dist", "core"]
            and len(parts) > 2
            and parts[2] in CORE_FLOORS
            and parts[2] != own
        ):
            assert CORE_FLOORS[parts[2]] < CORE_FLOORS[own], (
                f"{file}:{statement.lineno}: imports {dotted}"
            )


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_third_parties_stay_in_their_rooms(file: Path) -> None:
    for dotted, statement, inside, typing in imports(file):
        package = dotted.split(".")[0]
        rooms = ONLY_IN.get(package)
        assert rooms is None or room_of(file) in rooms, (
            f"{file}:{statement.lineno}: {package} belongs into {rooms}"
        )
        if package in HEAVY and not typing and AT_TOP.get(str(file.relative_to(ROOT))) != package:
            assert inside, (
                f"{file}:{statement.lineno}: import {package} in the function that needs it"
            )


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_lengths_and_names(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400, f"{file}: more than 400 lines"
    assert not {*file.relative_to(ROOT).parts[:-1], file.stem} & BANNED, (
        f"{file}: a name that says nothing"
    )
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= 80, f"{file}:{node.lineno}: {node.name} has {length} lines"
    public = isinstance(tree.body[0] if tree.body else None, ast.Expr)
    assert public or not text.strip(), f"{file}: begins without saying what it is"


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_nothing_is_left_for_later(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    for mark in ("TO" + "DO", "FIX" + "ME", "NotImplemented" + "Error"):
        assert mark not in text, f"{file}: {mark}"


def loaded_by(statement: str) -> set[str]:
    """Top-level packages that a fresh interpreter has loaded after a statement."""
    code = f"{statement}; import sys; print(' '.join(sorted({{m.split('.')[0] for m in sys.modules}})))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    return set(done.stdout.split())


def test_core_needs_only_pytorch() -> None:
    modules = ", ".join(
        ".".join(f.relative_to(ROOT.parent).with_suffix("").parts)
        for f in FILES
        if room_of(f) == "core" and f.stem != "__init__"
    )
    loaded = loaded_by(f"import {modules}")
    assert "torch" in loaded
    assert not loaded & {
        "ray",
        "optuna",
        "pandas",
        "pyarrow",
        "matplotlib",
        "pydantic",
        "typer",
        *HEAVY,
    }


def test_help_of_the_command_line_loads_neither_ray_nor_torch() -> None:
    loaded = loaded_by("import ld3_dist.cli.app")
    assert not loaded & {"ray", "optuna", "pandas", "matplotlib", "torch"}
