"""Feature extractors by name, and the data whose features samples are compared with.

auto        what the model comes with: the digits classifier, or the sample itself where it has at
            most 256 numbers
identity    the sample itself, flattened
inception:FILE   Inception-v3 as used for FID, from local weights (extra `metrics`)
none        no features; the distance to the teacher is measured alone
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..core.errors import InputError, unknown
from ..models import Model
from .statistics import FeatureMoments

SMALL = 256


@dataclass(frozen=True)
class Extractor:
    """Images [B, C, H, W] in [-1, 1] -> features [B, F]; `maps` are those a perceptual distance
    compares.

    data: the images samples are compared with, where the model ships them.
    class_scores: features [B, F] -> logits [B, classes], where a classifier's features make an
    Inception score."""

    name: str
    hash: str
    features: Callable[[Tensor], Tensor]
    maps: Callable[[Tensor], list[Tensor]]
    data: Tensor | None = None
    class_scores: Callable[[Tensor], Tensor] | None = None

    def data_features(self) -> Tensor:
        """Features of the data [M, F], float32 on the CPU."""
        if self.data is None:
            raise InputError(f"extractor {self.name}: has no data of its own; name a reference")
        with torch.no_grad():
            return torch.cat([self.features(part).float().cpu() for part in self.data.split(500)])


def open_extractor(name: str, opened: Model, device: str = "cpu") -> Extractor | None:
    """An extractor by name, on a device. Raises InputError for unknown names and files that are no
    weights.
    """
    if name == "none":
        return None
    if name == "identity":
        return _identity()
    if name == "auto":
        if opened.id == "digits":
            return _digits(device)
        return _identity() if torch.Size(opened.image_shape).numel() <= SMALL else None
    if name.startswith("inception:"):
        from .inception import open_inception

        return open_inception(name.partition(":")[2], device)
    raise unknown("extractor", name, ("auto", "identity", "inception:FILE", "none"))


def _identity() -> Extractor:
    return Extractor("identity", "identity", lambda x: x.flatten(1), lambda x: [x.flatten(1)])


def _digits(device: str) -> Extractor:
    from ..models import digits

    classifier = digits.load_digits_classifier().to(device)
    images, _ = digits.digits_reference()
    return Extractor(
        "digits classifier",
        digits.classifier_hash(),
        classifier.features,
        classifier.maps,
        images.to(device),
    )


def content_hash(path: str) -> str:
    """SHA-256 of a file, in pieces: weights can be large."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Reference:
    """What samples are compared with: moments of all of it, and features [N, F] of as many examples
    as the file has.
    """

    moments: FeatureMoments
    features: Tensor | None = None


def read_reference(path: str, extractor: Extractor | None = None) -> Reference:
    """A reference file: npz with `mu` [F] and `sigma` [F, F], as EDM's, and, where the file has
    them, images.

    Images `arr_0`, uint8 [N, H, W, 3], are what guided-diffusion's reference batches hold beside
    the moments; their features, made by `extractor`, are what a kernel distance, precision and
    recall need. Without them (or without an extractor) there is the Fréchet distance alone.

    Raises InputError for a file that is none, and for images of another shape.
    """
    moments = FeatureMoments.read(path)
    with np.load(path, allow_pickle=False) as arrays:
        if extractor is None or "arr_0" not in arrays:
            return Reference(moments)
        images = arrays["arr_0"]
    if images.ndim != 4 or images.dtype != np.uint8 or images.shape[3] != 3:
        found = f"{images.dtype} {list(images.shape)}"
        raise InputError(
            f"reference {path}: arr_0 is {found}; images are uint8 [N, H, W, 3]: remove it, or "
            f"fix it"
        )
    parts = torch.from_numpy(images).permute(0, 3, 1, 2).split(500)
    # the centre of a step of 256, so that it is the same byte again however an extractor rounds
    made = [extractor.features((part.float() - 127.5) / 127.5).float().cpu() for part in parts]
    return Reference(moments, torch.cat(made))
