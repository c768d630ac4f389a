"""Distances made of other distances: weighted sums, and images that are resized first.

    l2+0.1*feature          sum_k w_k d_k(a, b); {l2: 1, feature: 0.1} in YAML and Python
    resized:64:lpips-alex   d of images whose smallest side is made 64 pixels, by antialiased
                            bilinear interpolation; for large images, such as decoded latents

Features of a sum are those of its terms, one after the other. The teacher's are thus made once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from .comparison import Distance
from .errors import InputError

_OF_USER = re.compile(r"python:[^:]+:\w+")
_TERM = re.compile(r"(?:([0-9.]+(?:[eE][+-]?[0-9]+)?)\*)?(.+)")
_RESIZED = re.compile(r"resized:([^:]*):(.+)")
SMALLEST, LARGEST = 4, 4096


def terms_of(name: str) -> tuple[tuple[float, str], ...]:
    """The terms (weight, name) of a distance's name; one of weight 1 if it is no sum.

    Raises InputError for a term without a name, a weight that is not above 0, a name that stands
    there twice, and a sum inside another.
    """
    files: list[str] = []  # paths may hold any of the signs

    def hide(found: re.Match[str]) -> str:
        files.append(found[0])
        return f"<{len(files) - 1}>"

    parts = re.split(r"(?<![0-9.][eE])\+", _OF_USER.sub(hide, name))
    terms = []
    for part in parts:
        found = _TERM.fullmatch(part.strip())
        if found is None:
            raise InputError(f"distance {name!r}: a term is empty; write l2+0.1*feature")
        weight = _weight(name, found[1] or "1")
        inner = re.sub(r"<(\d+)>", lambda at: files[int(at[1])], found[2])
        terms.append((weight, inner.strip()))
    names = [term for _, term in terms]
    twice = [inner for inner in names if names.count(inner) > 1]
    if twice:
        raise InputError(f"distance {name!r}: {twice[0]!r} stands there twice; add the weights")
    return tuple(terms)


def _weight(name: str, text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise InputError(f"distance {name!r}: the weight {text!r} must be a number above 0")
    return weight


def is_sum(name: str) -> bool:
    """True for a name with several terms, or with a weight."""
    terms = terms_of(name)
    return terms != ((1.0, name),)


def written(weights: Mapping[str, float]) -> str:
    """The name of a weighted sum: {l2: 1, feature: 0.1} -> "l2+0.1*feature".

    Raises InputError for an empty mapping and for weights that are no numbers above 0.
    """
    if not weights:
        raise InputError("distance: an empty mapping; write {l2: 1, feature: 0.1}")
    words = []
    for name, weight in weights.items():
        if not isinstance(name, str) or isinstance(weight, bool):
            raise InputError(f"distance: {name!r}: {weight!r} must be a name and its weight")
        value = _weight(name, str(weight))
        words.append(name if value == 1 else f"{value:g}*{name}")
    return "+".join(words)


def resized_of(name: str) -> tuple[int | None, str]:
    """`resized:64:l2` -> (64, "l2"); (None, name) for any other name.

    Raises InputError for a size that is no whole number between SMALLEST and LARGEST.
    """
    if not name.startswith("resized:"):
        return None, name
    found = _RESIZED.fullmatch(name)
    if found is None or not found[1].isdigit() or not SMALLEST <= int(found[1]) <= LARGEST:
        raise InputError(
            f"distance {name!r}: write resized:PIXELS:DISTANCE with {SMALLEST} to {LARGEST} pixels "
            "for the smallest side, such as resized:64:lpips-alex"
        )
    return int(found[1]), found[2]


class Weighted(Distance):
    """The sum of weight * distance over its terms."""

    def __init__(self, name: str, terms: Sequence[tuple[float, Distance]]) -> None:
        super().__init__()
        self.name, self.weights = name, [weight for weight, _ in terms]
        self.parts = nn.ModuleList([part for _, part in terms])
        self.sizes: list[int] = []

    def features(self, x: Tensor) -> list[Tensor]:
        """The features of all terms, one term after the other."""
        made = [part.features(x) for part in self.parts]  # type: ignore[operator]
        self.sizes = [len(features) for features in made]
        return [one for features in made for one in features]

    def between(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
        """The weighted sum of the terms [B]."""
        total, first = None, 0
        for weight, part, size in zip(self.weights, self.parts, self.sizes, strict=True):
            mine = slice(first, first + size)
            gap = weight * part.between(a[mine], b[mine])  # type: ignore[operator]
            total = gap if total is None else total + gap
            first += size
        assert total is not None
        return total


class Resized(Distance):
    """A distance of images whose smallest side is made `side` pixels."""

    def __init__(self, name: str, side: int, inner: Distance) -> None:
        super().__init__()
        self.name, self.side, self.inner = name, side, inner

    def features(self, x: Tensor) -> list[Tensor]:
        """The inner distance's features of the resized images.

        Raises InputError for samples that are no images.
        """
        if x.ndim != 4:
            raise InputError(
                f"distance {self.name}: resizes images [B, C, H, W], got {tuple(x.shape)}; use "
                f"{self.inner.name}"
            )
        smallest = min(x.shape[-2:])
        if smallest != self.side:
            size = [max(1, round(length * self.side / smallest)) for length in x.shape[-2:]]
            x = nn.functional.interpolate(
                x, size=size, mode="bilinear", align_corners=False, antialias=True
            )
        return self.inner.features(x)

    def between(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
        """The inner distance [B]."""
        return self.inner.between(a, b)
