"""Reading an EDM checkpoint without running anything in it.

Such a file is a pickle whose objects carry the source text of their own classes, to be executed on
loading. What is worth having are the class's name, its constructor's arguments and its tensors, and
for these nothing has to run:

    every name the pickle refers to is answered from the table below, by functions of ours that only
    remember what they are given; no module is ever imported by name; a name that is not in the
    table ends the reading with an error.

A tensor lies in the pickle as bytes of an inner file, read by `torch.load(weights_only=True)`,
which holds to the same rule. The tree of remembered modules is then flattened to a state dict."""

from __future__ import annotations

import io
import pickle
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
    """What a file says: the class of the outermost module, its constructor's arguments, and its
    tensors by name.
    """

    class_name: str
    arguments: dict[str, Any]
    tensors: dict[str, Tensor]


class Remembered:
    """An object of the pickle: what it was called, built from and filled with. Nothing of its class
    is loaded.
    """

    origin = ""
    state: dict[str, Any]

    def __new__(cls, *_: Any) -> Remembered:
        """A pickle may fill an object that it never initialises, so there is a state from the
        first.
        """
        made = super().__new__(cls)
        made.state = {}
        return made

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {"state": state}


class RememberedDict(dict[Any, Any]):
    """A dict subclass of the pickle (dnnlib.EasyDict), as a dict; its state, if any, is dropped."""

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
    # how protocol 2 spells bytes; only that spelling
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in encoding {encoding!r}")
    return text.encode("latin1")


def _persistent_object(meta: dict[str, Any]) -> Remembered:
    made = Remembered()
    made.origin = str(meta["class_name"])
    made.state = dict(meta["state"] or {})
    return made


def _storage(data: bytes) -> Any:
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
    untyped = storage._untyped_storage  # the public spelling warns of its own deprecation
    last = (
        offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
        if all(size)
        else offset - 1
    )
    if min(offset, *size, *stride, 0) < 0 or (last + 1) * storage.dtype.itemsize > untyped.nbytes():
        raise pickle.UnpicklingError(f"a tensor of size {tuple(size)} reaches beyond its storage")
    return torch.empty(0, dtype=storage.dtype).set_(untyped, offset, tuple(size), tuple(stride))


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
    def find_class(self, module_name: str, global_name: str) -> Any:
        name = f"{module_name}.{global_name}"
        if name in ALLOWED:
            return ALLOWED[name]
        if name.startswith(INERT_PREFIXES):
            return type("Inert", (Remembered,), {"origin": global_name})
        raise Forbidden(name)

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError(f"an external object {pid!r} is referred to")


class Forbidden(Exception):
    """A name that no EDM checkpoint needs."""


def read_pickle(file: Path) -> Checkpoint:
    """The averaged ("ema") network of an EDM pickle.

    Raises InputError, naming the file: it refers to something no such checkpoint needs (nothing was
    executed), is truncated or no pickle, or holds no network."""
    try:
        with file.open("rb") as opened:
            content = _Reader(opened).load()
    except Forbidden as error:
        raise InputError(
            f"{file}: this pickle refers to {error}, which no EDM checkpoint needs and which "
            f"could run code; nothing "
            "in it was executed. Get the file from its publisher again, or have its owner "
            "convert it to safetensors"
        ) from None
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error})") from error
    except (EOFError, pickle.UnpicklingError) as error:
        raise InputError(
            f"{file}: truncated, or not an EDM pickle ({error}); download it again"
        ) from error
    except Exception as error:  # a damaged pickle fails in as many ways as there are opcodes
        raise InputError(
            f"{file}: damaged, or not an EDM pickle ({type(error).__name__}: {error})"
        ) from error
    root = content.get("ema", content.get("net")) if isinstance(content, dict) else content
    if not isinstance(root, Remembered) or not root.origin:
        found = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise InputError(
            f"{file}: holds no network under 'ema' (found: {found}); give a network snapshot"
        )
    tensors: dict[str, Tensor] = {}
    _flatten(root, "", tensors)
    return Checkpoint(root.origin, _arguments(root, file), tensors)


def _arguments(root: Remembered, file: Path) -> dict[str, Any]:
    names = ("img_resolution", "img_channels", "label_dim", "use_fp16")
    positional, named = root.state.get("_init_args"), root.state.get("_init_kwargs")
    if positional is None or named is None:
        raise InputError(
            f"{file}: the network's constructor arguments (_init_args, _init_kwargs) are missing"
        )
    if len(positional) > len(names):
        raise InputError(
            f"{file}: {len(positional)} positional constructor arguments; at most {len(names)} "
            f"are known"
        )
    return {**dict(zip(names, positional, strict=False)), **named}


def _flatten(module: Remembered, prefix: str, out: dict[str, Tensor]) -> None:
    for kind in ("_parameters", "_buffers"):
        for name, value in (module.state.get(kind) or {}).items():
            if isinstance(value, Tensor):
                out[prefix + name] = value
    for name, child in (module.state.get("_modules") or {}).items():
        if isinstance(child, Remembered):
            _flatten(child, f"{prefix}{name}.", out)
