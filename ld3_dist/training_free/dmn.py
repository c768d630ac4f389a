"""DMN: the schedule that gives least weight to the network's errors (Xue et al. 2024, arXiv
2402.17376).

The exact solution in lam: x_N / sigma_N = x_0 / sigma_0 + int e^lam D(lam) d lam. A multistep rule
replaces D by the Lagrange polynomial through its last k outputs, so that output j enters the end
point with the weight

    c_j = sum_s J_sj,      J_sj = int_{lam_s}^{lam_{s+1}} e^lam l_sj(lam) d lam,      k = 1, 2, 3, …
                           3, 2, 1,

and an output whose error is at most err_j = sigma_j^p / alpha_j moves it by at most sum_j |c_j|
err_j: the objective, over the inner knots. p is 1 for pixels and 2 for latents. With few steps (N
<= 7) the first three are counted one by one, as the authors do, because their weights cancel too
well to be trusted: sum_s ( sum_j (J_sj err_j)^2 )^(1/2).

No network is needed. alpha and sigma in err_j are those of the variance-preserving frame, functions
of lam alone. The objective is not smooth and has local optima: many starts descend side by side,
and the best are polished. With more than seven steps its global optimum is of no use: knots crowd
at the end, where large weights cancel. There gaps are held within SMALLEST and LARGEST; the optima
in which descent from the usual grids ends lie well inside.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from ..core.errors import InputError
from ..core.grid import discretize, lam_range
from ..core.noise import EDM, NoiseSchedule
from ..core.rules import banded, history, moments, orders, phi

TRUNCATED = 3
FEW = 7
SMALLEST, LARGEST = 0.35, 2.0
"""Gaps in lam as fractions of the mean gap, for more than FEW steps."""
STARTS = ("log_snr", "karras", "uniform", "quadratic", "cosine")


def dmn(
    noise: NoiseSchedule,
    steps: int,
    power: int | None = None,
    starts: int = 27,
    iterations: int = 400,
) -> Tensor:
    """Knots [steps + 1], float64; a pure function of its arguments.

    Args:
        power: p above; 1 for EDM (pixel models) and 2 for the others (latent models) where not
            given.
        starts: random starts besides the hand-made ones.
        iterations: of gradient descent, before polishing.

    Raises InputError for steps < 1.
    """
    if steps < 1:
        raise InputError(f"steps = {steps}: a grid needs at least one step")
    ends = torch.tensor([noise.t_max, noise.t_min], dtype=torch.float64)
    if steps == 1:
        return ends
    power = power or (1 if isinstance(noise, EDM) else 2)
    low, high = lam_range(noise)
    smallest, largest = (SMALLEST, LARGEST) if steps > FEW else (0.0, float(steps))
    made = torch.stack(
        [noise.lam(discretize(noise, steps, name)).clamp(low, high).diff() for name in STARTS]
    )
    drawn = np.random.default_rng(0).dirichlet(np.full(steps, 3.0), starts)
    gaps = torch.cat([made / (high - low), torch.as_tensor(drawn)])
    logits = (gaps - smallest / steps).clamp_min(1e-2).log().requires_grad_()

    def place(logits: Tensor) -> Tensor:
        gaps = smallest / steps + (1 - smallest) * torch.softmax(logits, -1)
        lam = low + (high - low) * gaps.cumsum(-1)
        return torch.cat(
            [torch.full_like(lam[:, :1], low), lam[:, :-1], torch.full_like(lam[:, :1], high)], 1
        )

    def penalised(logits: Tensor) -> Tensor:
        lam = place(logits)
        excess = (lam.diff(dim=1) / ((high - low) / steps) - largest).clamp_min(0).sum(1)
        return objective(lam, power).log() + 10 * excess

    optimizer = torch.optim.Adam([logits], lr=0.1)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    for _ in range(iterations):
        optimizer.zero_grad()
        penalised(logits).sum().backward()
        optimizer.step()
        decay.step()

    with torch.no_grad():
        order = penalised(logits).argsort()[:3]

    def value(z: np.ndarray) -> float:
        with torch.no_grad():
            return float(penalised(torch.as_tensor(z)[None]))

    polished = [
        minimize(
            value,
            z,
            method="Nelder-Mead",
            options={"maxfev": 150 * steps, "xatol": 1e-7, "fatol": 1e-10, "adaptive": True},
        )
        for z in (logits - logits.mean(1, keepdim=True)).detach()[order].numpy()
    ]
    best = min(polished, key=lambda found: found.fun).x
    inner = noise.inverse(place(torch.as_tensor(best)[None])[0, 1:-1])
    return torch.cat([ends[:1], inner, ends[1:]])


def objective(lam: Tensor, power: int) -> Tensor:
    """The error bound above [K] of half-log-SNR knots lam [K, N+1]."""
    steps = lam.shape[1] - 1
    error = torch.sigmoid(-2 * lam[:, :-1]) ** (power / 2) / torch.sigmoid(2 * lam[:, :-1]).sqrt()
    counted = torch.arange(steps) < (TRUNCATED if steps <= FEW else 0)
    effect = multistep_weights(lam) * error[:, None]
    own, total = effect[:, counted].square().sum(2), effect[:, ~counted].sum(1)
    return own.clamp_min(1e-60).sqrt().sum(1) + total.abs().sum(1)


def multistep_weights(lam: Tensor) -> Tensor:
    """J [K, N, N] of output j in step s: integrals of e^lam times the Lagrange polynomials of each
    step's own order.
    """
    steps = lam.shape[1] - 1
    most = min(3, steps)
    h, nodes = lam.diff(dim=1), history(lam, most)
    r = [(node - nodes[0]) / h for node in nodes]
    b = [math.factorial(k) * f for k, f in enumerate(phi(h, 3))]  # int_0^1 e^{-h (1 - s)} s^k ds
    scale = h * lam[:, 1:].exp()

    def weights(order: int) -> list[Tensor]:
        return [scale * rho for rho in moments(r[:order], b)]

    return banded(orders(most, steps, lower_order_final=True), weights)
