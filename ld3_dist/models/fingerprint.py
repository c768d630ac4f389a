"""The hash of a model, of everything that determines its samples.

For an `nn.Module` the hash covers weights, buffers and plain attributes. For any other object it
covers all that can be reached from it: attributes, tensors and arrays, variables that its methods
close over, and the global data of its own file that they name. An object that cannot be read (an
open session of another runtime, a handle) may hide weights; then a `version` is asked for.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import re
import sys
import types
from collections.abc import Callable, Mapping
from enum import Enum
from functools import partial
from pathlib import PurePath
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from ..core.errors import InputError

PLAIN = (type(None), bool, int, float, complex, str, bytes, Enum, range)
PLAIN += (torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format)

HOLDS_NO_WEIGHTS = ("builtins", "torch", "_thread", "threading", "logging", "re", "functools")
"""Modules whose opaque objects (locks, loggers, generators, patterns) determine no sample."""

MACHINERY = frozenset(vars(nn.Module())) | {"_compiled_call_impl"}
"""Attributes of every nn.Module: mode, hooks, and the tables of its tensors and parts."""

COMPILER = ("torch._dynamo", "torch._inductor", "torch._functorch")

SKIPPED = ("_abc_impl",)
"""What Python itself keeps in a class that derives from an abstract one: no data of its author."""

PATHS = ("_name_or_path", "name_or_path")
"""Entries with the place of weights; the weights enter the hash, not their place."""


def weights_hash(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> str:
    """SHA-256 over names, shapes, dtypes and bytes of tensors and a JSON configuration.

    Their order does not matter.
    """
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def fingerprint(denoiser: Any, name: str, version: str = "") -> str:
    """SHA-256 of all that can be read of a denoiser, and of its version.

    Raises InputError if a part of it cannot be read and no version is given.
    """
    reader = _Reader()
    reader.read(denoiser, name)
    if reader.opaque and not version:
        places = "; ".join(reader.opaque[:3])
        raise InputError(
            f"model {name!r}: its hash cannot see {places}. Rows of other weights would be taken "
            "for these: wrap it as ld3_dist.models.Model(denoiser, version='1'), and change the "
            "version whenever the samples would change"
        )
    reader.digest.update(f"version {version}".encode())
    return reader.digest.hexdigest()


_OF_A_FILE = re.compile(r"^(ld3_dist_user_.*)_[0-9a-f]{8}$")


class _Reader:
    """A walk through an object and all that it holds; each part is hashed once."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self.opaque: list[str] = []
        self._seen: dict[int, Any] = {}  # kept alive, so that no address is used twice

    def read(self, value: Any, place: str) -> None:
        """Hash a value; note it as opaque if it cannot be read."""
        if isinstance(value, PLAIN):
            self._say(f"{type(value).__name__} {value!r}")
        elif id(value) in self._seen:
            self._say("again")
        else:
            self._seen[id(value)] = value
            self._read_new(value, place)

    def _read_new(self, value: Any, place: str) -> None:
        if isinstance(value, Tensor):
            self._tensor(value)
        elif isinstance(value, numpy.ndarray | numpy.generic):
            self._array(numpy.asarray(value), place)
        elif isinstance(value, Mapping):
            self._say(f"mapping of {len(value)}")
            for key, item in sorted(value.items(), key=lambda pair: repr(pair[0])):
                if key not in PATHS:
                    self._say(repr(key))
                    self.read(item, f"{place}[{key!r}]")
        elif isinstance(value, list | tuple):
            self._say(f"{type(value).__name__} of {len(value)}")
            for i, item in enumerate(value):
                self.read(item, f"{place}[{i}]")
        elif isinstance(value, set | frozenset):
            self._say(" ".join(sorted(repr(item) for item in value)))
        elif isinstance(value, types.ModuleType | type):
            self._say(_without_place(value.__name__))
        elif isinstance(value, PurePath):
            self._say(value.name)
        elif isinstance(value, partial):
            self.read([value.func, value.args, value.keywords], place)
        elif isinstance(value, types.FunctionType | types.MethodType | types.BuiltinFunctionType):
            self._function(value, place)
        else:
            self._object(value, place)

    def _object(self, value: Any, place: str) -> None:
        kind = type(value)
        self._say(f"{_without_place(kind.__module__)}.{kind.__qualname__}")
        if isinstance(value, nn.Module):
            self._module(value, place)
        elif kind.__module__.startswith(COMPILER):
            pass
        elif getattr(value, "__dict__", None) or _written(kind):
            self._attributes(_state(value), place)
        elif kind.__module__.partition(".")[0] not in HOLDS_NO_WEIGHTS:
            self.opaque.append(f"{place} ({kind.__module__}.{kind.__qualname__})")
        if not _installed(kind):
            self._methods(kind, place)

    def _module(self, value: nn.Module, place: str) -> None:
        for name, tensor in (
            *value.named_parameters(recurse=False),
            *value.named_buffers("", False),
        ):
            self._say(name)
            self.read(tensor, f"{place}.{name}")
        for name, part in value.named_children():
            self._say(name)
            self.read(part, f"{place}.{name}")
        self._attributes({k: v for k, v in vars(value).items() if k not in MACHINERY}, place)

    def _attributes(self, found: Mapping[str, Any], place: str) -> None:
        for name in sorted(found):
            self._say(name)
            self.read(found[name], f"{place}.{name}")

    def _methods(self, kind: type, place: str) -> None:
        for base in kind.__mro__:
            if not _installed(base):
                for name, method in sorted(vars(base).items()):
                    function = getattr(method, "__func__", getattr(method, "fget", method))
                    if isinstance(function, types.FunctionType):
                        self.read(function, f"{place}.{name}")
                    elif not (name.startswith("__") or name in SKIPPED or callable(method)):
                        self.read(method, f"{place}.{name}")

    def _function(self, value: Any, place: str) -> None:
        function = getattr(value, "__func__", value)
        module = _without_place(getattr(function, "__module__", "") or "")
        self._say(f"{module}.{function.__qualname__}")
        if isinstance(value, types.MethodType):
            self.read(value.__self__, place)
        if not isinstance(function, types.FunctionType) or _installed(function):
            return
        with contextlib.suppress(OSError, TypeError):  # typed at a prompt: there is no source
            self._say(inspect.getsource(function))
        for cell in function.__closure__ or ():
            self.read(_cell(cell), f"{place} (what it closes over)")
        self.read([function.__defaults__, function.__kwdefaults__], place)
        self._globals(function, place)

    def _globals(self, function: types.FunctionType, place: str) -> None:
        """Read the global data that a function names, of its own module and of its neighbours."""
        names = sorted(_names(function.__code__))
        for name in names:
            found = function.__globals__.get(name)
            if isinstance(found, types.ModuleType) and not _installed_module(found):
                for inner in names:
                    self.read(vars(found).get(inner), f"{name}.{inner}")
            elif found is not None and not isinstance(found, types.ModuleType):
                self.read(found, f"{name} of {function.__module__}")

    def _tensor(self, value: Tensor) -> None:
        self._say(f"{value.dtype} {tuple(value.shape)}")
        if value.device.type != "meta":
            data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            self.digest.update(data.numpy().data)

    def _array(self, value: Any, place: str) -> None:
        self._say(f"{value.dtype} {value.shape}")
        if value.dtype.hasobject:
            self.read(value.tolist(), place)
        else:
            self.digest.update(value.tobytes())

    def _say(self, text: str) -> None:
        self.digest.update(text.encode() + b"\0")


