"""A packaged classifier, the feature extractor of an embedded model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from ...core.errors import InputError
from ...core.features import Extractor
from ..weights import check_weights, entry, read_tensors
from .packaged import Packaged, load_frozen
from .unet import LARGEST

LAYERS = ("stage-1", "stage-2", "stage-3")
"""Names of the feature maps."""


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
class EmbeddedClassifier(Packaged, Generic[Net]):
    """A packaged classifier.

    network: makes the classifier from the three channels of its stages.
    """

    part: ClassVar[str] = "classifier"
    stage: ClassVar[str] = " classifier"

    network: Callable[[tuple[int, int, int]], Net]

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
        return Extractor(
            f"{self.name} classifier", self.hash(), net.features, net.maps, layers=LAYERS
        )


@torch.no_grad()
def in_parts(f: Callable[[Tensor], Tensor], images: Tensor, size: int = 500) -> Tensor:
    """f of images [N, …], `size` at a time, on the CPU in float32."""
    return torch.cat([f(part).float().cpu() for part in images.split(size)])


def accuracy(net: Classifier, images: Tensor, labels: Tensor) -> float:
    """The fraction of images [M, C, H, W] that are classified as their labels [M]."""
    return float((in_parts(net, images).argmax(1) == labels.cpu()).double().mean())
