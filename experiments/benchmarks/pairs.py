"""Teacher pairs and samples for the scripts beside this file."""

from __future__ import annotations

import torch
from torch import Tensor

from ld3_dist.core.grid import discretize
from ld3_dist.core.learning.learn import Pairs
from ld3_dist.core.sample import draw_noise, sample
from ld3_dist.core.solver import Tableau, make_solver
from ld3_dist.models import Model


def teacher_pairs(opened: Model, nfe: int, start: int, stop: int) -> Pairs:
    """Pairs of a range of samples; teacher UniPC-3 with `nfe` evaluations on the Karras grid."""
    teacher, noise = make_solver("unipc-3"), opened.denoiser.noise
    table = teacher.tableau(noise, teacher.coupled(noise, discretize(noise, nfe, "karras")))
    x, condition = draw_noise(0, range(start, stop), opened.denoiser.shape), None
    if opened.draw_condition is not None:
        condition = opened.draw_condition(0, range(start, stop))
    return Pairs(x, generate(opened, table, Pairs(x, x, condition)), condition)


@torch.no_grad()
def generate(opened: Model, table: Tableau, pairs: Pairs) -> Tensor:
    """Samples [B, *shape] of a schedule from the noise of `pairs`."""
    parts = [pairs[i] for i in torch.arange(len(pairs)).split(250)]
    scale = opened.denoiser.noise.prior_scale
    return torch.cat(
        [sample(opened.denoiser, table, scale * part.noise, part.condition) for part in parts]
    )
