"""Shift-tolerant LPIPS: a learned distance between images that a shift by a pixel hardly moves.

    d(a, b) = sum over five layers of the mean over positions of sum_c w_c (u_a - u_b)_c^2

with u and w as in `lpips`, of AlexNet or VGG16 trained anew with three changes: convolutions have
stride 1, a blur of 3x3 goes before every halving of the size, and edges are reflected by two pixels
(Ghildyal & Liu 2022, arXiv 2207.13686; the blur is Zhang 2019, arXiv 1904.11486). Its values are
not those of LPIPS.

Trunks and weights w come with the package `stlpips-pytorch` (extra `features`, BSD-2); none of its
code runs. Images are enlarged until their smallest side is SMALLEST pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from .comparison import Distance, enlarged, unit_channels
from .errors import InputError, unknown
from .installed import installed_file, read_weights

PACKAGE = "stlpips-pytorch"
FILE = "stlpips_pytorch/weights/vST0.0/{net}_shift_tolerant.pth"
SMALLEST = 64
WIDTHS = {"alex": (64, 192, 384, 256, 256), "vgg": (64, 128, 256, 512, 512)}
"""Channels of the five layers that are compared."""


class Halved(nn.Module):
    """x [B, C, h, w], blurred with a kernel of 3x3 and taken at every second position."""

    filt: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("filt", torch.zeros(channels, 1, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = functional.pad(x, [2, 2, 2, 2], mode="reflect")
        return functional.conv2d(x, self.filt, stride=2, groups=x.shape[1])


def _alex() -> tuple[list[nn.Module], tuple[int, ...]]:
    """AlexNet's layers, and the numbers of those whose outputs are compared."""
    layers = [nn.Conv2d(3, 64, 11, padding=2), Halved(64), nn.ReLU()]
    layers += [nn.MaxPool2d(3, 1), Halved(64), nn.Conv2d(64, 192, 5, padding=2), nn.ReLU()]
    layers += [nn.MaxPool2d(3, 1), Halved(192), nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()]
    layers += [nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()]
    layers += [nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()]
    return layers, (2, 6, 10, 12, 14)


def _vgg() -> tuple[list[nn.Module], tuple[int, ...]]:
    """VGG16's layers, and the numbers of those whose outputs are compared."""
    layers: list[nn.Module] = []
    compared, before = [], 3
    for channels, convolutions in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        if layers:
            layers += [nn.MaxPool2d(2, 1), Halved(before)]
        for _ in range(convolutions):
            layers += [nn.Conv2d(before, channels, 3, padding=1), nn.ReLU()]
            before = channels
        compared.append(len(layers) - 1)
    return layers, tuple(compared)


class ShiftTolerantLPIPS(Distance):
    """ST-LPIPS of images [B, 1 or 3, H, W] in [-1, 1].

    Args:
        net: "alex" or "vgg".
        file: of its weights; by default the one in the installed package.

    Raises InputError without the package, naming the extra, and for a file that is damaged or of
    another network.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, net: str = "alex", file: Path | None = None) -> None:
        super().__init__()
        if net not in WIDTHS:
            raise unknown("ST-LPIPS network", net, list(WIDTHS))
        self.name = f"st-lpips-{net}"
        layers, self.compared = _alex() if net == "alex" else _vgg()
        self.trunk = nn.Sequential(*layers)
        self.register_buffer("shift", torch.zeros(1, 3, 1, 1))
        self.register_buffer("scale", torch.ones(1, 3, 1, 1))
        self.heads = nn.ParameterList(torch.zeros(1, width, 1, 1) for width in WIDTHS[net])
        needs = f"distance {self.name}: its weights"
        self._load(file or installed_file(PACKAGE, FILE.format(net=net), needs, "features"))
        self.eval().requires_grad_(False)

    def features(self, x: Tensor) -> list[Tensor]:
        """Maps of every compared layer, with channels of unit length, on the trunk's device."""
        if x.ndim != 4 or x.shape[1] not in (1, 3):
            raise InputError(
                f"{self.name} compares images [B, 1 or 3, H, W], got {tuple(x.shape)}; "
                "use l2 or feature"
            )
        y = (enlarged(x.to(self.shift), SMALLEST) - self.shift) / self.scale
        maps = []
        for i, layer in enumerate(self.trunk):
            y = layer(y)
            if i in self.compared:
                maps.append(unit_channels(y))
        return maps

    def between(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
        """Squared differences, weighted by channel, averaged over positions, summed over layers."""
        gaps = [
            functional.conv2d((f - g.to(f)).square(), w).mean((1, 2, 3))
            for w, f, g in zip(self.heads, a, b, strict=True)
        ]
        return torch.stack(gaps).sum(0)

    def _load(self, file: Path) -> None:
        """Read trunk, heads and scaling; layers keep the numbers that they have in the file."""
        what = f"weights of {self.name} {file}"
        weights = {}
        for name, value in read_weights(file, what, f"reinstall {PACKAGE}").items():
            kind, _, rest = name.partition(".")  # net.slice1.0.weight, lin0.model.1.weight, …
            if kind == "net":
                weights["trunk." + rest.partition(".")[2]] = value
            elif kind == "scaling_layer":
                weights[rest] = value
            else:
                weights[f"heads.{kind.removeprefix('lin')}"] = value
        try:
            self.load_state_dict(weights)
        except RuntimeError as error:
            reason = " ".join(line.strip() for line in str(error).splitlines()[:2])[:200]
            raise InputError(
                f"{what}: of another network ({reason}); reinstall {PACKAGE}"
            ) from error
