"""Objects from a user's own file or module: `python:FILE.py:NAME`, `python:MODULE:NAME`.

Importing a file runs it: these names are the one kind of input whose content is trusted. The
folder of the file is on the import path while it runs, so that it finds its neighbours. Changes to
PyTorch (default dtype, grad mode, seed, threads) are undone.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib
import importlib.util
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from .errors import InputError, unknown

PREFIX = "python:"
FILE = "file:"
"""Begins the name of a schedule that is read from a file: `file:their.json`."""

_FILE = re.compile(rf"(?:^|(?<=[:=*+])){PREFIX}([^:]+\.py):")
"""The file of a name, which may stand behind another word: `feature:python:FILE.py:NAME`."""

_modules: dict[str, tuple[str, ModuleType]] = {}


def import_name(spec: str, kind: str) -> Any:
    """The object behind `python:FILE.py:NAME` or `python:MODULE:NAME`.

    Args:
        kind: the kind of object that is wanted, for messages.

    Raises InputError for a spec of another form, a file or module that is not there or fails while
    it is imported, and a name that is not in it.
    """
    place, name = split(spec, kind)
    module = import_place(place, f"{kind} {spec!r}")
    if not hasattr(module, name):
        known = tuple(n for n, v in vars(module).items() if callable(v) and not n.startswith("_"))
        raise unknown(f"name in {kind} {spec!r}:", name, known or ("(nothing callable in it)",))
    return getattr(module, name)


def split(spec: str, kind: str) -> tuple[str, str]:
    """`python:PLACE:NAME` -> (PLACE, NAME); InputError for anything else."""
    place, _, name = spec.removeprefix(PREFIX).rpartition(":")
    if not place or not name:
        raise InputError(f"{kind} {spec!r}: write python:FILE.py:NAME or python:MODULE:NAME")
    return place, name


def import_place(place: str, what: str) -> ModuleType:
    """The module of a file (ends in .py) or of a dotted name; a changed file is imported again.

    Raises InputError, which begins with `what`, if it cannot be imported.
    """
    if not place.endswith(".py"):
        try:
            with left_as_found():
                return importlib.import_module(place)
        except ModuleNotFoundError as error:
            if error.name and place.startswith(error.name):
                raise InputError(
                    f"{what}: no module {error.name!r}; install it, add its folder to PYTHONPATH, "
                    "or give the file: python:FILE.py:NAME"
                ) from error
            raise _failed(what, error) from error
        except (Exception, SystemExit) as error:
            raise _failed(what, error) from error
    file = Path(place).expanduser().resolve()
    if not file.is_file():
        raise InputError(f"{what}: file {str(file)!r} not found")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if str(file) in _modules and _modules[str(file)][0] == digest:
        return _modules[str(file)][1]
    name = f"ld3_dist_user_{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    found = importlib.util.spec_from_file_location(name, file)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module  # dataclasses and pickling look their module up by name
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    try:
        with left_as_found():
            found.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise _failed(what, error) from error
    _modules[str(file)] = (digest, module)
    return module


def absolute(name: str) -> str:
    """A name with the path of its file made absolute; any other name as it is.

    Other processes of a sweep may have another working folder.
    """

    place = name.removeprefix(FILE)
    if name.startswith(FILE) and place and "://" not in place:
        return f"{FILE}{Path(place).expanduser().absolute()}"

    def whole(found: re.Match[str]) -> str:
        return f"{PREFIX}{Path(found[1]).expanduser().absolute()}:"

    return _FILE.sub(whole, name)


def label(name: str) -> str:
    """A name for tables and pages: files lose their folders, other names do not change."""
    if name.startswith(FILE):
        return f"{FILE}{Path(name.removeprefix(FILE)).name}"
    if name.endswith(".json") and not name.startswith(PREFIX):
        return Path(name).name
    return _FILE.sub(lambda found: f"{Path(found[1]).name}:", name).removeprefix(PREFIX)


def content_in(name: str) -> str | None:
    """The hash of the user's code behind a name, with options or not; None if there is none."""
    specs = re.findall(rf"(?:^|(?<=[:=*+])){PREFIX}[^?&]+?:\w+(?=$|[?&+@])", name)
    contents = [content_of(spec) for spec in specs]
    return "-".join(contents) or None


def content_of(spec: str) -> str:
    """A hash of the code behind `python:PLACE:NAME`: its file and the neighbours it imports."""
    place, name = split(spec, "name")
    module = import_place(place, spec)
    digest = hashlib.sha256(name.encode())
    for file in sources(module):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def sources(module: ModuleType) -> list[Path]:
    """The Python file of a module and those of its folder that it imports, sorted by name.

    They follow from the text of the files alone, not from other imports of the process. The same
    files must have the same hash in a driver, in its workers and in another run.
    """
    if not module.__file__ or not module.__file__.endswith(".py"):
        return []
    todo, found = [Path(module.__file__).resolve()], set()
    while todo:
        file = todo.pop()
        if file not in found:
            found.add(file)
            todo += _neighbours(file)
    return sorted(found)


def _neighbours(file: Path) -> list[Path]:
    """The files beside a file that its import statements name."""
    names: set[str] = set()
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):  # a neighbour that is never really imported
        return []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module or "", *(alias.name for alias in node.names)}
    # of `package.neighbour` the last part counts: the folder itself may be the package
    parts = {part for name in names for part in (name.partition(".")[0], name.rpartition(".")[2])}
    beside = [file.with_name(f"{part}.py") for part in parts if part]
    return [other.resolve() for other in beside if other.is_file()]


@contextlib.contextmanager
def left_as_found() -> Iterator[None]:
    """Put back PyTorch's default dtype, grad mode, seed and threads, and Python's seed."""
    dtype, grad, threads = (
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.get_num_threads(),
    )
    seed, python_seed = torch.get_rng_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(grad)
        torch.set_rng_state(seed)
        random.setstate(python_seed)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


def _failed(what: str, error: BaseException) -> InputError:
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, SyntaxError):
        text = f"line {error.lineno}: {error.msg}"
    return InputError(f"{what}: fails while it is imported ({text}); repair the file")
