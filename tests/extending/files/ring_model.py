"""A model with a feature extractor and data of its own: images of one pixel row, on a ring."""

import torch

from ld3_dist.core.features import Extractor
from ld3_dist.core.noise import EDM
from ld3_dist.models import Model
from ld3_dist.models.analytic.mixture import Mixture


def build(options):
    """Called with the options of the model; returns a Denoiser, or a Model as here."""
    angles = torch.arange(6) * torch.pi / 3
    means = torch.stack([angles.cos(), angles.sin()], 1).view(6, 1, 1, 2)
    denoiser = Mixture(EDM(), 0.7 * means, torch.full((6,), 0.05)).to(options.device)
    picks = torch.randint(6, (300,), generator=torch.Generator().manual_seed(0))
    return Model(
        denoiser,
        extractor=Extractor("radius", "1", radius_and_angle),
        data=0.7 * means[picks].float(),
    )


def radius_and_angle(images):
    """Images [B, 1, 1, 2] -> features [B, 2]."""
    x, y = images.flatten(1).unbind(1)
    return torch.stack([torch.hypot(x, y), torch.atan2(y, x)], 1)
