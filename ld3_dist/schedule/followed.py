"""Knots that were found along a network's trajectories, kept in this process.

Such grids cost up to some ten thousand evaluations and depend on the network, the number of steps
and the trajectories alone. The trials of a sweep ask for the same ones: for every solver, distance
and setting of learning.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..core.denoiser import Condition, map_condition
from ..models import Model
from ..training_free import SAMPLES
from .sampling import Undecoded

_FOUND: WeakKeyDictionary[object, dict[str, Tensor]] = WeakKeyDictionary()
"""Knots by network, and by the digest of everything else."""


def remembered(
    name: str,
    model: Model,
    steps: int,
    x_T: Tensor | None,
    condition: Condition,
    find: Callable[[], Tensor],
) -> Tensor:
    """The knots [steps + 1] that `find` returns; it is not called where they are known.

    Other methods than those of SAMPLES may use more than is named here, and are always called.

    Args:
        name: of the start.
        x_T, condition: of the trajectories; the method uses the first SAMPLES of them.
    """
    denoiser = model.denoiser
    network = denoiser.inner if isinstance(denoiser, Undecoded) else denoiser
    if name not in SAMPLES:
        return find()
    try:
        known = _FOUND.setdefault(network, {})
    except TypeError:  # an object without a hash, or that takes no weak references
        return find()
    key = _digest(f"{name} {steps} {model.hash}", x_T, condition, SAMPLES[name])
    if key not in known:
        known[key] = find()
    return known[key].clone()


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
