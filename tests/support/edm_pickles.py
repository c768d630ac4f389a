"""EDM pickles in their published form, written by hand."""

from __future__ import annotations

import pickle
import sys
import types
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import nn

from ld3_dist.models.edm.opening import EDMNetwork, build_network
from ld3_dist.models.edm.unpickle import Checkpoint

SONG = {
    "model_type": "SongUNet",
    "model_channels": 8,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [4],
    "augment_dim": 3,
    "dropout": 0.1,
}
NCSN = {
    **SONG,
    "embedding_type": "fourier",
    "encoder_type": "residual",
    "channel_mult_noise": 2,
    "resample_filter": [1, 3, 3, 1],
}
ADM = {
    "model_type": "DhariwalUNet",
    "model_channels": 64,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [4],
}
SIZE = {"img_resolution": 8, "img_channels": 3}
VARIANTS = {"ddpmpp": SONG, "ncsnpp": NCSN, "adm": ADM}


class Persistent:
    """An object as torch_utils.persistence pickles it: source text, class name and state."""

    def __init__(self, class_name: str, state: dict[str, Any]) -> None:
        self.meta = {
            "type": "class",
            "version": 6,
            "module_src": "open(CANARY, 'w').close()",  # to be executed on loading, if anybody did
            "class_name": class_name,
            "state": {"training": False, "skip_scale": numpy.sqrt(0.5), "_hooks": set(), **state},
        }

    def __reduce__(self) -> tuple[Any, ...]:
        return (
            sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj,
            (self.meta,),
            None,
        )  # type: ignore[attr-defined]


@pytest.fixture
def format_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that pickling looks up; they raise if anybody calls them, and are gone once the file is
    read.
    """

    def _reconstruct_persistent_obj(meta: dict[str, Any]) -> None:
        raise AssertionError("executed")

    persistence = types.ModuleType("torch_utils.persistence")
    _reconstruct_persistent_obj.__module__ = persistence.__name__
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    persistence._reconstruct_persistent_obj = _reconstruct_persistent_obj  # type: ignore[attr-defined]
    dnnlib = types.ModuleType("dnnlib.util")
    easy = type("EasyDict", (dict,), {"__module__": "dnnlib.util", "__qualname__": "EasyDict"})
    dnnlib.EasyDict = easy  # type: ignore[attr-defined]
    for module in (
        persistence,
        dnnlib,
        types.ModuleType("torch_utils"),
        types.ModuleType("dnnlib"),
    ):
        monkeypatch.setitem(sys.modules, module.__name__, module)


def tree(module: nn.Module, state: dict[str, Any] | None = None, name: str = "") -> Any:
    """A module of ours as the published files hold it."""
    children = {key: tree(child) for key, child in module._modules.items() if child is not None}
    if isinstance(module, nn.ModuleDict):
        out = nn.ModuleDict()
        out._modules = children  # type: ignore[assignment]
        return out
    parameters = {k: v if v is None else nn.Parameter(v) for k, v in module._parameters.items()}
    found = {
        "_parameters": parameters,
        "_buffers": dict(module._buffers),
        "_modules": children,
        **(state or {}),
    }
    return Persistent(name or type(module).__name__, found)


def tiny_network(class_name: str, arguments: dict[str, Any]) -> EDMNetwork:
    torch.manual_seed(0)
    net = build_network(Checkpoint(class_name, arguments, {}), Path("test"))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return net


def content(
    net: EDMNetwork, class_name: str, arguments: dict[str, Any], **state: Any
) -> dict[str, Any]:
    state = {"_init_args": (), "_init_kwargs": arguments, "sigma_min": 0.002, **state}
    easy = sys.modules["dnnlib.util"].EasyDict
    return {
        "ema": tree(net, state, class_name),
        "loss_fn": Persistent("EDMLoss", {}),
        "dataset_kwargs": easy(path="x"),
    }


def write(
    file: Path, arguments: dict[str, Any], class_name: str = "EDMPrecond", **extra: Any
) -> EDMNetwork:
    net = tiny_network(class_name, arguments)
    file.write_bytes(pickle.dumps({**content(net, class_name, arguments), **extra}))
    return net
