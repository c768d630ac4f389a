"""The digits classifier, the feature extractor of the embedded model.

It has three convolutions and two linear layers, with SiLU and average pooling. All of that is
smooth, without norms and roots, so gradients are finite everywhere. The penultimate features
[B, 64] serve the Fréchet and the kernel distance; the maps of the convolutions serve a perceptual
distance. It was trained on four fifths of the digits; `classifier.json` has its accuracy on the
other fifth.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...core.errors import InputError
from ..weights import entry, load_weights, read_tensors, sha256_of
from .network import LARGEST

CLASSIFIER_FILE = Path(__file__).with_name("classifier.safetensors")
CLASSIFIER_KIND = "ld3_dist digits classifier 1"
REMEDY = "reinstall ld3_dist, or train it anew with `python -m ld3_dist.models.digits classifier`"
FEATURES = 64


class DigitsClassifier(nn.Module):
    """Images [B, 1, 8, 8] in [-1, 1] -> logits [B, 10]; works in the dtype of its weights."""

    def __init__(self, channels: tuple[int, int, int] = (32, 48, 64)) -> None:
        super().__init__()
        a, b, c = self.channels = tuple(channels)
        self.conv_1 = nn.Conv2d(1, a, 3, padding=1)
        self.conv_2 = nn.Conv2d(a, b, 3, padding=1)
        self.conv_3 = nn.Conv2d(b, c, 3, padding=1)
        self.squeeze = nn.Linear(4 * c, FEATURES)
        self.decide = nn.Linear(FEATURES, 10)
        self.dropout = nn.Dropout(0.3)

    def maps(self, x: Tensor) -> list[Tensor]:
        """Feature maps of the three convolutions: [B, 32, 8, 8], [B, 48, 8, 8], [B, 64, 4, 4]."""
        first = functional.silu(self.conv_1(x))
        second = functional.silu(self.conv_2(first))
        third = functional.silu(self.conv_3(functional.avg_pool2d(second, 2)))
        return [first, second, third]

    def features(self, x: Tensor) -> Tensor:
        """Penultimate features [B, 64]."""
        last = functional.avg_pool2d(self.maps(x)[-1], 2).flatten(1)
        return functional.silu(self.squeeze(self.dropout(last)))

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, 10]."""
        return self.decide(self.dropout(self.features(x)))


def load_digits_classifier(
    device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, file: Path | None = None
) -> DigitsClassifier:
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
    net = DigitsClassifier(channels)
    load_weights(net, tensors, file, REMEDY)
    return net.to(device, dtype).eval().requires_grad_(False)


@cache
def classifier_hash() -> str:
    """SHA-256 of the packaged classifier's weights file."""
    return sha256_of(CLASSIFIER_FILE)
