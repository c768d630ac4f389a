"""Weights that ship with the package: their file, and the words about it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar, TypeVar

from torch import Tensor, nn

from ..weights import load_weights, sha256_of

Net = TypeVar("Net", bound=nn.Module)


@dataclass(frozen=True)
class Packaged:
    """A packaged weights file of an embedded model.

    name: of the model and of its package below `ld3_dist.models`.
    folder: the folder with the file `<part>.safetensors`.
    """

    part: ClassVar[str]
    stage: ClassVar[str]  # words after the model's training command

    name: str
    folder: Path

    @property
    def file(self) -> Path:
        """The packaged weights file."""
        return self.folder / f"{self.part}.safetensors"

    @property
    def kind(self) -> str:
        """The kind in the header of a weights file."""
        return f"ld3_dist {self.name} {self.part} 1"

    @property
    def remedy(self) -> str:
        """The advice in messages about a weights file."""
        command = f"python -m ld3_dist.models.{self.name}{self.stage}"
        return f"reinstall ld3_dist, or train it anew with `{command}`"

    def hash(self) -> str:
        """SHA-256 of the packaged weights file."""
        return packaged_hash(self.file)


@cache
def packaged_hash(file: Path) -> str:
    """SHA-256 of a packaged file, which does not change while a process runs."""
    return sha256_of(file)


def load_frozen(net: Net, tensors: dict[str, Tensor], file: Path, remedy: str) -> Net:
    """The network with these weights, frozen, in evaluation mode."""
    load_weights(net, tensors, file, remedy)
    return net.eval().requires_grad_(False)
