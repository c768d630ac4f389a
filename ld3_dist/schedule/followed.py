"""Knots that were found along a network's trajectories, kept in this process.

Such grids cost up to some ten thousand evaluations and depend on the network, the number of steps
and the trajectories alone. The trials of a sweep ask for the same ones: for every solver, distance
and setting of learning. Most of what is found for one number of steps also serves the others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..core.denoiser import Condition, map_condition
from ..models import Model
from ..training_free import SAMPLES, Findings
from .sampling import Undecoded


@dataclass
class Followed:
    """Findings along the same trajectories, and the knots chosen from them by name and steps."""

    findings: Findings = field(default_factory=dict)
    knots: dict[tuple[str, int], Tensor] = field(default_factory=dict)


_FOUND: WeakKeyDictionary[object, dict[str, Followed]] = WeakKeyDictionary()
"""By network, and by the digest of the trajectories' start."""


def remembered(
    name: str,
    model: Model,
    steps: int,
    x_T: Tensor | None,
    condition: Condition,
    find: Callable[[Findings], Tensor],
) -> Tensor:
    """The knots [steps + 1] that `find` returns; it is not called where they are known.

    Other methods than those of SAMPLES may use more than is named here, and are always called.

    Args:
        name: of the start.
        x_T, condition: of the trajectories; the method uses the first SAMPLES of them.
        find: takes the findings along the same trajectories, and adds its own.
    """
    denoiser = model.denoiser
    network = denoiser.inner if isinstance(denoiser, Undecoded) else denoiser
    if name not in SAMPLES:
        return find({})
    try:
        known = _FOUND.setdefault(network, {})
    except TypeError:  # an object without a hash, or that takes no weak references
        return find({})
    begun = _digest(f"{model.hash} {SAMPLES[name]}", x_T, condition, SAMPLES[name])
    same = known.setdefault(begun, Followed())
    if (name, steps) not in same.knots:
        same.knots[name, steps] = find(same.findings)
    return same.knots[name, steps].clone()


def _digest(text: str, x_T: Tensor | None, condition: Condition, count: int) -> str:
    found = hashlib.sha256(text.encode())

    def add(value: Tensor) -> Tensor:
        first = value[:count].detach().cpu().contiguous()
        found.update(f"{first.dtype} {tuple(first.shape)} {value.device}".encode())
        found.update(first.flatten().view(torch.uint8).numpy().tobytes())
        return value

    if x_T is not None:
        add(x_T)
    map_condition(add, condition)
    return found.hexdigest()
