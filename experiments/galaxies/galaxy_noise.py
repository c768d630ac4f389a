"""The noise schedule of the galaxies, as the networks were trained with it.

    x_t = alpha x_0 + sigma z,   alpha = exp(-t / 2),   sigma^2 = 1 - exp(-t)

It is variance-preserving with log alpha = -t / 2, the Ornstein-Uhlenbeck process with beta = 1
(Song et al. 2021, arXiv 2011.13456, eq. 29). From

    lambda = log(alpha / sigma) = -log(e^t - 1) / 2     follows     t = log(1 + exp(-2 lambda)).

Sampling runs from t = 10, where alpha is 0.0067, to t = 0.001, where sigma is 0.032.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ld3_dist.core.noise import VariancePreserving, noise_schedules


@noise_schedules.register("ornstein-uhlenbeck")
@dataclass(frozen=True)
class OrnsteinUhlenbeck(VariancePreserving):
    """alpha = exp(-t / 2); its ends are fields, so that schedule files can hold it."""

    t_min: float = 1e-3
    t_max: float = 10.0
    name: str = "ornstein-uhlenbeck"

    def log_alpha(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return -t / 2, torch.full_like(t, -0.5)  # and its derivative

    def inverse(self, lam: Tensor) -> Tensor:
        return softplus(-2 * lam)
