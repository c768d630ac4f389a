"""The descent's steps: against the formula with another library's matrix functions, along valleys,
on accelerators.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from ld3_dist.core.distance import Elementwise
from ld3_dist.core.grid import discretize
from ld3_dist.core.learning.descent import FLOOR, MEMORY, Descent, inverse_root, newton_schulz
from ld3_dist.core.learning.learn import LearnConfig, Pairs, Problem, make_config
from ld3_dist.core.noise import EDM
from ld3_dist.core.sample import draw_noise
from ld3_dist.core.solver import make_solver
from ld3_dist.models.analytic.mixture import mixture_2d

CONFIG = make_config(lr=0.1, lr_times=0.05, lr_coefficients=0.03, clip=1e9, gamma=0.0)


def session(config: LearnConfig = CONFIG, members: int = 2) -> Descent:
    mixture = mixture_2d(EDM())
    noise = draw_noise(0, range(6), mixture.shape).double()
    knots = discretize(EDM(), 3, "log_snr").repeat(members, 1)
    pairs = Pairs(noise, noise)
    return Descent(
        Problem(mixture, make_solver("ipndm-2"), knots, pairs, pairs, Elementwise(2)), config
    )


def parameters(run: Descent) -> list[Tensor]:
    return [p for p in run.grids.parameters() if p.requires_grad]


def descend(run: Descent, gradients: list[Tensor], rate: float) -> None:
    for p, gradient in zip(parameters(run), gradients, strict=True):
        p.grad = gradient.clone()
    run.descend(rate)


@pytest.mark.parametrize("coefficients", [False, True])
def test_steps_follow_the_formula(coefficients: bool) -> None:
    """p -= rate u (C + FLOOR tr(C) I)^(-1/2) m with scipy's matrix functions, in units u of the
    rates.

    After n steps C is its diagonal by a share of MEMORY^n.
    """
    run = session(replace(CONFIG, coefficients=coefficients))
    start = [p.detach().clone() for p in parameters(run)]
    generator = torch.Generator().manual_seed(0)
    shapes = [p.shape for p in start]
    history = [
        [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes] for _ in range(4)
    ]
    units = np.concatenate(
        [np.full(p[0].numel(), u) for p, u in zip(start, (0.1, 0.05, 0.03), strict=False)]
    )
    for step, gradients in enumerate(history):
        descend(run, gradients, rate=0.5**step)
    for member in range(2):
        flat = lambda tensors, k=member: np.concatenate([t[k].flatten().numpy() for t in tensors])
        expected, m, C, weight = flat(start), 0.0, 0.0, 0.0
        for step, gradients in enumerate(history):
            g = flat(gradients) * units
            m, C, weight = MEMORY * m + g, MEMORY * C + np.outer(g, g), MEMORY * weight + 1
            mean = C / weight
            mean = mean + MEMORY ** (step + 1) * (np.diag(np.diag(mean)) - mean)
            root = scipy.linalg.inv(
                scipy.linalg.sqrtm(mean + FLOOR * np.trace(mean) * np.eye(len(g))).real
            )
            expected = expected - 0.5**step * units * (root @ (m / weight))
        found = flat([p.detach() for p in parameters(run)])
        np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-9)


def test_a_valley_s_direction_does_not_matter() -> None:
    """f(p) = |V p|^2 / 2, a thousand times as steep one way: turned by 30 degrees, the steps are
    turned and no slower.

    A diagonal of second moments, for comparison, loses its way in the turned valley.
    """
    narrow = torch.diag(torch.tensor([1000.0, 1.0], dtype=torch.float64))
    angle = torch.tensor(np.pi / 6, dtype=torch.float64)
    turn = torch.stack(
        [torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])]
    )

    def end(hessian: Tensor, p: Tensor, full: bool) -> Tensor:
        m, C, weight = torch.zeros(2).double(), torch.zeros(2, 2).double(), 0.0
        for step in range(60):
            g = hessian @ p
            m, C, weight = MEMORY * m + g, MEMORY * C + torch.outer(g, g), MEMORY * weight + 1
            C_ = C if full else torch.diag(torch.diagonal(C))
            p = p - 0.1 * 0.93**step * inverse_root(C_[None] / weight)[0] @ (m / weight)
        return p

    start = torch.tensor([0.3, 0.7], dtype=torch.float64)
    straight = end(narrow, start, True)
    turned = end(turn @ narrow @ turn.T, turn @ start, True)
    torch.testing.assert_close(turn.T @ turned, straight, rtol=1e-6, atol=1e-9)
    loss = lambda p: float(p @ narrow @ p)
    lost = turn.T @ end(turn @ narrow @ turn.T, turn @ start, False)
    assert loss(straight) < 1e-2 * loss(start)
    assert loss(straight) < 0.2 * loss(lost)


def spread(condition: float, size: int) -> Tensor:
    """Symmetric matrices [3, size, size] with eigenvalues from 1 / condition to 1."""
    generator = torch.Generator().manual_seed(1)
    basis = torch.linalg.qr(torch.randn(3, size, size, generator=generator, dtype=torch.float64))[0]
    return (
        basis
        @ torch.diag(torch.logspace(0, -np.log10(condition), size, dtype=torch.float64))
        @ basis.mT
    )


@pytest.mark.parametrize("size", [2, 9, 130])
def test_products_alone_find_the_same_root(size: int) -> None:
    """What accelerators compute, against eigenvalues and against the definition, as badly
    conditioned as it gets.
    """
    C = spread(1 / FLOOR, size)
    values, vectors = torch.linalg.eigh(C)
    root = newton_schulz(C)
    torch.testing.assert_close(
        root, (vectors * values[:, None].rsqrt()) @ vectors.mT, rtol=1e-7, atol=1e-7
    )
    torch.testing.assert_close(
        root @ C @ root, torch.eye(size).double().expand_as(C), rtol=1e-7, atol=1e-7
    )


def test_a_member_without_gradient_stays() -> None:
    run = session()
    before = [p.detach().clone() for p in parameters(run)]
    gradients = [torch.ones_like(p) for p in before]
    for gradient in gradients:
        gradient[1] = torch.nan  # what is not finite counts as zero
    descend(run, gradients, 1.0)
    for p, was in zip(parameters(run), before, strict=True):
        assert p[1].equal(was[1])
        assert not p[0].equal(was[0])
