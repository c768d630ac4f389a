"""The digits classifier, the feature extractor of the embedded model.

It has three convolutions and two linear layers, with SiLU and average pooling. All of that is
smooth, without norms and roots, so gradients are finite everywhere. The penultimate features
[B, 64] serve the Fréchet and the kernel distance; the maps of the convolutions serve a perceptual
distance. It was trained on four fifths of the digits; `classifier.json` has its accuracy on the
other fifth.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional

from ..embedded.classifier import EmbeddedClassifier

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


CLASSIFIER = EmbeddedClassifier("digits", Path(__file__).parent, DigitsClassifier)
"""The packaged classifier."""
