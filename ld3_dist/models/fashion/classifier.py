"""The fashion classifier: feature extractor of the Fréchet, kernel and perceptual distances on the
model `fashion`.

Six convolutions with batch normalisation and SiLU, averages instead of maxima. In use, batch
normalisation is a fixed scale and shift, so that everything is smooth and gradients are finite
everywhere. Features [B, 128], the averages of the last maps, feed distribution distances; the maps
of each resolution feed a perceptual distance. Trained on the 60,000 training images; accuracy on
the 10,000 test images: see `classifier.json`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...core.errors import InputError
from ..weights import check_weights, entry, load_weights, read_tensors, sha256_of
from .network import LARGEST

CLASSIFIER_FILE = Path(__file__).with_name("classifier.safetensors")
CLASSIFIER_KIND = "ld3_dist fashion classifier 1"
REMEDY = "reinstall ld3_dist, or train it anew with `python -m ld3_dist.models.fashion classifier`"


class FashionClassifier(nn.Module):
    """Images [B, 1, 28, 28] in [-1, 1] -> logits [B, 10]; works in the dtype of its weights."""

    def __init__(self, channels: tuple[int, int, int] = (32, 64, 128)) -> None:
        super().__init__()
        a, b, c = self.channels = tuple(channels)
        self.stage_1 = _stage(1, a)
        self.stage_2 = _stage(a, b)
        self.stage_3 = _stage(b, c)
        self.decide = nn.Linear(c, 10)
        self.dropout = nn.Dropout(0.3)

    def maps(self, x: Tensor) -> list[Tensor]:
        """Feature maps of all resolutions: [B, 32, 28, 28], [B, 64, 14, 14], [B, 128, 7, 7]."""
        first = self.stage_1(x)
        second = self.stage_2(functional.avg_pool2d(first, 2))
        third = self.stage_3(functional.avg_pool2d(second, 2))
        return [first, second, third]

    def features(self, x: Tensor) -> Tensor:
        """Features [B, 128]: the averages of the last maps."""
        return self.maps(x)[-1].mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, 10]."""
        return self.decide(self.dropout(self.features(x)))


def _stage(c_in: int, c_out: int) -> nn.Sequential:
    first = (nn.Conv2d(c_in, c_out, 3, padding=1, bias=False), nn.BatchNorm2d(c_out), nn.SiLU())
    return nn.Sequential(
        *first, nn.Conv2d(c_out, c_out, 3, padding=1, bias=False), nn.BatchNorm2d(c_out), nn.SiLU()
    )


def load_fashion_classifier(
    device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, file: Path | None = None
) -> FashionClassifier:
    """The packaged classifier (or one trained into `file`), frozen, in evaluation mode.

    Raises InputError when the file is missing, truncated or of another kind.
    """
    file = CLASSIFIER_FILE if file is None else Path(file)
    tensors, config = read_tensors(file, CLASSIFIER_KIND, REMEDY)
    channels = tuple(entry(config, "channels", list, file, REMEDY))
    if len(channels) != 3 or not all(isinstance(c, int) and 1 <= c <= LARGEST for c in channels):
        raise InputError(
            f"{file}: channels in its header are {channels}, not three from 1 to {LARGEST}; "
            f"{REMEDY}"
        )
    with torch.device("meta"):  # sizes that do not fit the tensors cost no memory
        check_weights(FashionClassifier(channels), tensors, file, REMEDY)
    net = FashionClassifier(channels)
    load_weights(net, tensors, file, REMEDY)
    return net.to(device, dtype).eval().requires_grad_(False)


@torch.no_grad()
def in_parts(f: Callable[[Tensor], Tensor], images: Tensor, size: int = 500) -> Tensor:
    """f of images [N, …], `size` at a time, on the CPU in float32."""
    return torch.cat([f(part).float().cpu() for part in images.split(size)])


@cache
def classifier_hash() -> str:
    """SHA-256 of the packaged classifier's weights file."""
    return sha256_of(CLASSIFIER_FILE)
