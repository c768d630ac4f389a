"""The rules of the house, read from the source: who may import what, and how long may be a file, or
what a function does (its signature and its docstring do not count).
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "ld3_dist"
FILES = sorted(ROOT.rglob("*.py"))

FLOORS = {
    "core": 1,  # inside it: CORE_FLOORS
    "training_free": 3, "models": 3,
    "metrics": 3.5,  # a model may bring its feature extractor
    "store": 3.7,  # gains in the results have the intervals of metrics
    "schedule": 4,
    "experiment": 5,
    "tasks": 6,
    "cluster": 7, "report": 7, "integrations": 7, "doctor": 7,
    "cli": 8,
    "__init__": 9,
}  # fmt: skip
CORE_FLOORS = {
    "__init__": 0, "errors": 0, "text": 0.2, "yaml_text": 0.3, "user_code": 0.3,
    "memory": 0.5, "registry": 0.5, "installed": 0.5,
    "quadrature": 0.9, "noise": 1, "features": 1, "comparison": 1.2, "lpips": 1.3,
    "st_lpips": 1.3, "combined": 1.3, "distance": 1.5,
    "grid": 2, "denoiser": 2,
    "rules": 2.5,
    "solver": 3,
    "sample": 4,
    "theory": 4.5,
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
PRAGMA = re.compile(r"  # (type: ignore|noqa|pragma|fmt).*")
BANNED = {"utils", "util", "helpers", "helper", "base", "common", "misc"}


def room_of(file: Path) -> str:
    first = file.relative_to(ROOT).parts[0]
    return first.removesuffix(".py")


@cache
def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


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

    yield from walk(tree_of(file), False, False)


def own_room(dotted: str) -> str | None:
    """The room that an import of ours leads to; None for the package's own name or for others'
    packages.
    """
    first, *rest = dotted.split(".")
    return rest[0] if first == "ld3_dist" and rest and rest[0] in FLOORS else None


def report(faults: Iterable[str], files: list[Path] | None = None) -> None:
    """Fail with every fault that a rule found, each with its file."""
    assert FILES if files is None else files
    found = list(faults)
    assert not found, "\n".join(found)


def test_rooms_import_from_lower_floors() -> None:
    def faults() -> Iterator[str]:
        for file in FILES:
            room = room_of(file)
            if room not in FLOORS:
                yield f"{file}: a room without a floor; give it one in FLOORS (and in the design)"
                continue
            for dotted, statement, _, typing in imports(file):
                target = own_room(dotted)
                if target is None or target == room or typing:
                    continue
                if FLOORS[target] >= FLOORS[room]:
                    yield f"{file}:{statement.lineno}: {room} must not import {dotted}"

    report(faults())


def test_core_is_read_from_top_to_bottom() -> None:
    files = [file for file in FILES if room_of(file) == "core"]

    def faults() -> Iterator[str]:
        for file in files:
            own = file.relative_to(ROOT / "core").parts[0].removesuffix(".py")
            if own not in CORE_FLOORS:
                yield f"{file}: a module without a floor"
                continue
            for dotted, statement, _, _ in imports(file):
                parts = dotted.split(".")
                if (
                    parts[:2] == ["ld3_dist", "core"]
                    and len(parts) > 2
                    and parts[2] in CORE_FLOORS
                    and parts[2] != own
                    and CORE_FLOORS[parts[2]] >= CORE_FLOORS[own]
                ):
                    yield f"{file}:{statement.lineno}: imports {dotted}"

    report(faults(), files)


MODULES = {".".join(f.relative_to(ROOT.parent).with_suffix("").parts): f for f in FILES}
MODULES = {name.removesuffix(".__init__"): file for name, file in MODULES.items()}


def module_of(dotted: str) -> str | None:
    """The module of ours that holds a dotted name."""
    while dotted and dotted not in MODULES:
        dotted = dotted.rpartition(".")[0]
    return dotted or None


def imports_between_modules() -> dict[str, set[str]]:
    """Every module, and the modules of ours that it names in an import statement.

    Imports inside functions count, those for the type checker alone do not. A package's own
    `__init__` is left out: `from .grid import Grid` runs it, but takes nothing from it.
    """
    graph = dict[str, set[str]]()
    for name, file in MODULES.items():
        targets = {module_of(dotted) for dotted, _, _, typing in imports(file) if not typing}
        graph[name] = {t for t in targets if t is not None and t != name}
    return graph


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected components of more than one module (Tarjan's algorithm)."""
    index, low = dict[str, int](), dict[str, int]()
    stack, found = list[str](), list[list[str]]()

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in sorted(graph[node]):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            at = stack.index(node)
            if len(stack) - at > 1:
                found.append(sorted(stack[at:]))
            del stack[at:]

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return found


