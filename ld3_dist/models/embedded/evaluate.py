"""The quality of an embedded model, measured with a teacher of many evaluations.

    Fréchet      |mu_1 - mu_2|^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^{1/2}) on the classifier's features
                 (Dowson & Landau 1982)

The yardstick is the Fréchet distance between two disjoint halves of the data, averaged over random
splits. The Fréchet distance of finite samples is biased upwards, and more so for fewer samples.
Samples are therefore also compared with the data at the sizes of the yardstick, over the same
splits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...core.denoiser import Denoiser
from ...core.grid import discretize
from ...core.sample import draw_noise, sample
from ...core.solver import make_solver
from .denoiser import EmbeddedNetwork

SPLITS = 10


@dataclass(frozen=True)
class TeacherConfig:
    """Settings of the samples: a teacher of `nfe` evaluations on the hand-made grid `grid`."""

    samples: int = 2000
    nfe: int = 50
    solver: str = "unipc-3"
    grid: str = "karras"
    guidance: float = 1.0
    seed: int = 20
    batch: int = 200
    device: str = "cpu"


def teacher_samples(
    network: EmbeddedNetwork[Any],
    denoiser: Denoiser,
    config: TeacherConfig,
    labels: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Class-conditional samples [M, *shape] and their labels [M], both on the CPU.

    Args:
        labels: asked for; drawn for `config.samples` samples if not given.
    """
    solver = make_solver(config.solver)
    knots = discretize(denoiser.noise, solver.steps(config.nfe), config.grid)
    tableau = solver.tableau(denoiser.noise, solver.coupled(denoiser.noise, knots))
    if labels is None:
        drawn = [network.draw_condition(config.seed, i) for i in range(config.samples)]
        labels = torch.stack(drawn)
    parts = []
    with torch.no_grad():
        for index in torch.arange(len(labels)).split(config.batch):
            z = draw_noise(config.seed, index.tolist(), network.shape)
            x_T = (denoiser.noise.prior_scale * z).to(config.device)
            parts.append(sample(denoiser, tableau, x_T, labels[index].to(config.device)).cpu())
    return torch.cat(parts), labels


def halves(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Indices of two disjoint random halves of n images; one is left out if n is odd."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return order[: n // 2], order[n // 2 : 2 * (n // 2)]


def frechet(a: Tensor, b: Tensor) -> float:
    """Fréchet distance between Gaussians fitted to features a [M, F] and b [N, F], in float64."""
    a, b = a.double(), b.double()
    s_a, s_b = a.T.cov(), b.T.cov()
    values, vectors = torch.linalg.eigh(s_a)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ s_b @ root).clamp_min(0).sqrt().sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + s_a.trace() + s_b.trace() - 2 * cross)


def frechet_figures(samples: Tensor, data: Tensor, name: str) -> dict[str, float]:
    """Fréchet distances between features of samples [M, F] and of the data [N, F].

    The ratios are to the yardstick, see the top of this file.

    Args:
        name: what the data are called in the record.
    """
    between, same_size = [], []
    for seed in range(SPLITS):
        first, second = (data[index] for index in halves(len(data), seed))
        between.append(frechet(first, second))
        order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed))
        same_size.append(frechet(samples[order[: len(first)]], second))
    whole, yardstick, same = frechet(samples, data), sum(between) / SPLITS, sum(same_size) / SPLITS
    return {
        f"samples_to_{name}": whole,
        "half_to_half": yardstick,
        "half_size_samples_to_half": same,
        "ratio": whole / yardstick,
        "ratio_same_size": same / yardstick,
    }


def outside_range(samples: Tensor) -> float:
    """Root-mean-square distance of samples from the range [-1, 1] of images."""
    return float((samples - samples.clamp(-1, 1)).square().mean().sqrt())
