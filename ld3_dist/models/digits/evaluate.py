"""The quality of the model `digits`: the figures of `embedded.evaluate`, and two more.

agreement    the fraction of class-conditional samples that the classifier reads as the label
             that was asked for
nearest      distances to nearest neighbours, which show whether samples are copies of the data
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..embedded.denoiser import EmbeddedNetwork
from ..embedded.evaluate import TeacherConfig, frechet_figures, outside_range, teacher_samples
from ..weights import sha256_of
from .classifier import CLASSIFIER, DigitsClassifier
from .data import data_hash, digits_reference
from .network import NETWORK


@dataclass(frozen=True)
class EvaluateConfig(TeacherConfig):
    """Settings of the samples. Raises ValueError if there are none."""

    def __post_init__(self) -> None:
        if self.samples < 1 or self.batch < 1:
            raise ValueError(
                f"samples and batch must be at least 1, got {self.samples} and {self.batch}"
            )


def nearest(a: Tensor, b: Tensor) -> Tensor:
    """Root-mean-square pixel distance from each image of a to its nearest other image in b: [M]."""
    distance = torch.cdist(a.flatten(1).double(), b.flatten(1).double()) / a[0].numel() ** 0.5
    if a is b:
        distance.fill_diagonal_(torch.inf)
    return distance.min(1).values


def evaluate(
    config: EvaluateConfig, file: Path | None = None, network: EmbeddedNetwork[Any] = NETWORK
) -> dict[str, Any]:
    """Measure the packaged network, or one in `file`; returns the record for results/."""
    file = network.file if file is None else Path(file)
    start = time.perf_counter()
    denoiser = network.load_denoiser(config.guidance, device=config.device, file=file)
    classifier = CLASSIFIER.load()
    images, labels = digits_reference()
    samples, asked = teacher_samples(network, denoiser, config)
    seconds = time.perf_counter() - start
    hit = (classifier(samples).argmax(1) == asked).double()
    near, near_data = nearest(samples, images), nearest(images, images)
    return {
        "model_sha256": sha256_of(file),
        "classifier_sha256": CLASSIFIER.hash(),
        "data_sha256": data_hash(),
        "teacher": {
            name: getattr(config, name)
            for name in ("solver", "grid", "nfe", "guidance", "samples", "seed")
        },
        "agreement": float(hit.mean()),
        "agreement_worst_class": min(float(hit[asked == c].mean()) for c in asked.unique()),
        "agreement_of_data": float((classifier(images).argmax(1) == labels).double().mean()),
        "frechet": frechet_figures(
            _features(classifier, samples), _features(classifier, images), "data"
        ),
        "nearest_rms": {
            "samples_to_data_median": float(near.median()),
            "data_to_data_median": float(near_data.median()),
        },
        "outside_range_rms": outside_range(samples),
        "sampling_seconds": round(seconds, 1),
        "device": config.device,
        "torch": torch.__version__,
    }


def _features(classifier: DigitsClassifier, images: Tensor) -> Tensor:
    with torch.no_grad():
        return classifier.features(images)
