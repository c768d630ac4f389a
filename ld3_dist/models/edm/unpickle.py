"""A reader of EDM checkpoints that runs nothing in them.

Such a file is a pickle whose objects carry the source text of their own classes, to be executed on
loading. Only the class's name, its constructor's arguments and its tensors are needed, and nothing
has to run for them:

    every name the pickle refers to is answered from the table below, by functions of ours that only
    remember what they are given; no module is ever imported by name; a name that is not in the
    table ends the reading with an error.

A tensor lies in the pickle as bytes of an inner file. `torch.load(weights_only=True)` reads it by
the same rule. The tree of remembered modules is then flattened to a state dict.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import textwrap
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from ...core.errors import InputError

INERT_PREFIXES = ("torch.nn.modules.", "torch_utils.", "training.", "dnnlib.")


@dataclass(frozen=True)
class Checkpoint:
    """The content of a file: class of the outermost module, its arguments, and tensors by name."""

    class_name: str
    arguments: dict[str, Any]
    tensors: dict[str, Tensor]


class Remembered:
    """An object of the pickle: its class's name, its arguments and its state.

    Nothing of its class is loaded.
    """

    origin = ""
    state: dict[str, Any]

    def __new__(cls, *_: Any) -> Remembered:
        """An object with a state from the first: a pickle may fill it without initialising it."""
        made = super().__new__(cls)
        made.state = {}
        return made

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {"state": state}


class RememberedDict(dict[Any, Any]):
    """A dict subclass of the pickle (dnnlib.EasyDict) as a dict; its state is dropped."""

    def __setstate__(self, state: Any) -> None:
        return None


class NumpyType:
    """numpy.dtype(code, align, copy), limited to plain numbers."""

    def __init__(self, code: str, *_: Any) -> None:
        self.code, self.order = code, "<"

    def __setstate__(self, state: Any) -> None:
        self.order = state[1] if isinstance(state, tuple) and len(state) > 1 else "<"

    @property
    def dtype(self) -> numpy.dtype[Any]:
        """The numpy type; raises UnpicklingError for anything but a number."""
        found = numpy.dtype(self.code)
        if found.kind not in "biuf":
            raise pickle.UnpicklingError(f"numpy type {self.code!r} is not a number's")
        return found.newbyteorder(">" if self.order == ">" else "<")


def _numpy_scalar(kind: NumpyType, data: bytes) -> float | int:
    return numpy.frombuffer(data, dtype=kind.dtype, count=1)[0].item()


def _bytes_from_text(text: str, encoding: str) -> bytes:
    # protocol 2 spells bytes in this way; no other spelling is read
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in encoding {encoding!r}")
    return text.encode("latin1")


def _persistent_object(meta: dict[str, Any]) -> Remembered:
    made = Remembered()
    made.origin = str(meta["class_name"])
    made.state = dict(meta["state"] or {})
    return made


def _storage(data: bytes) -> Any:
    check_archive(io.BytesIO(data), "a tensor")
    try:
        storage = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise Forbidden("an object inside a tensor's bytes that is not a tensor") from error
    if not isinstance(storage, torch.storage.TypedStorage):
        raise pickle.UnpicklingError(f"a tensor's bytes hold {type(storage).__name__}")
    return storage


def _tensor(
    storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> Tensor:
    return checked_tensor(storage, offset, size, stride)


def checked_tensor(
    storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...]
) -> Tensor:
    """A tensor on a storage, after a check that it lies inside and repeats nothing.

    Raises UnpicklingError for a tensor that reaches beyond its storage or is larger than it.
    Strides of 0 would make terabytes of one number.
    """
    untyped = storage._untyped_storage  # the public spelling warns of its own deprecation
    room = untyped.nbytes() // storage.dtype.itemsize
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    last = last if all(size) else offset - 1
    if min(offset, *size, *stride, 0) < 0 or last >= room or math.prod(size) > room:
        raise pickle.UnpicklingError(f"a tensor of size {tuple(size)} reaches beyond its storage")
    return torch.empty(0, dtype=storage.dtype).set_(untyped, offset, tuple(size), tuple(stride))


def check_archive(file: Any, name: str) -> None:
    """Refuse a zip archive whose files are larger than itself, by compression or overlap.

    torch writes its archives uncompressed. A file that is no zip archive passes.

    Args:
        file: a path or an open file.
        name: of the file in the message.

    Raises UnpicklingError.
    """
    if not zipfile.is_zipfile(file):
        return
    with zipfile.ZipFile(file) as archive:
        parts = archive.infolist()
        end = archive.start_dir
    total = sum(part.file_size for part in parts)
    if total > end or any(part.compress_type != zipfile.ZIP_STORED for part in parts):
        raise pickle.UnpicklingError(
            f"{name} is an archive of {end:,} bytes that inflates to {total:,}, or is compressed, "
            f"which no checkpoint of torch is"
        )


MOST_OPERATIONS = 1_000_000
"""The most operations of a pickle; a published checkpoint has some ten thousand."""


def check_operations(opened: Any) -> None:
    """Read a pickle's operations without running them; refuse one that would fill the memory.

    Raises UnpicklingError for a pickle that is damaged, has too many operations, or remembers
    objects under numbers far beyond their count.
    """
    count = 0
    try:
        for operation, argument, _ in pickletools.genops(opened):
            count += 1
            put = operation.name in ("LONG_BINPUT", "PUT", "BINPUT")
            if count > MOST_OPERATIONS or (put and int(argument or 0) > MOST_OPERATIONS):
                raise pickle.UnpicklingError(f"it has more than {MOST_OPERATIONS:,} operations")
    except ValueError as error:
        raise pickle.UnpicklingError(str(error)) from error


def _parameter(data: Tensor, *_: Any) -> Tensor:
    return data


def _plain_set(items: Any = ()) -> set[Any]:
    return set(items)


ALLOWED: dict[str, Any] = {
    "torch_utils.persistence._reconstruct_persistent_obj": _persistent_object,
    "dnnlib.util.EasyDict": RememberedDict,
    "dnnlib.EasyDict": RememberedDict,
    "collections.OrderedDict": RememberedDict,
    "builtins.set": _plain_set,
    "torch.storage._load_from_bytes": _storage,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "numpy.dtype": NumpyType,
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy._core.multiarray.scalar": _numpy_scalar,
    "_codecs.encode": _bytes_from_text,
    "torch.Size": tuple,
    "torch.device": Remembered,
    **{
        f"torch.{name}": getattr(torch, name)
        for name in ("float16", "bfloat16", "float32", "float64", "int64")
    },
}


class _Reader(pickle.Unpickler):
    inert: tuple[str, ...] = INERT_PREFIXES
    """Beginnings of the names that stand for objects which only keep what they are given."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        name = f"{module_name}.{global_name}"
        if name in ALLOWED:
            return ALLOWED[name]
        if name.startswith(self.inert):
            return type("Inert", (Remembered,), {"origin": global_name})
        raise Forbidden(name)

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError(f"an external object {pid!r} is referred to")


