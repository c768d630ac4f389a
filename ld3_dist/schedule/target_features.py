"""Distances of many schedules' samples to the same targets.

The features of the targets, which a perceptual distance takes as long for as those of the samples,
are made once and kept.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.comparison import Distance

LIMIT = 2**29
"""Bytes of features that are kept."""

Key = tuple[int, int, int]
"""Addresses of targets and distance, and the batch: tensors are compared element by element, so
that no dictionary can hold them as keys."""


@dataclass(frozen=True)
class _Kept:
    """The features of targets in a distance, a list for each batch, on the CPU."""

    target: weakref.ref[Tensor]
    distance: weakref.ref[Distance]
    batches: Sequence[Sequence[Tensor]]

    @property
    def bytes(self) -> int:
        return sum(_bytes(batch) for batch in self.batches)

    @property
    def alive(self) -> bool:
        return self.target() is not None and self.distance() is not None


class TargetFeatures:
    """Keeps features of targets, those that were asked for last and at most `limit` bytes."""

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit
        self._kept: dict[Key, _Kept] = {}

    @torch.no_grad()
    def distances(self, distance: Distance, made: Tensor, target: Tensor, batch: int) -> Tensor:
        """The distances of samples [M, ...] to targets [M, ...], float64 [M] on the CPU.

        The same numbers as `distance(made, target)` gives in batches of that size. Raises
        ValueError for different shapes.
        """
        if made.shape != target.shape:
            return distance(made, target)  # which says so
        known = self._known(distance, target, batch)
        found: list[Tensor] = []
        new: list[list[Tensor]] = []
        for i, theirs in enumerate(target.split(batch)):
            own = distance.features(made[i * batch : (i + 1) * batch])
            if known is None:
                other = distance.features(theirs)
                fits = _bytes(other) * len(target) <= self.limit * len(theirs)
                if fits and not all(f is theirs for f in other):
                    new.append([f.cpu() for f in other])
            else:
                other = [f.to(theirs.device) for f in known.batches[i]]
            found.append(distance.between(own, other).cpu().double())
        if len(new) == len(found):
            self._keep(_Kept(weakref.ref(target), weakref.ref(distance), new), batch)
        return torch.cat(found)

    def _known(self, distance: Distance, target: Tensor, batch: int) -> _Kept | None:
        """What is kept of these targets in this distance, now the youngest."""
        key = (id(target), id(distance), batch)
        known = self._kept.pop(key, None)
        if known is None or not known.alive:  # another object may have the address of a dead one
            return None
        self._kept[key] = known
        return known

    def _keep(self, new: _Kept, batch: int) -> None:
        self._kept = {key: one for key, one in self._kept.items() if one.alive}
        self._kept[id(new.target()), id(new.distance()), batch] = new
        while sum(one.bytes for one in self._kept.values()) > self.limit:
            self._kept.pop(next(iter(self._kept)))


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(one.numel() * one.element_size() for one in tensors)
