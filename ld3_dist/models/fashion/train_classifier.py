"""Training of the fashion classifier: cross-entropy on shifted, mirrored and noisy training images.

Half the images get noise of a random strength. The noise makes the features vary smoothly around
the data, as they must for a distance between an image and a slightly wrong copy of it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ..embedded.classifier import accuracy
from ..embedded.train import ClassifierProgress, ClassifierTraining
from .classifier import FashionClassifier
from .data import FashionData, scale


@dataclass(frozen=True)
class ClassifierConfig(ClassifierTraining):
    """Settings of the training: AdamW, a short rise of the rate, then a cosine to zero."""

    epochs: int = 30
    batch: int = 256
    lr: float = 3e-3
    weight_decay: float = 0.05
    noise: float = 0.3


def augment(images: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    """Mirror half of the batch, shift half by up to two pixels, and add noise to half."""

    def some() -> Tensor:
        return torch.rand(len(images), 1, 1, 1, generator=generator, device=images.device) < 0.5

    images = torch.where(some(), images.flip(3), images)
    dx, dy = torch.randint(-2, 3, (2,), generator=generator, device=images.device).tolist()
    moved = functional.pad(images, (2, 2, 2, 2), value=-1.0)[
        :, :, 2 + dy : 30 + dy, 2 + dx : 30 + dx
    ]
    images = torch.where(some(), moved, images)
    strength = (
        noise * torch.rand(len(images), 1, 1, 1, generator=generator, device=images.device) * some()
    )
    return images + strength * torch.randn(images.shape, generator=generator, device=images.device)


def train_classifier(
    config: ClassifierConfig, data: FashionData
) -> Iterator[ClassifierProgress[FashionClassifier]]:
    """Train from scratch, yielding after every epoch; nothing is selected on the test images."""
    torch.manual_seed(config.seed)
    device = torch.device(config.device)
    generator = torch.Generator(device).manual_seed(config.seed)
    images, labels = scale(data.train_images.to(device)), data.train_labels.to(device)
    test_images = scale(data.test_images.to(device))
    net = FashionClassifier().to(device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    total, step = config.epochs * -(-len(images) // config.batch), 0
    start = time.perf_counter()
    for epoch in range(config.epochs):
        losses = torch.zeros((), device=device)
        parts = torch.randperm(len(images), generator=generator, device=device).split(config.batch)
        for index in parts:
            rate = (
                config.lr
                * min(1.0, (step + 1) / 200)
                * 0.5
                * (1 + math.cos(math.pi * step / total))
            )
            for group in optimizer.param_groups:
                group["lr"] = rate
            batch = augment(images[index], config.noise, generator)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                loss = functional.cross_entropy(net.train()(batch), labels[index])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            losses += loss.detach()
            step += 1
        held = accuracy(net.eval(), test_images, data.test_labels)
        yield ClassifierProgress(
            epoch + 1, float(losses) / len(parts), held, time.perf_counter() - start, net
        )
