"""How good the embedded model is: measured, with a teacher of many evaluations, and written down.

    agreement    share of class-conditional samples that the classifier reads as the label that was
                 asked for
    Fréchet      |mu_1 - mu_2|^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^{1/2}) on the classifier's 128
                 features (Dowson & Landau 1982)

The Fréchet distance of finite samples is biased upwards, the more so the fewer samples. So the
distance of samples to the test images is also given at exactly the sizes of the yardstick, the
distance between two disjoint halves of the test images, averaged over the same random splits.
Nearest-neighbour distances to the training images tell memory from invention: they are compared
with those of the test images, which the network has not seen.
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

from ...core.denoiser import Denoiser
from ...core.grid import discretize
from ...core.sample import draw_noise, sample
from ...core.solver import make_solver
from ..weights import sha256_of
from .classifier import in_parts, load_fashion_classifier
from .data import SHAPE, FashionData, halves, scale
from .denoiser import draw_condition, load_fashion_denoiser
from .network import CLASSES

SPLITS = 10


@dataclass(frozen=True)
class EvaluateConfig:
    """What is sampled: a teacher of `nfe` evaluations on the hand-made grid `grid`.

    samples: for the Fréchet distance; the first `asked` of them are classified.
    """

    samples: int = 10_000
    asked: int = 5000
    nfe: int = 50
    solver: str = "unipc-3"
    grid: str = "karras"
    guidance: float = 1.0
    seed: int = 20
    batch: int = 200
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.samples < 2 or self.batch < 1 or not 1 <= self.asked <= self.samples:
            raise ValueError(
                f"samples >= 2, batch >= 1 and 1 <= asked <= samples are needed, got {self}"
            )


@torch.no_grad()
def teacher_samples(
    denoiser: Denoiser, config: EvaluateConfig, labels: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Class-conditional samples [M, 1, 28, 28] and their labels [M] (drawn, if not given), both on
    the CPU.
    """
    solver = make_solver(config.solver)
    knots = discretize(denoiser.noise, solver.steps(config.nfe), config.grid)
    tableau = solver.tableau(denoiser.noise, solver.coupled(denoiser.noise, knots))
    if labels is None:
        labels = torch.stack([draw_condition(config.seed, i) for i in range(config.samples)])
    parts = []
    for index in torch.arange(len(labels)).split(config.batch):
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
    """Fréchet distances of features of samples [M, F] and data [N, F]; the ratios are to the
    yardstick.
    """
    between, same_size = [], []
    for seed in range(SPLITS):
        first, second = (data[index] for index in halves(len(data), seed))
        between.append(frechet(first, second))
        some = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed))[
            : len(first)
        ]
        same_size.append(frechet(samples[some], second))
    whole, yardstick, same = frechet(samples, data), sum(between) / SPLITS, sum(same_size) / SPLITS
    return {
        "samples_to_test": whole,
        "half_to_half": yardstick,
        "half_size_samples_to_half": same,
        "ratio": whole / yardstick,
        "ratio_same_size": same / yardstick,
    }


def nearest(a: Tensor, b: Tensor) -> Tensor:
    """Root-mean-square pixel distance from each image of a to its nearest image in b: [M]."""
    pixels = a[0].numel()
    parts = [torch.cdist(part.flatten(1), b.flatten(1)).min(1).values for part in a.split(200)]
    return torch.cat(parts).cpu() / pixels**0.5


def evaluate(
    config: EvaluateConfig, data: FashionData, network: Path, classifier_file: Path
) -> dict[str, Any]:
    """Measure the network in a file with the classifier in a file; the record that is written under
    results/.
    """
    start, device = time.perf_counter(), config.device
    denoiser = load_fashion_denoiser(config.guidance, device=device, file=network)
    classifier = load_fashion_classifier(device, file=classifier_file)
    samples, asked = teacher_samples(denoiser, config)
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
        "frechet": frechet_figures(in_parts(classifier.features, on), features),
    }
    train = scale(data.train_images.to(device))
    figures["frechet"]["training_images_to_test"] = frechet(
        in_parts(classifier.features, train), features
    )
    figures["nearest_rms"] = {
        "samples_to_training_median": float(nearest(on[:2000], train).median()),
        "test_to_training_median": float(nearest(test[:2000], train).median()),
    }
    figures["outside_range_rms"] = float((samples - samples.clamp(-1, 1)).square().mean().sqrt())
    figures["sampling_seconds"] = round(seconds, 1)
    return figures | {"device": device, "torch": torch.__version__}


def write_sheet(config: EvaluateConfig, network: Path, file: Path) -> None:
    """Draw 100 samples, ten of each class in a row, as a PNG image of 2x2 screen pixels per
    pixel.
    """
    labels = torch.arange(CLASSES).repeat_interleave(10)
    samples, _ = teacher_samples(
        load_fashion_denoiser(config.guidance, device=config.device, file=network), config, labels
    )
    grey = ((samples[:, 0].clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    framed = torch.nn.functional.pad(grey, (1, 1, 1, 1), value=60).reshape(CLASSES, 10, 30, 30)
    sheet = (
        framed.permute(0, 2, 1, 3).reshape(300, 300).repeat_interleave(2, 0).repeat_interleave(2, 1)
    )
    write_png(file, sheet)


def write_png(file: Path, grey: Tensor) -> None:
    """Write bytes [H, W] as a grey PNG image: no drawing library is needed for that."""
    height, width = grey.shape
    rows = (
        torch.cat([torch.zeros(height, 1, dtype=torch.uint8), grey], 1).numpy().tobytes()
    )  # filter 0 on every row

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows, 9)), chunk(b"IEND", b""))
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
