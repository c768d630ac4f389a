"""Training of the digits networks, with the losses of `embedded.train`."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from ..embedded.train import NetworkTraining, denoising_loss, draw_sigma, velocity_loss
from .data import digits_reference
from .network import NULL_LABEL, DigitsNetwork, NetworkConfig


@dataclass(frozen=True)
class TrainConfig(NetworkTraining):
    """Settings of the training; after `warmup` steps lr falls to zero as a cosine."""

    steps: int = 6000
    batch: int = 256
    lr: float = 2e-3
    warmup: int = 200
    ema: float = 0.999
    dropout: float = 0.12
    p_mean: float = -0.8
    p_std: float = 1.5

    def loss(
        self, net: nn.Module, x_0: Tensor, sigma: Tensor, z: Tensor, label: Tensor, data: float
    ) -> Tensor:
        """The loss of a batch, see `embedded.train`; data: sigma_data."""
        return denoising_loss(net, x_0, sigma, z, label, data)


@dataclass(frozen=True)
class FlowConfig(TrainConfig):
    """Settings of flow matching: the same, with another loss and its noise levels."""

    p_mean: float = 0.0
    p_std: float = 1.0

    def loss(
        self, net: nn.Module, x_0: Tensor, sigma: Tensor, z: Tensor, label: Tensor, data: float
    ) -> Tensor:
        return velocity_loss(net, x_0, sigma, z, label)


@dataclass(frozen=True)
class TrainProgress:
    """The state after a training step.

    step: its number, from 1.
    loss: running mean of the loss.
    seconds: since the start.
    average: the network with the averaged weights.
    """

    step: int
    loss: float
    seconds: float
    average: nn.Module


def learning_rate(config: TrainConfig, step: int) -> float:
    """The learning rate of a step: a linear warm-up, and a cosine to zero."""
    rise = min(1.0, (step + 1) / max(1, config.warmup))
    return config.lr * rise * 0.5 * (1 + math.cos(math.pi * step / config.steps))


def train_network(
    config: TrainConfig, sizes: NetworkConfig | None = None
) -> Iterator[TrainProgress]:
    """Train from scratch, yielding after every step.

    The same seed, kind of device and version of PyTorch give the same run.
    """
    torch.manual_seed(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    images, labels = digits_reference()
    sigma_data = measure_sigma_data(images)
    net = DigitsNetwork(sizes).to(config.device)
    net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = deepcopy(net).requires_grad_(False)
    optimizer = torch.optim.Adam(net.parameters(), lr=config.lr, betas=(0.9, 0.99))
    start, running = time.perf_counter(), None
    order, position = torch.empty(0, dtype=torch.int64), 0
    for step in range(config.steps):
        if position + config.batch > len(order):
            order, position = _shuffled(len(images), config.batch, generator), 0
        index = order[position : position + config.batch]
        position += config.batch
        label = labels[index].clone()
        label[torch.rand(config.batch, generator=generator) < config.dropout] = NULL_LABEL
        sigma = draw_sigma(config, generator)
        z = torch.randn(config.batch, *images.shape[1:], generator=generator)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        x_0, sigma, z, label = (t.to(config.device) for t in (images[index], sigma, z, label))
        loss = config.loss(net, x_0, sigma, z, label, sigma_data)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            for old, new in zip(average.parameters(), net.parameters(), strict=True):
                old.lerp_(new, 1 - config.decay(step))
        value = float(loss.detach())
        running = value if running is None else 0.99 * running + 0.01 * value
        yield TrainProgress(step + 1, running, time.perf_counter() - start, average)


def _shuffled(n: int, batch: int, generator: torch.Generator) -> Tensor:
    """Indices of one or more shuffled passes over n images, enough for at least one batch."""
    return torch.cat([torch.randperm(n, generator=generator) for _ in range(math.ceil(batch / n))])


def measure_sigma_data(images: Tensor) -> float:
    """Standard deviation of the pixels, rounded so that it is the same number on every machine."""
    return round(float(images.double().std()), 4)


def settings(config: TrainConfig, sizes: NetworkConfig) -> dict[str, object]:
    """All settings that determine the weights, in one flat record for the provenance file."""
    return {**asdict(config), **asdict(sizes)}
