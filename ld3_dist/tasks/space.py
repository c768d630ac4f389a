"""The space in which samples are compared with the teacher's: images, or latents as they are before
the decoder.

In latent space (`loss_space: latent`) pairs keep the teacher's undecoded x_0, and learning never
runs the decoder: an `Undecoded` denoiser, whose decode is the identity, is all it takes. Features
and pictures are of images in any case."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from ..core.denoiser import Condition, Denoiser
from ..experiment.plan import Plan
from ..models import Model


class Undecoded(nn.Module):
    """A latent denoiser whose samples stay latents."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.inner, self.noise, self.shape = denoiser, denoiser.noise, tuple(denoiser.shape)

    def forward(self, x: Tensor, t: Tensor, condition: Condition = None) -> Tensor:
        """As the denoiser's own."""
        return self.inner(x, t, condition)

    def decode(self, x0: Tensor) -> Tensor:
        """x0 itself."""
        return x0


def in_loss_space(plan: Plan, opened: Model) -> Model:
    """The model whose `decode` leads to the space of the experiment's losses; itself for pixel
    models.
    """
    if plan.experiment.loss_space == "image" or not opened.latent:
        return opened
    return replace(
        opened, denoiser=Undecoded(opened.denoiser), image_shape=tuple(opened.denoiser.shape)
    )


def to_images(plan: Plan, opened: Model, x: Tensor, batch: int) -> Tensor:
    """Images of samples [M, ...] that are in the space of the losses, decoded in batches where they
    are latents.
    """
    if in_loss_space(plan, opened) is opened:
        return x
    with torch.no_grad():
        return torch.cat([opened.denoiser.decode(part) for part in x.split(batch)])
