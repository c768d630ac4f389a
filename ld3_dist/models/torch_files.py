"""Tensors of training checkpoints (`.ckpt`, `.pt`, `.safetensors`) by name; nothing is executed.

A training checkpoint is a torch file. Beside the weights, its pickle holds objects of the training
framework: callbacks, settings, counters. torch's own `weights_only` reading refuses the whole file
for these. Here every name in the pickle is answered from a list. Names of tensors and plain
containers stand for torch's own functions. Names of a framework stand for objects that only keep
their arguments. Any other name ends the reading.
"""

from __future__ import annotations

import pickle
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..core.errors import InputError
from .edm.unpickle import Forbidden, Remembered, check_archive, checked_tensor

FRAMEWORKS = ("pytorch_lightning.", "lightning.", "lightning_fabric.", "omegaconf.", "typing.")
PLAIN: dict[str, Any] = {
    "torch._utils._rebuild_tensor_v2": lambda *told: checked_tensor(*told[:4]),
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "collections.OrderedDict": OrderedDict,
    "collections.defaultdict": lambda *_: {},
    "builtins.set": lambda items=(): set(items),
    "builtins.dict": dict,
    "builtins.list": list,
    "builtins.int": int,
    "builtins.float": float,
    "torch.Size": tuple,
}


class _Reader(pickle.Unpickler):
    sizes: Mapping[str, int] = {}
    """Bytes of the storages in the archive, by their keys; empty for a file that is no archive."""

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; the function by which torch finds storages gets a check."""
        checked = name == "persistent_load" and self.sizes
        super().__setattr__(name, _checking(value, self.sizes) if checked else value)

    def find_class(self, module_name: str, global_name: str) -> Any:
        name = f"{module_name}.{global_name}"
        if name in PLAIN:
            return PLAIN[name]
        if name.startswith(FRAMEWORKS) or name.startswith(
            ("numpy.core.multiarray.scalar", "numpy.dtype")
        ):
            return type("Inert", (Remembered,), {"origin": global_name})
        if module_name == "torch" and isinstance(getattr(torch, global_name, None), torch.dtype):
            return getattr(torch, global_name)
        raise Forbidden(name)


def _checking(find: Callable[[Any], Any], sizes: Mapping[str, int]) -> Callable[[Any], Any]:
    """A function that finds storages after a check of their sizes."""

    def checked(saved: Any) -> Any:
        _check_storage(saved, sizes)
        return find(saved)

    return checked


def _check_storage(saved: Any, sizes: Mapping[str, int]) -> None:
    """Refuse a storage that claims to be larger than its file; torch would read beyond the end."""
    _, kind, key, _, count = saved
    claimed = int(count) * kind.dtype.itemsize
    if str(key) not in sizes or not 0 <= claimed <= sizes[str(key)]:
        raise pickle.UnpicklingError(
            f"the storage {key!r} is said to have {claimed:,} bytes, the file has "
            f"{sizes.get(str(key), 0):,}"
        )


def _storage_sizes(file: Path) -> dict[str, int]:
    """Bytes of each storage in a torch archive; empty for another file."""
    if not zipfile.is_zipfile(file):
        return {}
    with zipfile.ZipFile(file) as archive:
        return {
            part.filename.rpartition("/")[2]: part.file_size
            for part in archive.infolist()
            if "/data/" in part.filename
        }


def read_content(file: Path) -> Any:
    """The content of a torch file on the CPU: tensors, plain containers, and inert objects.

    Nothing in it is executed. Raises InputError, naming the file, if it is missing or truncated, or
    refers to something that no checkpoint needs.
    """
    if not file.is_file():
        raise InputError(f"checkpoint {file}: file not found; download it")
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        check_archive(file, "it")
        if tarfile.is_tarfile(file):
            raise pickle.UnpicklingError("it is a tar archive, which is not read")
        kind = type("Reader", (_Reader,), {"sizes": _storage_sizes(file)})
        reader = SimpleNamespace(
            Unpickler=kind,
            load=lambda opened, **options: kind(opened, **options).load(),
            __name__="restricted",
        )
        return torch.load(file, map_location="cpu", weights_only=False, pickle_module=reader)
    except Forbidden as error:
        raise InputError(
            f"{file}: this checkpoint refers to {error}, which no weights need and which could "
            f"run code; nothing in it was executed. Get the file from its publisher again, or have "
            f"its owner convert it to safetensors"
        ) from None
    except Exception as error:  # a damaged file fails in as many ways as there are opcodes
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{file}: truncated, or not a checkpoint ({reason}); download it again"
        ) from error


def read_tensors_of(file: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, on the CPU; the tensors of its `state_dict` if it has one.

    Nothing in it is executed. Raises InputError, naming the file, if it is missing or truncated,
    refers to something that no checkpoint needs, or holds no tensors.
    """
    content = read_content(file)
    found = content.get("state_dict", content) if isinstance(content, dict) else {}
    tensors = _floating(found) if isinstance(found, dict) else {}
    if not tensors:
        raise InputError(
            f"{file}: holds no tensors under 'state_dict'; give a checkpoint of a model"
        )
    return tensors


def _floating(found: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The tensors of a table, without complex ones, which no network here has."""
    return {
        str(name): value
        for name, value in found.items()
        if isinstance(value, Tensor) and not value.is_complex()
    }