def test_modules_import_each_other_without_circles() -> None:
    graph = imports_between_modules()
    assert sum(map(len, graph.values())) > len(graph)  # else there is nothing to find
    assert not (found := circles(graph)), "\n".join(" <-> ".join(circle) for circle in found)


def test_circles_are_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set(), "e": {"a", "f"}, "f": {"e"}}
    assert circles(graph) == [["b", "c"], ["e", "f"]]


def test_third_parties_stay_in_their_rooms() -> None:
    def faults() -> Iterator[str]:
        for file in FILES:
            for dotted, statement, inside, typing in imports(file):
                place, package = f"{file}:{statement.lineno}", dotted.split(".")[0]
                if typing:
                    continue
                rooms = ONLY_IN.get(package)
                if rooms is not None and room_of(file) not in rooms:
                    yield f"{place}: {package} belongs into {rooms}"
                at_top = AT_TOP.get(str(file.relative_to(ROOT))) == package
                if package in HEAVY and not at_top and not inside:
                    yield f"{place}: import {package} in the function that needs it"

    report(faults())


def test_lengths_and_names() -> None:
    def faults() -> Iterator[str]:
        for file in FILES:
            text = file.read_text(encoding="utf-8")
            lines = text.splitlines()
            if len(lines) > 400:
                yield f"{file}: more than 400 lines"
            for number, line in enumerate(lines, 1):
                line = PRAGMA.sub("", line)
                if len(line) > 100:
                    yield f"{file}:{number}: {len(line)} characters"
            if {*file.relative_to(ROOT).parts[:-1], file.stem} & BANNED:
                yield f"{file}: a name that says nothing"
            tree = tree_of(file)
            for node in ast.walk(tree):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    first = node.body[1 if ast.get_docstring(node) and len(node.body) > 1 else 0]
                    length = (node.end_lineno or node.lineno) - first.lineno + 1
                    if length > 60:
                        yield f"{file}:{node.lineno}: {node.name} has {length} lines"
            public = isinstance(tree.body[0] if tree.body else None, ast.Expr)
            if not public and text.strip():
                yield f"{file}: begins without saying what it is"

    report(faults())


def test_nothing_is_left_for_later() -> None:
    marks = ("TO" + "DO", "FIX" + "ME", "NotImplemented" + "Error")
    report(
        f"{file}: {mark}"
        for file in FILES
        for mark in marks
        if mark in file.read_text(encoding="utf-8")
    )


