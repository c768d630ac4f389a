"""Training checkpoints (`.ckpt`, `.pt`, `.safetensors`): their tensors by name, and nothing
executed.

A training checkpoint is a torch file whose pickle holds, beside the weights, whatever the training
framework kept: callbacks, settings, counters. torch's own `weights_only` reading refuses the whole
file for these. Here every name the pickle refers to is answered from a list: what makes tensors and
plain containers is torch's, what belongs to a framework becomes an object that only remembers what
it is given, any other name ends the reading."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..core.errors import InputError
from .edm.unpickle import Forbidden, Remembered

FRAMEWORKS = ("pytorch_lightning.", "lightning.", "lightning_fabric.", "omegaconf.", "typing.")
PLAIN: dict[str, Any] = {
    "torch._utils._rebuild_tensor_v2": torch._utils._rebuild_tensor_v2,  # type: ignore[attr-defined]
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


def _load(file: Any, **options: Any) -> Any:
    return _Reader(file, **options).load()


def read_tensors_of(file: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, on the CPU: those of its `state_dict` where it has one.

    Raises InputError, naming the file: it is missing, truncated, refers to what no checkpoint needs
    (nothing was executed), or holds no tensors."""
    if not file.is_file():
        raise InputError(f"checkpoint {file}: file not found; download it")
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        reader = SimpleNamespace(Unpickler=_Reader, load=_load, __name__="restricted")
        content = torch.load(file, map_location="cpu", weights_only=False, pickle_module=reader)
    except Forbidden as error:
        raise InputError(
            f"{file}: this checkpoint refers to {error}, which no weights need and which could "
            f"run code; nothing in it "
            "was executed. Get the file from its publisher again, or have its owner convert it "
            "to safetensors"
        ) from None
    except Exception as error:  # a damaged file fails in as many ways as there are opcodes
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{file}: truncated, or not a checkpoint ({reason}); download it again"
        ) from error
    found = content.get("state_dict", content) if isinstance(content, dict) else {}
    tensors = (
        {str(k): v for k, v in found.items() if isinstance(v, Tensor)}
        if isinstance(found, dict)
        else {}
    )
    if not tensors:
        raise InputError(
            f"{file}: holds no tensors under 'state_dict'; give a checkpoint of a model"
        )
    return tensors
