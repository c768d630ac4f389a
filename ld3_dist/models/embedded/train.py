"""Training of embedded networks: their losses, with stratified noise levels, and their settings.

EDM's loss:

    L = E_{x_0, sigma, z}  w(sigma) |D(x_0 + sigma z, sigma) - x_0|^2
      = E_{x_0, sigma, z}  |F(c_in x, ln(sigma) / 4) - target|^2

    w(sigma) = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2,      ln sigma ~ N(p_mean, p_std^2)

(Karras et al. 2022, arXiv 2206.00364, eq. 8.) The weight w makes the loss on F unweighted, so F is
trained directly. ln sigma is stratified over the batch, with one draw per quantile; this removes
most of the loss's variance over noise levels. A label becomes the null label with probability
`dropout` (Ho & Salimans 2022, arXiv 2207.12598). The result is an exponential moving average of the
weights.

The loss of flow matching (Lipman et al. 2023, arXiv 2210.02747), with u(x_t, t) the network:

    L = E_{x_0, t, z}  |u((1 - t) x_0 + t z, t) - (z - x_0)|^2

    ln(t / (1 - t)) ~ N(p_mean, p_std^2)

(times from Esser et al. 2024, arXiv 2403.03206). Here t / (1 - t) is the noise level sigma.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

Net = TypeVar("Net", bound=nn.Module)


@dataclass(frozen=True)
class NetworkTraining:
    """Settings of a network's training; a model gives the defaults.

    steps, batch: optimiser steps, and images per step.
    lr, warmup: the peak learning rate, and the steps until it is reached.
    ema: decay of the average of the weights.
    dropout: probability of the null label.
    p_mean, p_std: mean and spread of ln sigma.
    """

    steps: int
    batch: int
    lr: float
    warmup: int
    ema: float
    dropout: float
    p_mean: float
    p_std: float
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        check_positive(self, "steps", "batch", "lr", "p_std")
        for name in ("ema", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")

    def decay(self, step: int) -> float:
        """The decay of the average at a step.

        The average forgets fast at first, so that the random start soon leaves it.
        """
        return min(self.ema, (step + 1) / (step + 10))


@dataclass(frozen=True)
class ClassifierTraining:
    """Settings of a classifier's training with AdamW; a model gives the defaults.

    noise: the largest strength of the noise that is added to images.
    """

    epochs: int
    batch: int
    lr: float
    weight_decay: float
    noise: float
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        check_positive(self, "epochs", "batch", "lr")


@dataclass(frozen=True)
class ClassifierProgress(Generic[Net]):
    """The state after an epoch.

    epoch: its number, from 1.
    loss: mean training loss of the epoch.
    accuracy: on images that are not trained on.
    seconds: since the start.
    network: the classifier.
    """

    epoch: int
    loss: float
    accuracy: float
    seconds: float
    network: Net


def check_positive(settings: object, *names: str) -> None:
    """Raise ValueError for a setting that is not above zero, naming it and its value."""
    for name in names:
        if getattr(settings, name) <= 0:
            raise ValueError(f"{name} must be positive, got {getattr(settings, name)}")


def draw_sigma(config: NetworkTraining, generator: torch.Generator) -> Tensor:
    """Log-normal noise levels [batch], one per quantile of the batch, on the generator's device."""
    n, device = config.batch, generator.device
    place = torch.arange(n, device=device) + torch.rand(n, generator=generator, device=device)
    quantile = (place / n).clamp(1e-6, 1 - 1e-6)
    return (config.p_mean + config.p_std * torch.special.ndtri(quantile)).exp()


def denoising_loss(
    net: nn.Module, x_0: Tensor, sigma: Tensor, z: Tensor, label: Tensor, sigma_data: float
) -> Tensor:
    """Mean squared error of F against its target, over a batch x_0 [B, 1, h, w], sigma [B]."""
    s = sigma[:, None, None, None]
    total = s**2 + sigma_data**2
    x = x_0 + s * z
    target = (x_0 - sigma_data**2 / total * x) * total.sqrt() / (s * sigma_data)
    return (net(x / total.sqrt(), sigma.log() / 4, label) - target).square().mean()


def velocity_loss(net: nn.Module, x_0: Tensor, sigma: Tensor, z: Tensor, label: Tensor) -> Tensor:
    """Mean squared error of the velocity, over a batch x_0 [B, 1, h, w], sigma [B]."""
    time = sigma / (1 + sigma)
    t = time[:, None, None, None]
    return (net((1 - t) * x_0 + t * z, time, label) - (z - x_0)).square().mean()
