"""Distances between samples, one number a sample: [B, ...] x [B, ...] -> [B].

    l1       mean |a - b|        over all elements of a sample
    l2       mean (a - b)^2      over all elements of a sample (the square, no root)
    feature  sum over the layers of an extractor; a vector [B, F] adds mean (f_a - f_b)^2, a map [B,
             C, H, W] adds the mean over positions of |u_a - u_b|^2, u = f / |f| the unit vector of
             channels at a position
    lpips    the same with learned weights w of the channels, sum_c w_c (u_a - u_b)_c^2 (Zhang et
             al. 2018, 1801.03924)

Every distance is d(a, b) = between(features(a), features(b)), so that what is compared again and
again (the teacher's samples) goes through the network once.

u = f / sqrt(|f|^2 + eps), with eps inside the root: outside it, as in the lpips package, the
gradient of the root at f = 0 is infinite and its product with zero NaN."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from .errors import InputError, unknown

DISTANCES = ("l1", "l2", "feature", "lpips-alex", "lpips-vgg", "lpips-squeeze")

EPS = 1e-10

MIN_SIDE = {"alex": 31, "vgg": 16, "squeeze": 17}
"""Smallest side of an image that survives the pooling of an LPIPS trunk."""

UPSAMPLED_SIDE = 64
"""Smallest side that too small images are enlarged to when asked."""

TRUNK_FILES = {
    "alex": "alexnet-owt-7be5be79.pth",
    "vgg": "vgg16-397923af.pth",
    "squeeze": "squeezenet1_1-b8a52dc0.pth",
}


class Distance(nn.Module):
    """A distance; subclasses say what is compared and how. A module, so that `.to(device)` moves
    what it holds.
    """

    name: str

    @abstractmethod
    def features(self, x: Tensor) -> list[Tensor]:
        """x [B, ...] -> what is compared, each tensor [B, ...]; differentiable in x."""

    @abstractmethod
    def between(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
        """Features of B samples twice -> [B]."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """[B, ...] x [B, ...] -> [B]. Raises ValueError for different shapes (nothing is
        broadcast).
        """
        if a.shape != b.shape:
            raise ValueError(
                f"distance {self.name}: shapes differ, {tuple(a.shape)} and {tuple(b.shape)}"
            )
        return self.between(self.features(a), self.features(b))


class Elementwise(Distance):
    """l1 or l2: the mean over a sample's elements of |a - b|^power."""

    def __init__(self, power: int) -> None:
        super().__init__()
        self.power, self.name = power, f"l{power}"

    def features(self, x: Tensor) -> list[Tensor]:
        """The sample itself."""
        return [x]

    def between(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
        """See the class."""
        gap = (a[0] - b[0].to(a[0])).flatten(1)
        return (gap.abs() if self.power == 1 else gap.square()).mean(1)


@runtime_checkable
class HasFeatures(Protocol):
    """A model that offers features beside its other outputs, e.g. a classifier."""

    def features(self, x: Tensor) -> Tensor | Sequence[Tensor]:
        """x [B, ...] -> [B, F], or maps [B, C, H, W], or several of either."""
        ...


class FeatureDistance(Distance):
    """Distance of an extractor's features; it is an `HasFeatures` or any callable that returns what
    one does.
    """

    def __init__(
        self,
        extractor: HasFeatures | Callable[[Tensor], Tensor | Sequence[Tensor]],
        name: str = "feature",
    ) -> None:
        super().__init__()
        self.name = name
        self.extractor = (
            extractor.eval().requires_grad_(False)
            if isinstance(extractor, nn.Module)
            else extractor
        )

    def features(self, x: Tensor) -> list[Tensor]:
        """The extractor's features, maps with channels of unit length."""
        made = (
            self.extractor.features(x)
            if isinstance(self.extractor, HasFeatures)
            else self.extractor(x)
        )
        layers = [made] if isinstance(made, Tensor) else list(made)
        for layer in layers:
            if layer.ndim < 2 or len(layer) != len(x):
                raise InputError(
                    f"distance {self.name}: the extractor made {tuple(layer.shape)} of {len(x)} "
                    f"samples; "
                    "need [B, F] or [B, C, H, W]"
                )
        return [layer if layer.ndim == 2 else unit_channels(layer) for layer in layers]

    def between(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
        """See the top of this file."""
        return torch.stack([_layer_gap(f, g.to(f)) for f, g in zip(a, b, strict=True)]).sum(0)

    def train(self, mode: bool = True) -> FeatureDistance:
        """Stays in eval mode: no dropout in a distance."""
        super().train(False)
        return self


class LPIPS(Distance):
    """LPIPS of images [B, 1 or 3, H, W] in [-1, 1], with the trunk's weights from a local file.

    Args:
        net: "alex", "vgg" or "squeeze".
        trunk: weights file of the trunk as torchvision publishes it; by default looked for in
            torch.hub's folder.
        random_trunk: use random weights instead, always the same ones (for tests; it is still a
            distance).
        upsample: enlarge images that are too small for the trunk to a smallest side of
            UPSAMPLED_SIDE; otherwise they are an InputError.
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
            warnings.simplefilter(
                "ignore", UserWarning
            )  # the package still speaks torchvision's older dialect
            torch.manual_seed(0)
            # random here in any case: the package's own way to weights is a download
            self.model = _package().LPIPS(net=net, pnet_rand=True, verbose=False)
        if not random_trunk:
            _load_trunk(
                self.model.net, net, Path(trunk) if trunk is not None else default_trunk(net)
            )
        self.model.eval().requires_grad_(False)

    def features(self, x: Tensor) -> list[Tensor]:
        """Unit channels of every layer, on the trunk's device and in its dtype."""
        scale = self.model.scaling_layer
        return [
            unit_channels(layer) for layer in self.model.net(scale(self._fit(x.to(scale.shift))))
        ]

    def between(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
        """The learned, non-negative weighting of squared differences, averaged over positions,
        summed over layers.
        """
        gaps = [
            head((f - g.to(f)).square()) for head, f, g in zip(self.model.lins, a, b, strict=True)
        ]  # [B, 1, h, w]
        return torch.stack([gap.mean((1, 2, 3)) for gap in gaps]).sum(0)

    def train(self, mode: bool = True) -> LPIPS:
        """Stays in eval mode: the heads have dropout."""
        super().train(False)
        return self

    def _fit(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] not in (1, 3):
            raise InputError(
                f"{self.name} compares images [B, 1 or 3, H, W], got {tuple(x.shape)}; use l2 or "
                f"feature"
            )
        side = min(x.shape[-2:])
        if side >= MIN_SIDE[self.net]:
            return x
        if not self.upsample:
            raise InputError(
                f"{self.name} needs images of at least {MIN_SIDE[self.net]} pixels a side, got "
                f"{tuple(x.shape[-2:])}; "
                "set upsample: true to enlarge them, or use l2 or feature"
            )
        size = [round(length * UPSAMPLED_SIDE / side) for length in x.shape[-2:]]
        return nn.functional.interpolate(x, size=size, mode="bilinear", align_corners=False)


def make_distance(
    name: str,
    extractor: HasFeatures | Callable[[Tensor], Tensor | Sequence[Tensor]] | None = None,
    trunk: Path | str | None = None,
    random_trunk: bool = False,
    upsample: bool = False,
) -> Distance:
    """A name of DISTANCES -> Distance ("lpips" is lpips-vgg). `extractor` is for "feature", the
    rest for LPIPS.

    Raises InputError for an unknown name, a missing extractor or a trunk file that is missing or
    not one."""
    if name in ("l1", "l2"):
        return Elementwise(int(name[1]))
    if name == "feature":
        if extractor is None:
            raise InputError(
                "distance 'feature' needs a feature extractor, and this model comes with none; "
                "use l2 or lpips"
            )
        return FeatureDistance(extractor)
    if name == "lpips" or name in DISTANCES:
        return LPIPS(name.partition("-")[2] or "vgg", trunk, random_trunk, upsample)
    raise unknown("distance", name, DISTANCES)


def default_trunk(net: str) -> Path:
    """Where torchvision keeps the weights of an LPIPS trunk once it has downloaded them."""
    return Path(torch.hub.get_dir(), "checkpoints", TRUNK_FILES[net])


def unit_channels(f: Tensor) -> Tensor:
    """f [B, C, ...] scaled to unit length along C; zero, with a finite gradient, where f is zero."""
    return f / (f.square().sum(1, keepdim=True) + EPS).sqrt()


def _layer_gap(a: Tensor, b: Tensor) -> Tensor:
    gap = (a - b).square()
    return gap.mean(1) if a.ndim == 2 else gap.sum(1).flatten(1).mean(1)


def _package() -> Any:
    try:
        import lpips
    except ImportError as error:
        raise InputError(
            f"the LPIPS distance cannot be loaded ({error}); pip install lpips torchvision"
        ) from error
    return lpips


def _load_trunk(trunk: nn.Module, net: str, file: Path) -> None:
    """Copy the weights of a torchvision classifier's `features` into the slices that the package
    cuts it into.
    """
    if not file.is_file():
        raise InputError(
            f"LPIPS trunk {file}: no such file; download {TRUNK_FILES[net]} from "
            f"download.pytorch.org/models and "
            "put it there, or name the file in the experiment (trunk: …)"
        )
    try:
        weights = torch.load(file, map_location="cpu", weights_only=True)
        for slice_ in trunk.children():
            for index, layer in slice_.named_children():
                prefix = f"features.{index}."
                layer.load_state_dict(
                    {k[len(prefix) :]: v for k, v in weights.items() if k.startswith(prefix)}
                )
    except Exception as error:  # whatever a wrong or truncated file makes torch raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"LPIPS trunk {file}: not the weights of {TRUNK_FILES[net]} ({reason})"
        ) from error
