"""Safetensors files with a `kind` and a JSON `config` in the header, both checked on reading; and
checks of networks whose weights a library has loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
import textwrap
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ..core.errors import InputError


def sha256_of(file: str | os.PathLike[str]) -> str:
    """Hexadecimal SHA-256 of a file's bytes, read in pieces: weights can be large."""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def save_tensors(
    file: Path, tensors: dict[str, Tensor], kind: str, config: dict[str, Any] | None = None
) -> None:
    """Write tensors atomically: a crash leaves the old file or the new one, never half of one."""
    part = file.with_name(f".{file.name}.part")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # safetensors orders header keys at random when there are several, so one key keeps equal
    # weights equal bytes
    header = json.dumps({"kind": kind, "config": config or {}}, sort_keys=True)
    part.write_bytes(save(tensors, metadata={"ld3_dist": header}))
    os.replace(part, file)


def read_tensors(file: Path, kind: str, remedy: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, config) of a file written by save_tensors with this kind.

    Raises InputError, naming the file and the remedy, when it is missing, truncated or of another
    kind."""
    if not file.is_file():
        raise InputError(f"{file}: file not found; {remedy}")
    try:
        with safe_open(file, framework="pt") as opened:
            header = json.loads((opened.metadata() or {}).get("ld3_dist", "{}"))
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118, not a dict
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{file}: damaged, or not a safetensors file ({error}); {remedy}"
        ) from error
    found = header.get("kind", "no kind") if isinstance(header, dict) else "no kind"
    if found != kind:
        raise InputError(f"{file}: holds {found!r}, expected {kind!r}; {remedy}")
    config = header.get("config")
    if not isinstance(config, dict):
        raise InputError(f"{file}: its header has no config; {remedy}")
    return tensors, config


def entry(config: dict[str, Any], key: str, kind: type, file: Path, remedy: str) -> Any:
    """An entry of a file's config; InputError if it is missing or of another type."""
    value = config.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise InputError(f"{file}: {key} in its header is {value!r}; {remedy}")
    return value


def check_weights(net: nn.Module, tensors: dict[str, Tensor], file: Path, remedy: str) -> None:
    """Raise InputError that names the first tensor which does not fit a network."""
    wanted = net.state_dict()
    for name in sorted(wanted.keys() | tensors.keys()):
        if name not in wanted:
            what = "is unexpected"
        elif name not in tensors:
            what = "is missing"
        elif wanted[name].shape != tensors[name].shape:
            what = f"has shape {tuple(tensors[name].shape)}, not {tuple(wanted[name].shape)}"
        else:
            continue
        raise InputError(f"{file}: tensor {name!r} {what}; {remedy}")


def load_weights(net: nn.Module, tensors: dict[str, Tensor], file: Path, remedy: str) -> None:
    """Load tensors into a network strictly; InputError names the first one that does not fit."""
    check_weights(net, tensors, file, remedy)
    net.load_state_dict(tensors)


def check_whole(network: nn.Module, missing: Collection[str], place: Path | str) -> None:
    """Refuse a network with tensors that its files did not hold, or with values that are not
    finite.

    Args:
        missing: names of tensors that the library did not find.
        place: the network's folder, for messages.
    """
    lost = {*missing} | {name for name, tensor in network.state_dict().items() if tensor.is_meta}
    if lost:
        raise InputError(
            f"{place}: its files hold no {_listed(lost)} of {type(network).__name__}, which would "
            "be drawn at random; download it again, or use the version of the library that wrote it"
        )
    spoilt = [name for name, tensor in network.named_parameters() if not _finite(tensor)]
    if spoilt:
        raise InputError(f"{place}: {_listed(spoilt)} is not finite; download it again")


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def _listed(names: Collection[str]) -> str:
    first = ", ".join(sorted(names)[:3])
    more = f" and {len(names) - 3} more tensors" if len(names) > 3 else ""
    return textwrap.shorten(first, 200, placeholder=" …") + more
