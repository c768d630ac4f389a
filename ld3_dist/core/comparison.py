"""Distances between samples that need nothing but PyTorch: elementwise, of features, a user's own.

    l1       mean |a - b|        over all elements of a sample
    l2       mean (a - b)^2      over all elements of a sample (the square, no root)
    feature  sum over an extractor's layers. A vector [B, F] adds mean (f_a - f_b)^2.
             A map [B, C, H, W] adds the mean over positions of |u_a - u_b|^2, where
             u = f / |f| is the unit vector of the channels at a position.

Every distance is d(a, b) = between(features(a), features(b)), one number per sample. The features
of the teacher's samples are therefore computed once and compared many times.

In the code u = f / sqrt(|f|^2 + EPS), with EPS inside the root. With EPS outside, as in the lpips
package, the root has an infinite gradient at f = 0, and its product with zero is NaN.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from .errors import InputError

EPS = 1e-10


class Distance(nn.Module):
    """The base of all distances; subclasses define the features and the comparison.

    It is a module, so that `.to(device)` moves the networks it holds.
    """

    name: str

    @abstractmethod
    def features(self, x: Tensor) -> list[Tensor]:
        """x [B, ...] -> the tensors that are compared, each [B, ...]; differentiable in x."""

    @abstractmethod
    def between(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
        """Features of B samples and of B others -> their distances [B]."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """[B, ...] and [B, ...] -> distances [B].

        Raises ValueError for different shapes: nothing is broadcast.
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
        """The mean of |a - b|^power over the elements of each sample, [B]."""
        gap = (a[0] - b[0].to(a[0])).flatten(1)
        return (gap.abs() if self.power == 1 else gap.square()).mean(1)


@runtime_checkable
class HasFeatures(Protocol):
    """A model that offers features beside its other outputs, e.g. a classifier."""

    def features(self, x: Tensor) -> Tensor | Sequence[Tensor]:
        """x [B, ...] -> [B, F], or maps [B, C, H, W], or several of either."""
        ...


class FeatureDistance(Distance):
    """Distance between the features of two samples.

    The extractor is a model with a method `features`, or any function that returns the same.
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
                    f"distance {self.name}: the extractor made {tuple(layer.shape)} of "
                    f"{len(x)} samples; need [B, F] or [B, C, H, W]"
                )
        return [layer if layer.ndim == 2 else unit_channels(layer) for layer in layers]

    def between(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
        """The sum over the layers of their distances [B], see the top of this file."""
        return torch.stack([_layer_gap(f, g.to(f)) for f, g in zip(a, b, strict=True)]).sum(0)

    def train(self, mode: bool = True) -> FeatureDistance:
        """Stay in evaluation mode: a distance has no dropout."""
        super().train(False)
        return self


class Pairwise(Distance):
    """A plain function (a, b) -> [B] as a Distance; the samples themselves are its features."""

    def __init__(self, name: str, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.name, self.function = name, function

    def features(self, x: Tensor) -> list[Tensor]:
        """The sample itself."""
        return [x]

    def between(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
        """The function's value [B]."""
        return self.function(a[0], b[0].to(a[0]))


def unit_channels(f: Tensor) -> Tensor:
    """f [B, C, ...] scaled to unit length along C; zero stays zero, with a finite gradient."""
    return f / (f.square().sum(1, keepdim=True) + EPS).sqrt()


def enlarged(x: Tensor, side: int) -> Tensor:
    """Images [B, C, H, W] whose smallest side has at least `side` pixels: x itself, or enlarged."""
    smallest = min(x.shape[-2:])
    if smallest >= side:
        return x
    size = [round(length * side / smallest) for length in x.shape[-2:]]
    return nn.functional.interpolate(x, size=size, mode="bilinear", align_corners=False)


def _layer_gap(a: Tensor, b: Tensor) -> Tensor:
    gap = (a - b).square()
    return gap.mean(1) if a.ndim == 2 else gap.sum(1).flatten(1).mean(1)
