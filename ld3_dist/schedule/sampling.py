"""Samples of a schedule, in parts that memory holds, in the space that losses are taken in.

Losses compare images. With `space="latent"` they compare latents, as they are before the decoder.
Pairs then keep the teacher's undecoded x_0, and learning never runs the decoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..core.denoiser import Condition, Denoiser, map_condition
from ..core.errors import InputError
from ..core.learning.pairs import Pairs
from ..core.memory import in_parts
from ..core.sample import draw_noise, initial_state, sample
from ..core.solver import Tableau
from ..models import Model

BATCH = 250
"""The most samples that go through the network at once."""

SPACES = ("image", "latent")


class Undecoded(nn.Module):
    """A latent denoiser whose samples stay latents."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.inner, self.noise, self.shape = denoiser, denoiser.noise, tuple(denoiser.shape)

    def forward(self, x: Tensor, t: Tensor, condition: Condition = None) -> Tensor:
        """The denoiser's own output."""
        return self.inner(x, t, condition)

    def decode(self, x0: Tensor) -> Tensor:
        """x0 itself."""
        return x0


def in_loss_space(model: Model, space: str) -> Model:
    """The model whose `decode` leads to the space of the losses; a pixel model is unchanged."""
    if space not in SPACES:
        raise InputError(f"loss_space = {space!r}: must be {' or '.join(SPACES)}")
    if space == "image" or not model.latent:
        return model
    shape = tuple(model.denoiser.shape)
    return replace(model, denoiser=Undecoded(model.denoiser), image_shape=shape)


def to_images(model: Model, space: str, x: Tensor, batch: int = BATCH) -> Tensor:
    """Images of samples x [M, ...] in the space of the losses; latents are decoded in batches."""
    if in_loss_space(model, space) is model:
        return x
    return torch.cat(in_parts(len(x), batch, lambda part: model.denoiser.decode(x[part]), model.id))


def make_samples(
    model: Model, tableau: Tableau, z: Tensor, condition: Condition = None, batch: int = BATCH
) -> Tensor:
    """Decoded samples [M, …] of a schedule from unit noise z [M, *shape] on the model's device.

    If memory runs out, half as many go through at once. Raises InputError if a single sample does
    not fit, and for a table of another noise schedule than the model's.
    """
    denoiser = model.denoiser

    def run(part: slice) -> Tensor:
        given = map_condition(lambda c: c[part], condition)
        return denoiser.decode(sample(denoiser, tableau, initial_state(denoiser, z[part]), given))

    return torch.cat(in_parts(len(z), batch, run, model.id))


def draw_inputs(model: Model, seed: int, indices: Sequence[int]) -> tuple[Tensor, Condition]:
    """Unit noise [M, *shape] and conditions of the samples (seed, i), on the CPU.

    Sample i depends on (seed, i) alone, whatever the batch and the machine.
    """
    shape = tuple(model.denoiser.shape)
    return draw_noise(seed, indices, shape), model.draw_condition(seed, indices)


def device_of(model: Model) -> torch.device:
    """The device of a model's tensors; the CPU if it has none."""
    module: Any = model.denoiser
    if isinstance(module, nn.Module):
        for tensor in (*module.parameters(), *module.buffers()):
            return tensor.device
    return torch.device("cpu")


def on_device(model: Model, pairs: Pairs) -> Pairs:
    """The pairs on the model's device."""
    return pairs.to(device_of(model))