def _without_place(module: str) -> str:
    """The name of a module; that of a user's file without the hash of its folder."""
    return _OF_A_FILE.sub(r"\1", module)


def _names(code: types.CodeType) -> set[str]:
    """Global names that a function and its inner functions use."""
    inner = (c for c in code.co_consts if isinstance(c, types.CodeType))
    return set(code.co_names).union(*(_names(c) for c in inner))


def _cell(cell: Any) -> Any:
    """The content of a closure's cell; None while it is empty."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _state(value: Any) -> dict[str, Any]:
    """Attributes of an object, with those in slots."""
    given = [vars(kind).get("__slots__", ()) for kind in type(value).__mro__]
    slots = [name for one in given for name in ([one] if isinstance(one, str) else one)]
    found = {name: getattr(value, name) for name in slots if hasattr(value, name)}
    return {**found, **getattr(value, "__dict__", {})}


def _written(kind: type) -> bool:
    """True for a class written in Python, whose attributes are its whole state."""
    return any(isinstance(v, types.FunctionType) for v in vars(kind).values()) or hasattr(
        kind, "__dataclass_fields__"
    )


def _installed(found: type | Callable[..., Any]) -> bool:
    """True for code of Python, of this package or of an installed one; only its name is hashed."""
    return _installed_module(sys.modules.get(getattr(found, "__module__", "") or ""))


def _installed_module(module: types.ModuleType | None) -> bool:
    file = getattr(module, "__file__", None)
    if module is None or file is None:
        return getattr(module, "__name__", "") != "__main__"
    return (
        module.__name__.partition(".")[0] == "ld3_dist"
        or "site-packages" in file
        or "dist-packages" in file
        or file.startswith(sys.base_prefix + "/lib/python")
    )
