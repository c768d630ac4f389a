"""Features of images, and the statistics of the images that samples are compared with.

    m = E f,   C = E (f - m)(f - m)^T        of features f = f(image), [F] and [F, F]

A model may bring its own feature extractor, and its data or the statistics of its data; metrics
and distances use them. The types are here so that models and metrics need not import each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .errors import InputError


@dataclass(frozen=True)
class Judge:
    """A score of single images, by themselves or against their prompts.

    hash: of everything that determines the scores, such as the network's weights.
    score: images [B, C, H, W] in [-1, 1] and their prompts -> scores [B].
    reads_prompts: False if images are scored by themselves; their prompts may be empty then.
    """

    hash: str
    score: Callable[[Tensor, Sequence[str]], Tensor]
    reads_prompts: bool = True


@dataclass(frozen=True)
class Extractor:
    """A function from images [B, C, H, W] in [-1, 1] to features [B, F].

    name: written to the rows.
    hash: of everything that determines the features, such as the network's weights.
    features: images -> [B, F], on the images' device.
    maps: images -> the tensors that a feature distance compares, each [B, F] or [B, C, H, W]; the
        features alone if not given.
    layers: names of the maps, in their order; a distance may compare one of them alone.
    class_scores: features [B, F] -> logits [B, classes] of a classifier, for an Inception score.
    differentiable: False if the features have no gradient with respect to the images, for example
        because the extractor rounds them to bytes. Metrics can use it then; distances cannot.
    """

    name: str
    hash: str
    features: Callable[[Tensor], Tensor]
    maps: Callable[[Tensor], Sequence[Tensor]] | None = None
    class_scores: Callable[[Tensor], Tensor] | None = None
    differentiable: bool = True
    layers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("name", "hash"):
            if not getattr(self, name):
                raise InputError(f"extractor: {name} is empty; rows are known by it, so give one")

    def compared(self, x: Tensor) -> list[Tensor]:
        """Images [B, C, H, W] -> the tensors that a feature distance compares."""
        return [self.features(x)] if self.maps is None else list(self.maps(x))

    def features_of(self, images: Tensor, batch: int = 500) -> Tensor:
        """Features of images [M, C, H, W] in batches -> [M, F], float32 on the CPU, no gradient."""
        with torch.no_grad():
            return torch.cat([self.features(part).float().cpu() for part in images.split(batch)])


@dataclass(frozen=True, eq=False)
class FeatureMoments:
    """Mean [F] and covariance [F, F] of features, float64 on the CPU.

    Raises InputError for sizes that do not fit and for numbers that are not finite.
    """

    mean: Tensor
    covariance: Tensor

    def __post_init__(self) -> None:
        size = self.mean.numel()
        if self.mean.shape != (size,) or self.covariance.shape != (size, size):
            raise InputError(
                f"moments: mean {tuple(self.mean.shape)} and covariance "
                f"{tuple(self.covariance.shape)} do not fit; need [F] and [F, F]"
            )
        for key in ("mean", "covariance"):
            value = getattr(self, key)
            if not torch.isfinite(value).all():
                raise InputError(f"moments: {key} has numbers that are not finite")
            object.__setattr__(self, key, value.detach().cpu().double())

    @cached_property
    def root(self) -> Tensor:
        """The symmetric square root of the covariance, made once for many comparisons."""
        values, vectors = torch.linalg.eigh((self.covariance + self.covariance.T) / 2)
        return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


@dataclass(frozen=True, eq=False)
class Modes:
    """The modes of a distribution that is known.

    of: features [M, F] -> the number of the mode that each belongs to, int64 [M].
    weights: probability of each mode, float64 [K].
    """

    of: Callable[[Tensor], Tensor]
    weights: Tensor


@dataclass(frozen=True, eq=False)
class Reference:
    """Statistics of the images that samples are compared with.

    moments: mean and covariance of all their features.
    features: [N, F], of those images that are known one by one; None if only the moments are.
    name: written to the rows.
    modes: the modes of the distribution, if they are known.
    finite_moments: E|f|^p is finite for p below this number. Of a distribution with heavy tails a
        Fréchet distance needs more than 2, and the cubic kernel of a kernel distance more than 3.
    """

    moments: FeatureMoments
    features: Tensor | None = None
    name: str = ""
    modes: Modes | None = None
    finite_moments: float = math.inf