@pytest.mark.parametrize(
    ("rule", "code", "said"),
    [
        (
            test_rooms_import_from_lower_floors,
            '"""M."""\nimport ld3_dist.cli.app',
            "must not import",
        ),
        (test_core_is_read_from_top_to_bottom, '"""M."""\nfrom .solver import x', ":2: imports"),
        (test_third_parties_stay_in_their_rooms, '"""M."""\nimport ray', "ray belongs into"),
        (test_third_parties_stay_in_their_rooms, '"""M."""\nimport lpips', "in the function"),
        (test_lengths_and_names, '"""M."""\n' * 401, "more than 400 lines"),
        (test_lengths_and_names, f'"""{"M" * 100}."""', ":1: 107 characters"),
        (test_lengths_and_names, '"""M."""\ndef f():\n' + "    x = 1\n" * 61, "f has 61 lines"),
        (test_lengths_and_names, "x = 1", "without saying what it is"),
        (test_nothing_is_left_for_later, '"""TO' + 'DO."""', ": TO" + "DO"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_each_rule_finds_what_it_forbids(
    rule: Callable[[], None],
    code: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "ld3_dist/core/grid.py"
    file.parent.mkdir(parents=True)
    file.write_text(code)
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path / "ld3_dist")
    monkeypatch.setattr(sys.modules[__name__], "FILES", [file])
    with pytest.raises(AssertionError, match=re.escape(said)):
        rule()


def loaded_by(statement: str) -> set[str]:
    """Top-level packages that a fresh interpreter has loaded after a statement."""
    names = "{m.split('.')[0] for m in sys.modules}"
    code = f"{statement}; import sys; print(' '.join(sorted({names})))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=1200, check=True
    )
    return set(done.stdout.split())


def test_core_needs_only_pytorch() -> None:
    modules = ", ".join(name for name in MODULES if name.startswith("ld3_dist.core."))
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


BARE = """
import importlib.metadata, re, sys

def plain(name):
    return re.sub("[-_.]+", "-", name).lower()

def needs(name, found):
    if name in INSTALLED and name not in found:
        found.add(name)
        for line in importlib.metadata.requires(name) or []:
            if "extra ==" not in line:
                needs(plain(re.split("[^A-Za-z0-9._-]", line)[0]), found)
    return found

INSTALLED = {plain(d.metadata["Name"]) for d in importlib.metadata.distributions()}
ALLOWED = needs("torch", {"ld3-dist"})
FORBIDDEN = {
    package
    for package, makers in importlib.metadata.packages_distributions().items()
    if not {plain(maker) for maker in makers} & ALLOWED
}

class Bare:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in FORBIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Bare())
for name in ("numpy", "scipy", "pandas", "pydantic", "ray", "safetensors"):
    assert name in FORBIDDEN, name
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise SystemExit(f"{name} was imported")
"""
"""Hides every installed package but PyTorch and the packages that PyTorch itself needs."""

LEARNING = """
import torch
from ld3_dist.core.distance import Elementwise
from ld3_dist.core.grid import discretize
from ld3_dist.core.learning.learn import Pairs, Problem, learn, make_config
from ld3_dist.core.noise import EDM
from ld3_dist.core.sample import draw_noise, sample
from ld3_dist.core.solver import make_solver

class Gaussian:
    noise, shape = EDM(), (2,)
    def __call__(self, x, t, condition=None):
        return x / (1 + t.view(-1, 1) ** 2)
    def decode(self, x):
        return x

torch.set_num_threads(1)
gaussian, noise = Gaussian(), EDM()
unit, rule = draw_noise(0, range(16), (2,)), make_solver("dpmpp-2")
exact = unit * noise.prior_scale * ((1 + noise.t_min**2) / (1 + noise.t_max**2)) ** 0.5
pairs, knots = Pairs(unit, exact), discretize(noise, 4, "uniform")
problem = Problem(gaussian, rule, knots, pairs[:8], pairs[8:], Elementwise(2))
*_, end = learn(problem, make_config(epochs=5))
start = sample(gaussian, rule.tableau(noise, rule.coupled(noise, knots)), unit)
print(float((start - exact)[8:].square().mean()), float(end.best_valid))
"""


def test_core_learns_where_only_pytorch_is_installed() -> None:
    done = subprocess.run(
        [sys.executable, "-c", BARE + LEARNING], capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stderr[-2000:]
    before, after = map(float, done.stdout.split())
    assert after < before


def test_the_package_loads_only_what_every_use_needs() -> None:
    """How long it takes is measured by experiments/benchmarks/import_time.py."""
    loaded = loaded_by("import ld3_dist")
    assert not loaded & {"ray", "optuna", "pandas", "matplotlib", *HEAVY}


def test_the_help_of_the_command_line_loads_neither_ray_nor_torch() -> None:
    loaded = loaded_by("import ld3_dist.cli.app")
    assert not loaded & {"ray", "optuna", "pandas", "matplotlib", "torch"}


NOUN_CLAUSE = re.compile(r"(What|Where|Who|Whether|Is|Are|How)\b")


def docstrings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, text) of the docstrings of a module and of everything public in it."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        public = not getattr(node, "name", "").startswith("_")
        if public and (text := ast.get_docstring(node)):
            yield getattr(node, "lineno", 1), text


def test_docstrings_say_what_a_thing_does_or_is() -> None:
    report(
        f"{file}:{line}: {text.splitlines()[0]}"
        for file in FILES
        for line, text in docstrings(tree_of(file))
        if NOUN_CLAUSE.match(text)
    )


def test_docstrings_are_found() -> None:
    source = '"""Where."""\nclass A:\n    """Is it?"""\n    def f(self):\n        """How."""\n'
    found = list(docstrings(ast.parse(source + 'def _g():\n    """Who."""\n')))
    assert found == [(1, "Where."), (2, "Is it?"), (4, "How.")]
    assert all(NOUN_CLAUSE.match(text) for _, text in found)
    assert not NOUN_CLAUSE.match("Isotropic noise, whatever it is.")
