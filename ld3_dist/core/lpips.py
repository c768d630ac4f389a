"""LPIPS: a distance between images on the features of a classifier, with learned weights.

    d(a, b) = sum over layers of the mean over positions of sum_c w_c (u_a - u_b)_c^2

Here u is the unit vector of a layer's channels at a position, and w_c >= 0 is the learned weight of
channel c (Zhang et al. 2018, arXiv 1801.03924). The weights w come with the package `lpips`; the
weights of the classifier, called the trunk, are read from a local file.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .comparison import Distance, enlarged, unit_channels
from .errors import InputError, unknown

MIN_SIDE = {"alex": 31, "vgg": 16, "squeeze": 17}
"""The smallest side of an image that survives the pooling of an LPIPS trunk."""

UPSAMPLED_SIDE = 64
"""The side that too small images are enlarged to, if asked for."""

TRUNK_FILES = {
    "alex": "alexnet-owt-7be5be79.pth",
    "vgg": "vgg16-397923af.pth",
    "squeeze": "squeezenet1_1-b8a52dc0.pth",
}


class LPIPS(Distance):
    """LPIPS of images [B, 1 or 3, H, W] in [-1, 1], with the trunk's weights from a local file.

    Args:
        net: "alex", "vgg" or "squeeze".
        trunk: weights file of the trunk as torchvision publishes it; by default the one in
            torch.hub's folder.
        random_trunk: use random weights instead, always the same ones (for tests; the result is
            still a distance).
        upsample: enlarge images that are too small for the trunk until their smallest side is
            UPSAMPLED_SIDE. Without it they raise InputError.
    """

    def __init__(
        self,
        net: str = "vgg",
        trunk: Path | str | None = None,
        random_trunk: bool = False,
        upsample: bool = False,
    ) -> None:
        super().__init__()
        if net not in MIN_SIDE:
            raise unknown("LPIPS network", net, list(MIN_SIDE))
        self.net, self.upsample, self.name = net, upsample, f"lpips-{net}"
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # the package calls torchvision with arguments that are deprecated by now
            warnings.simplefilter("ignore", UserWarning)
            torch.manual_seed(0)
            # random at first in any case: the package itself would download the weights
            self.model = _package().LPIPS(net=net, pnet_rand=True, verbose=False)
        if not random_trunk:
            _load_trunk(
                self.model.net, net, Path(trunk) if trunk is not None else default_trunk(net)
            )
        self.model.eval().requires_grad_(False)

    def features(self, x: Tensor) -> list[Tensor]:
        """Maps of every layer, with channels of unit length, on the trunk's device and dtype."""
        scale = self.model.scaling_layer
        return [
            unit_channels(layer) for layer in self.model.net(scale(self._fit(x.to(scale.shift))))
        ]

    def between(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
        """Squared differences, weighted by channel, averaged over positions, summed over layers."""
        gaps = [
            head((f - g.to(f)).square()) for head, f, g in zip(self.model.lins, a, b, strict=True)
        ]  # [B, 1, h, w]
        return torch.stack([gap.mean((1, 2, 3)) for gap in gaps]).sum(0)

    def train(self, mode: bool = True) -> LPIPS:
        """Stay in evaluation mode: the heads have dropout."""
        super().train(False)
        return self

    def _fit(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] not in (1, 3):
            raise InputError(
                f"{self.name} compares images [B, 1 or 3, H, W], got {tuple(x.shape)}; "
                "use l2 or feature"
            )
        side = min(x.shape[-2:])
        if side >= MIN_SIDE[self.net]:
            return x
        if not self.upsample:
            raise InputError(
                f"{self.name} needs images of at least {MIN_SIDE[self.net]} pixels a side, got "
                f"{tuple(x.shape[-2:])}; set upsample: true to enlarge them, or use l2 or feature"
            )
        return enlarged(x, UPSAMPLED_SIDE)


def default_trunk(net: str) -> Path:
    """The file in which torchvision keeps the weights of an LPIPS trunk after a download."""
    return Path(torch.hub.get_dir(), "checkpoints", TRUNK_FILES[net])


def _package() -> Any:
    try:
        import lpips
    except ImportError as error:
        raise InputError(
            f"the LPIPS distance cannot be loaded ({error}); pip install lpips torchvision"
        ) from error
    return lpips


def _load_trunk(trunk: nn.Module, net: str, file: Path) -> None:
    """Load the weights of a torchvision classifier into a trunk.

    The package `lpips` cuts the classifier's `features` into slices; the layers keep their numbers.
    """
    if not file.is_file():
        raise InputError(
            f"LPIPS trunk {file}: no such file; download {TRUNK_FILES[net]} from "
            "download.pytorch.org/models and put it there, or name the file in the experiment "
            "(trunk: …)"
        )
    try:
        weights = torch.load(file, map_location="cpu", weights_only=True)
        for slice_ in trunk.children():
            for index, layer in slice_.named_children():
                prefix = f"features.{index}."
                layer.load_state_dict(
                    {k[len(prefix) :]: v for k, v in weights.items() if k.startswith(prefix)}
                )
    except Exception as error:  # a wrong or truncated file makes torch raise many kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"LPIPS trunk {file}: not the weights of {TRUNK_FILES[net]} ({reason})"
        ) from error
