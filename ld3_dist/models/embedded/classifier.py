"""A packaged classifier, the feature extractor of an embedded model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from ...core.errors import InputError
from ...core.features import Extractor
from ..weights import check_weights, entry, read_tensors
from .denoiser import load_frozen, packaged_hash
from .unet import LARGEST


class Classifier(Protocol):
    """Images [B, C, H, W] in [-1, 1] -> logits [B, classes], with features and feature maps."""

    def __call__(self, x: Tensor) -> Tensor:
        """Logits [B, classes]."""
        ...

    def features(self, x: Tensor) -> Tensor:
        """Penultimate features [B, F]."""
        ...

    def maps(self, x: Tensor) -> list[Tensor]:
        """Feature maps [B, C, h, w], one per stage."""
        ...


Net = TypeVar("Net", bound=Any)  # an nn.Module that is a Classifier; no type says both


@dataclass(frozen=True)
class EmbeddedClassifier(Generic[Net]):
    """A packaged classifier: the name of its model, its folder and its type.

    network: makes the classifier from the three channels of its stages.
    """

    name: str
    folder: Path
    network: Callable[[tuple[int, int, int]], Net]

    @property
    def file(self) -> Path:
        """The packaged weights file."""
        return self.folder / "classifier.safetensors"

    @property
    def kind(self) -> str:
        """The kind in the header of a weights file."""
        return f"ld3_dist {self.name} classifier 1"

    @property
    def remedy(self) -> str:
        """The advice in messages about a weights file."""
        command = f"python -m ld3_dist.models.{self.name} classifier"
        return f"reinstall ld3_dist, or train it anew with `{command}`"

    def hash(self) -> str:
        """SHA-256 of the packaged weights file."""
        return packaged_hash(self.file)

    def load(
        self,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        file: Path | None = None,
    ) -> Net:
        """The packaged classifier (or one trained into `file`), frozen, in evaluation mode.

        Raises InputError when the file is missing, truncated or of another kind.
        """
        file = self.file if file is None else Path(file)
        tensors, config = read_tensors(file, self.kind, self.remedy)
        channels = tuple(entry(config, "channels", list, file, self.remedy))
        good = all(isinstance(c, int) and 1 <= c <= LARGEST for c in channels)
        if len(channels) != 3 or not good:
            raise InputError(
                f"{file}: channels in its header are {channels}, not three from 1 to {LARGEST}; "
                f"{self.remedy}"
            )
        with torch.device("meta"):  # sizes that do not fit the tensors cost no memory
            check_weights(self.network(channels), tensors, file, self.remedy)
        net = load_frozen(self.network(channels), tensors, file, self.remedy)
        return net.to(device, dtype)

    def extractor(self, device: str | torch.device = "cpu") -> Extractor:
        """The packaged classifier as a feature extractor."""
        net = self.load(device)
        return Extractor(f"{self.name} classifier", self.hash(), net.features, net.maps)


@torch.no_grad()
def in_parts(f: Callable[[Tensor], Tensor], images: Tensor, size: int = 500) -> Tensor:
    """f of images [N, …], `size` at a time, on the CPU in float32."""
    return torch.cat([f(part).float().cpu() for part in images.split(size)])


def accuracy(net: Classifier, images: Tensor, labels: Tensor) -> float:
    """The fraction of images [M, C, H, W] that are classified as their labels [M]."""
    return float((in_parts(net, images).argmax(1) == labels.cpu()).double().mean())
