"""The fashion classifier: feature extractor of the Fréchet, kernel and perceptual distances on the
model `fashion`.

Six convolutions with batch normalisation and SiLU, averages instead of maxima. In use, batch
normalisation is a fixed scale and shift, so that everything is smooth and gradients are finite
everywhere. Features [B, 128], the averages of the last maps, feed distribution distances; the maps
of each resolution feed a perceptual distance. Trained on the 60,000 training images; accuracy on
the 10,000 test images: see `classifier.json`.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional

from ..embedded.classifier import EmbeddedClassifier


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


CLASSIFIER = EmbeddedClassifier("fashion", Path(__file__).parent, FashionClassifier)
"""The packaged classifier."""
