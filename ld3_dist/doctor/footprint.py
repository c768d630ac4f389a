"""Memory of a learning step and pairs on disk, found without running a network.

A pass over tensors that have shapes but no data (fake tensors) tells which tensors autograd would
keep. The bytes kept for two samples, minus the bytes kept for one, are the cost of a sample;
weights and constants cancel. A learning step with S = members * batch samples keeps

    S * (NFE * evaluation + comparison)

where `comparison` is one decoding with the features of the distance. If activations are recomputed
(`learn.checkpointing`), it keeps the state before and after every evaluation, and the activations
of one thing at a time, an evaluation or a comparison:

    S * (2 * NFE * state + max(evaluation, comparison))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from ..core.denoiser import Condition, map_condition
from ..core.distance import Distance
from ..experiment.plan import Plan
from ..experiment.sections import ModelSettings
from ..models import Model
from ..models.inside import bytes_of


@dataclass(frozen=True)
class Footprint:
    """Bytes that learning takes.

    weights: of the networks.
    state: of one sample.
    evaluation: kept for the backward pass of one evaluation of one sample.
    comparison: kept for the backward pass of one sample's decoding and features.
    """

    weights: int
    state: int
    evaluation: int
    comparison: int

    def step(self, samples: int, nfe: int, recomputed: bool = False) -> int:
        """Bytes of a learning step of members * batch samples.

        Args:
            recomputed: True if activations are recomputed in the backward pass.
        """
        kept = nfe * self.evaluation + self.comparison
        again = 2 * nfe * self.state + max(self.evaluation, self.comparison)
        return self.weights + samples * (min(again, kept) if recomputed else kept)


def footprint(opened: Model, distance: Distance | None) -> Footprint:
    """Measure a model and a distance; None leaves the distance out.

    A model that needs values, not just shapes, raises its own errors here.
    """
    denoiser, shape = opened.denoiser, tuple(opened.denoiser.shape)
    condition = opened.draw_condition(0, range(2))
    t = 0.5 * (denoiser.noise.t_min + denoiser.noise.t_max)

    def evaluate(x: Tensor, condition: Condition) -> Any:
        return denoiser(x, torch.full((len(x),), t), condition)

    def compare(x: Tensor, _: Condition) -> Any:
        image = denoiser.decode(x)
        return image if distance is None else distance.features(image)

    return Footprint(
        bytes_of(denoiser) + bytes_of(distance),
        4 * prod(shape),
        _per_sample(evaluate, shape, condition),
        _per_sample(compare, shape, condition),
    )


def pairs_bytes(plan: Plan, model: ModelSettings, opened: Model) -> int:
    """Bytes of a model's teacher pairs on disk, conditions included."""
    samples = sum(
        stop - start for teacher in plan.teachers for start, stop in plan.sample_ranges(teacher)
    )
    shape = opened.denoiser.shape if plan.experiment.loss_space == "latent" else opened.image_shape
    condition, sizes = opened.draw_condition(0, range(1)), [0]
    map_condition(lambda c: sizes.append(c.nbytes) or c, condition)
    return samples * (4 * (prod(opened.denoiser.shape) + prod(shape)) + sum(sizes))


def readable(count: float) -> str:
    """1536 -> '1.5 kB'; powers of 1000, as disks are sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.4g} TB"


def _per_sample(
    run: Callable[[Tensor, Condition], Any], shape: tuple[int, ...], condition: Condition
) -> int:
    from torch._subclasses.fake_tensor import FakeTensorMode

    def kept(samples: int) -> int:
        found: dict[int, Tensor] = {}

        def pack(tensor: Tensor) -> Tensor:
            # kept, so that no other storage gets its address; detached, as a node that keeps its
            # own output is never freed
            held = tensor.detach()
            found[tensor.untyped_storage()._cdata] = held
            return held

        with (
            FakeTensorMode(allow_non_fake_inputs=True),
            torch.autograd.graph.saved_tensors_hooks(pack, lambda s: s),
        ):
            x = torch.empty(samples, *shape, requires_grad=True)
            like = lambda c: torch.empty(samples, *c.shape[1:], dtype=c.dtype)
            run(x, map_condition(like, condition))
        return sum(tensor.untyped_storage().nbytes() for tensor in found.values())

    return max(0, kept(2) - kept(1))
