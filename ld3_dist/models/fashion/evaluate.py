"""The quality of the model `fashion`: the figures of `embedded.evaluate`, and more.

    agreement    the fraction of class-conditional samples that the classifier reads as the label
                 that was asked for
    nearest      distances to nearest training images: of samples, and of the test images, which the
                 network has not seen. Samples that are copies would lie nearer.

The data of the Fréchet distances are the test images. A sheet of samples shows all classes.
"""

from __future__ import annotations

import struct
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..embedded.classifier import in_parts
from ..embedded.evaluate import (
    TeacherConfig,
    frechet,
    frechet_figures,
    outside_range,
    teacher_samples,
)
from ..weights import sha256_of
from .classifier import CLASSIFIER
from .data import FashionData, scale
from .network import CLASSES, NETWORK


@dataclass(frozen=True)
class EvaluateConfig(TeacherConfig):
    """Settings of the samples.

    samples: for the Fréchet distance.
    asked: the first of them, which are classified.

    Raises ValueError for fewer than two samples, or more that are classified than there are.
    """

    samples: int = 10_000
    asked: int = 5000

    def __post_init__(self) -> None:
        if self.samples < 2 or self.batch < 1 or not 1 <= self.asked <= self.samples:
            raise ValueError(
                f"samples >= 2, batch >= 1 and 1 <= asked <= samples are needed, got {self}"
            )


def nearest(a: Tensor, b: Tensor) -> Tensor:
    """Root-mean-square pixel distance from each image of a to its nearest image in b: [M]."""
    pixels = a[0].numel()
    parts = [torch.cdist(part.flatten(1), b.flatten(1)).min(1).values for part in a.split(200)]
    return torch.cat(parts).cpu() / pixels**0.5


def evaluate(
    config: EvaluateConfig, data: FashionData, network: Path, classifier_file: Path
) -> dict[str, Any]:
    """Measure the network in a file with the classifier in a file; returns the record."""
    start, device = time.perf_counter(), config.device
    denoiser = NETWORK.load_denoiser(config.guidance, device=device, file=network)
    classifier = CLASSIFIER.load(device, file=classifier_file)
    samples, asked = teacher_samples(NETWORK, denoiser, config)
    seconds = time.perf_counter() - start
    on = samples.to(device)
    test = scale(data.test_images.to(device))
    hit = (in_parts(classifier, on[: config.asked]).argmax(1) == asked[: config.asked]).double()
    features = in_parts(classifier.features, test)
    figures: dict[str, Any] = {
        "model_sha256": sha256_of(network),
        "classifier_sha256": sha256_of(classifier_file),
        "data_sha256": data.sha256,
        "teacher": {
            name: getattr(config, name)
            for name in ("solver", "grid", "nfe", "guidance", "samples", "asked", "seed", "batch")
        },
        "agreement": float(hit.mean()),
        "agreement_by_class": [
            round(float(hit[asked[: config.asked] == c].mean()), 4)
            if (asked[: config.asked] == c).any()
            else None
            for c in range(CLASSES)
        ],
        "agreement_of_test_images": float(
            (in_parts(classifier, test).argmax(1) == data.test_labels).double().mean()
        ),
        "frechet": frechet_figures(in_parts(classifier.features, on), features, "test"),
    }
    train = scale(data.train_images.to(device))
    figures["frechet"]["training_images_to_test"] = frechet(
        in_parts(classifier.features, train), features
    )
    figures["nearest_rms"] = {
        "samples_to_training_median": float(nearest(on[:2000], train).median()),
        "test_to_training_median": float(nearest(test[:2000], train).median()),
    }
    figures["outside_range_rms"] = outside_range(samples)
    figures["sampling_seconds"] = round(seconds, 1)
    return figures | {"device": device, "torch": torch.__version__}


def write_sheet(config: EvaluateConfig, network: Path, file: Path) -> None:
    """Draw 100 samples as a PNG image, ten of each class in a row, pixels doubled."""
    labels = torch.arange(CLASSES).repeat_interleave(10)
    denoiser = NETWORK.load_denoiser(config.guidance, device=config.device, file=network)
    samples, _ = teacher_samples(NETWORK, denoiser, config, labels)
    grey = ((samples[:, 0].clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    framed = torch.nn.functional.pad(grey, (1, 1, 1, 1), value=60).reshape(CLASSES, 10, 30, 30)
    sheet = (
        framed.permute(0, 2, 1, 3).reshape(300, 300).repeat_interleave(2, 0).repeat_interleave(2, 1)
    )
    write_png(file, sheet)


def write_png(file: Path, grey: Tensor) -> None:
    """Write bytes [H, W] as a grey PNG image, without a drawing library."""
    height, width = grey.shape
    filters = torch.zeros(height, 1, dtype=torch.uint8)  # filter 0 on every row
    rows = torch.cat([filters, grey], 1).numpy().tobytes()

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows, 9)), chunk(b"IEND", b""))
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
