"""Weights that come inside an installed package: its file is found, and no code of it imported."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import InputError


def installed_file(package: str, name: str, what: str, extra: str) -> Path:
    """The path of a file of an installed package.

    Args:
        package: its name, as it is installed.
        name: of the file, from the folder that packages are installed in.
        what, extra: for the message: what needs it, and the extra of ld3_dist that brings it.

    Raises InputError where the package or the file is missing.
    """
    remedy = f"pip install 'ld3_dist[{extra}]'"
    try:
        home = distribution(package)
    except PackageNotFoundError as error:
        raise InputError(f"{what} need the package {package}: {remedy}") from error
    file = Path(str(home.locate_file(name)))
    if not file.is_file():
        raise InputError(
            f"{what}: {file} is not there; {package} {home.version} is another release or damaged: "
            f"reinstall it with {remedy}"
        )
    return file


def _safe_or_plain(file: Path) -> Any:
    """The content of a *.safetensors, or of a file of PyTorch's that holds tensors alone."""
    if file.suffix != ".safetensors":
        return torch.load(file, map_location="cpu", weights_only=True)
    from safetensors.torch import load_file

    return load_file(file)


def read_weights(file: Path, what: str, remedy: str, inside: str = "") -> dict[str, Tensor]:
    """Tensors by name in a *.safetensors or a file of PyTorch's; nothing in it is executed.

    Args:
        what, remedy: for the message.
        inside: key of the table of tensors, where the file may hold other things beside it.

    Raises InputError for a file that is damaged or holds anything else.
    """
    try:
        weights = _safe_or_plain(file)
    except Exception as error:  # a truncated or foreign file makes torch raise many kinds
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{what}: cannot be read ({reason}); {remedy}") from error
    if inside and isinstance(weights, dict):
        weights = weights.get(inside, weights)
    if not isinstance(weights, dict) or not all(isinstance(v, Tensor) for v in weights.values()):
        raise InputError(f"{what}: holds no table of tensors; {remedy}")
    return dict(weights)
