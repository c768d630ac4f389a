"""Training of the digits classifier: cross-entropy on four fifths of the data.

The images are shifted by a pixel, and noise of a random strength is added. The noise makes the
features vary smoothly around the data, as they must for a distance between an image and a slightly
wrong copy of it.
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
from .classifier import DigitsClassifier
from .data import digits_reference, held_out


@dataclass(frozen=True)
class ClassifierConfig(ClassifierTraining):
    """Settings of the training: AdamW, with a rate that falls to zero as a cosine."""

    epochs: int = 100
    batch: int = 64
    lr: float = 2e-3
    weight_decay: float = 0.02
    noise: float = 0.4


def augment(images: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    """Shift a third of the batch by up to one pixel, and add noise to all images.

    Background enters at the edges. The noise's strength is uniform in [0, noise], per image.
    """
    moved = images.clone()
    dx, dy = (int(v) for v in torch.randint(-1, 2, (2,), generator=generator))
    some = torch.rand(len(images), generator=generator) < 1 / 3
    padded = functional.pad(images[some], (1, 1, 1, 1), value=-1.0)
    moved[some] = padded[:, :, 1 + dy : 9 + dy, 1 + dx : 9 + dx]
    strength = noise * torch.rand(len(images), 1, 1, 1, generator=generator)
    return moved + strength * torch.randn(images.shape, generator=generator)


def train_classifier(
    config: ClassifierConfig,
) -> Iterator[ClassifierProgress[DigitsClassifier]]:
    """Train from scratch, yielding after every epoch; the held-out fifth selects nothing."""
    torch.manual_seed(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    images, labels = digits_reference()
    mask = held_out()
    test_images, test_labels = images[mask].to(config.device), labels[mask].to(config.device)
    images, labels = images[~mask], labels[~mask]
    net = DigitsClassifier().to(config.device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    start = time.perf_counter()
    for epoch in range(config.epochs):
        losses = []
        for group in optimizer.param_groups:
            group["lr"] = config.lr * 0.5 * (1 + math.cos(math.pi * epoch / config.epochs))
        for index in torch.randperm(len(images), generator=generator).split(config.batch):
            batch = augment(images[index], config.noise, generator).to(config.device)
            loss = functional.cross_entropy(net.train()(batch), labels[index].to(config.device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        held = accuracy(net.eval(), test_images, test_labels)
        yield ClassifierProgress(
            epoch + 1, sum(losses) / len(losses), held, time.perf_counter() - start, net
        )