class Forbidden(Exception):
    """A name that no checkpoint of the wanted kind needs."""


def read_objects(file: Path, kind: str, inert: tuple[str, ...] = ()) -> Any:
    """The content of a pickle, whose objects are `Remembered`, tensors and plain containers.

    Nothing in it is executed.

    Args:
        kind: the kind of file that is wanted, for messages: "EDM".
        inert: beginnings of more names that stand for objects which only keep what they are given.

    Raises InputError, naming the file, if it refers to anything else, is truncated or no pickle.
    """
    reader = type("Reader", (_Reader,), {"inert": (*INERT_PREFIXES, *inert)})
    try:
        with file.open("rb") as opened:
            check_operations(opened)
            opened.seek(0)
            return reader(opened).load()
    except Forbidden as error:
        raise InputError(
            f"{file}: this pickle refers to {error}, which no {kind} checkpoint needs and which "
            f"could run code; nothing "
            "in it was executed. Get the file from its publisher again, or have its owner "
            "convert it to safetensors"
        ) from None
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error})") from error
    except (EOFError, pickle.UnpicklingError) as error:
        raise InputError(
            f"{file}: truncated, or not an {kind} pickle ({error}); download it again"
        ) from error
    except Exception as error:  # a damaged pickle fails in as many ways as there are opcodes
        raise InputError(
            f"{file}: damaged, or not an {kind} pickle ({type(error).__name__}: {error})"
        ) from error


