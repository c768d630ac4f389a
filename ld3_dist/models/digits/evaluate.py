"""The quality of the embedded model, measured with a teacher of many evaluations.

    agreement    the fraction of class-conditional samples that the classifier reads as the label
                 that was asked for
    Fréchet      |mu_1 - mu_2|^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^{1/2}) on the classifier's 64 features
                 (Dowson & Landau 1982)

The yardstick is the Fréchet distance between two disjoint halves of the data (898 images each),
averaged over random splits. The Fréchet distance of finite samples is biased upwards, and more so
for fewer samples. Samples are therefore also compared with the data at the sizes of the yardstick,
over the same splits. The distances to nearest neighbours show whether samples are copies of the
data.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...core.denoiser import Denoiser
from ...core.grid import discretize
from ...core.sample import draw_noise, sample
from ...core.solver import make_solver
from ..weights import sha256_of
from .classifier import DigitsClassifier, classifier_hash, load_digits_classifier
from .data import SHAPE, data_hash, digits_reference, halves
from .denoiser import NETWORK_FILE, draw_condition, load_digits_denoiser

SPLITS = 10


@dataclass(frozen=True)
class EvaluateConfig:
    """Settings of the samples: a teacher of `nfe` evaluations on the hand-made grid `grid`."""

    samples: int = 2000
    nfe: int = 50
    solver: str = "unipc-3"
    grid: str = "karras"
    guidance: float = 1.0
    seed: int = 20
    batch: int = 200
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.samples < 1 or self.batch < 1:
            raise ValueError(
                f"samples and batch must be at least 1, got {self.samples} and {self.batch}"
            )


@torch.no_grad()
def teacher_samples(denoiser: Denoiser, config: EvaluateConfig) -> tuple[Tensor, Tensor]:
    """Class-conditional samples [M, 1, 8, 8] and the labels asked for [M], both on the CPU."""
    solver = make_solver(config.solver)
    knots = discretize(denoiser.noise, solver.steps(config.nfe), config.grid)
    tableau = solver.tableau(denoiser.noise, solver.coupled(denoiser.noise, knots))
    labels = torch.stack([draw_condition(config.seed, i) for i in range(config.samples)])
    parts = []
    for index in torch.arange(config.samples).split(config.batch):
        x_T = denoiser.noise.prior_scale * draw_noise(config.seed, index.tolist(), SHAPE)
        parts.append(
            sample(denoiser, tableau, x_T.to(config.device), labels[index].to(config.device)).cpu()
        )
    return torch.cat(parts), labels


def frechet(a: Tensor, b: Tensor) -> float:
    """Fréchet distance between Gaussians fitted to features a [M, F] and b [N, F], in float64."""
    a, b = a.double(), b.double()
    s_a, s_b = a.T.cov(), b.T.cov()
    values, vectors = torch.linalg.eigh(s_a)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ s_b @ root).clamp_min(0).sqrt().sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + s_a.trace() + s_b.trace() - 2 * cross)


def frechet_figures(samples: Tensor, data: Tensor) -> dict[str, float]:
    """Fréchet distances between features of samples [M, F] and of the data [N, F].

    The ratios are to the yardstick, see the top of this file.
    """
    between, same_size = [], []
    for seed in range(SPLITS):
        first, second = (data[index] for index in halves(seed))
        between.append(frechet(first, second))
        order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed))
        same_size.append(frechet(samples[order[: len(first)]], second))
    whole, yardstick, same = frechet(samples, data), sum(between) / SPLITS, sum(same_size) / SPLITS
    return {
        "samples_to_data": whole,
        "half_to_half": yardstick,
        "half_size_samples_to_half": same,
        "ratio": whole / yardstick,
        "ratio_same_size": same / yardstick,
    }


def nearest(a: Tensor, b: Tensor) -> Tensor:
    """Root-mean-square pixel distance from each image of a to its nearest other image in b: [M]."""
    distance = torch.cdist(a.flatten(1).double(), b.flatten(1).double()) / a[0].numel() ** 0.5
    if a is b:
        distance.fill_diagonal_(torch.inf)
    return distance.min(1).values


def evaluate(config: EvaluateConfig, file: Path | None = None) -> dict[str, Any]:
    """Measure the packaged network, or one in `file`; returns the record for results/."""
    file = NETWORK_FILE if file is None else Path(file)
    start = time.perf_counter()
    denoiser = load_digits_denoiser(config.guidance, device=config.device, file=file)
    classifier = load_digits_classifier()
    images, labels = digits_reference()
    samples, asked = teacher_samples(denoiser, config)
    seconds = time.perf_counter() - start
    hit = (classifier(samples).argmax(1) == asked).double()
    near, near_data = nearest(samples, images), nearest(images, images)
    return {
        "model_sha256": sha256_of(file),
        "classifier_sha256": classifier_hash(),
        "data_sha256": data_hash(),
        "teacher": {
            name: getattr(config, name)
            for name in ("solver", "grid", "nfe", "guidance", "samples", "seed")
        },
        "agreement": float(hit.mean()),
        "agreement_worst_class": min(float(hit[asked == c].mean()) for c in asked.unique()),
        "agreement_of_data": float((classifier(images).argmax(1) == labels).double().mean()),
        "frechet": frechet_figures(_features(classifier, samples), _features(classifier, images)),
        "nearest_rms": {
            "samples_to_data_median": float(near.median()),
            "data_to_data_median": float(near_data.median()),
        },
        "outside_range_rms": float((samples - samples.clamp(-1, 1)).square().mean().sqrt()),
        "sampling_seconds": round(seconds, 1),
        "device": config.device,
        "torch": torch.__version__,
    }


def _features(classifier: DigitsClassifier, images: Tensor) -> Tensor:
    with torch.no_grad():
        return classifier.features(images)