def read_pickle(file: Path) -> Checkpoint:
    """The averaged ("ema") network of an EDM pickle.

    Nothing in it is executed. Raises InputError, naming the file, if it refers to something that no
    such checkpoint needs, is truncated or no pickle, or holds no network.
    """
    content = read_objects(file, "EDM")
    root = content.get("ema", content.get("net")) if isinstance(content, dict) else content
    if not isinstance(root, Remembered) or not root.origin:
        names = (
            [key for key in content if isinstance(key, str)] if isinstance(content, dict) else []
        )
        found = ", ".join(sorted(names)) or type(content).__name__
        found = textwrap.shorten(found, 200, placeholder=" …")
        raise InputError(
            f"{file}: holds no network under 'ema' (found: {found}); give a network snapshot"
        )
    try:
        tensors = _flatten(root)
    except pickle.UnpicklingError as error:
        raise InputError(f"{file}: its network is nonsense ({error}); download it again") from error
    return Checkpoint(root.origin, _arguments(root, file), tensors)


def _arguments(root: Remembered, file: Path) -> dict[str, Any]:
    names = ("img_resolution", "img_channels", "label_dim", "use_fp16")
    positional, named = root.state.get("_init_args"), root.state.get("_init_kwargs")
    if positional is None or named is None:
        raise InputError(
            f"{file}: the network's constructor arguments (_init_args, _init_kwargs) are missing"
        )
    if not isinstance(positional, (tuple, list)) or not isinstance(named, dict):
        raise InputError(
            f"{file}: the network's constructor arguments are a {type(positional).__name__} and a "
            f"{type(named).__name__}, no list and no mapping"
        )
    if len(positional) > len(names):
        raise InputError(
            f"{file}: {len(positional)} positional constructor arguments; at most {len(names)} "
            f"are known"
        )
    return {**dict(zip(names, positional, strict=False)), **named}


DEEPEST, MOST_MODULES = 30, 100_000
"""Levels of modules, and their number, in a network; the published ones have 5 and some 1,000."""


def _flatten(root: Remembered) -> dict[str, Tensor]:
    """The tensors of a tree of modules by their full names.

    Raises UnpicklingError for a tree that contains itself or has no end, and for names and tables
    that are none.
    """
    out: dict[str, Tensor] = {}
    waiting, visits = [(root, "", 0)], 0
    while waiting:
        module, prefix, depth = waiting.pop()
        visits += 1
        if depth > DEEPEST or visits > MOST_MODULES:
            raise pickle.UnpicklingError(
                f"modules contain each other without end, or more than {DEEPEST} levels deep, at "
                f"{prefix[:80]!r}"
            )
        for kind in ("_parameters", "_buffers"):
            for name, value in _table(module, kind, prefix).items():
                if isinstance(value, Tensor):
                    out[prefix + name] = value
        children = _table(module, "_modules", prefix)
        if len(waiting) + len(children) > MOST_MODULES or len(out) > MOST_MODULES:
            raise pickle.UnpicklingError(f"it has more than {MOST_MODULES:,} modules or tensors")
        for name, child in children.items():
            if isinstance(child, Remembered):
                waiting.append((child, f"{prefix}{name}.", depth + 1))
    return out


def _table(module: Remembered, kind: str, prefix: str) -> Mapping[str, Any]:
    found = module.state.get(kind)
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise pickle.UnpicklingError(f"{kind} of the module {prefix[:80]!r} is no table of names")
    return found
