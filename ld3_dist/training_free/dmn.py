"""DMN: the schedule that gives the least weight to the network's errors.

(Xue et al. 2024, arXiv 2402.17376.) The exact solution in lam, from knot 0 to knot N, is

    x_N / sigma_N = x_0 / sigma_0 + int e^lam D(lam) d lam.

In step s, a multistep rule of order k (1, 2, 3, …, 3, 2, 1 along the steps) replaces D by the
Lagrange polynomial through the last k outputs, with basis polynomials l_sj. Output j then has the
weight c_j in the end point:

    c_j = sum_s J_sj,        J_sj = int_{lam_s}^{lam_{s+1}} e^lam l_sj(lam) d lam

If output j has an error of at most err_j = sigma_j^p / alpha_j (p = 1 for pixels, 2 for latents),
the end point has an error of at most sum_j |c_j| err_j. The inner knots minimise this bound. With
few steps (N <= FEW) the weights of the first outputs cancel too well to be trusted. As the authors
do, the first three outputs j (TRUNCATED) then enter by sum_s ( sum_j (J_sj err_j)^2 )^(1/2).

No network is needed: alpha and sigma in err_j are functions of lam alone, in the
variance-preserving frame. The bound is not smooth and has local optima, so many starts descend side
by side, and the best of them are polished. With more than FEW steps its global optimum is useless,
because knots crowd at the end, where large weights cancel. Gaps are therefore kept between SMALLEST
and LARGEST there; the optima that descent from the usual grids finds lie well inside.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

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
"""The limits of a gap in lam, as fractions of the mean gap, for more than FEW steps."""
STARTS = ("log_snr", "karras", "uniform", "quadratic", "cosine")
POLISHED = 3
"""Number of the best starts that are polished."""


def dmn(
    noise: NoiseSchedule,
    steps: int,
    power: int | None = None,
    starts: int = 27,
    iterations: int = 400,
) -> Tensor:
    """Knots [steps + 1], float64; a pure function of its arguments.

    Args:
        power: the p of the error bound; if not given, 1 for EDM (pixel models) and 2 for the others
            (latent models).
        starts: number of random starts besides the hand-made ones.
        iterations: of gradient descent, before polishing.

    Raises InputError for steps < 1.
    """
    if steps < 1:
        raise InputError(f"steps = {steps}: a grid needs at least one step")
    ends = torch.tensor([noise.t_max, noise.t_min], dtype=torch.float64)
    if steps == 1:
        return ends
    search = Search(steps, *lam_range(noise), power or (1 if isinstance(noise, EDM) else 2))
    logits = descend(search, start_logits(search, noise, starts), iterations)
    best = polish(search, logits)
    inner = noise.inverse(search.place(best[None])[0, 1:-1])
    return torch.cat([ends[:1], inner, ends[1:]])


@dataclass(frozen=True)
class Search:
    """The problem that is solved: gap logits [K, N] stand for K grids, and each has a value.

    steps: N of the grids.
    low, high: lam at their ends.
    power: p of the error bound.
    """

    steps: int
    low: float
    high: float
    power: int

    @property
    def limits(self) -> tuple[float, float]:
        """The smallest and the largest gap, as fractions of the mean gap."""
        return (SMALLEST, LARGEST) if self.steps > FEW else (0.0, float(self.steps))

    def place(self, logits: Tensor) -> Tensor:
        """The knots lam [K, N+1] of gap logits [K, N]; no gap is below the smallest."""
        smallest, _ = self.limits
        gaps = smallest / self.steps + (1 - smallest) * torch.softmax(logits, -1)
        lam = self.low + (self.high - self.low) * gaps.cumsum(-1)
        first, last = (torch.full_like(lam[:, :1], end) for end in (self.low, self.high))
        return torch.cat([first, lam[:, :-1], last], 1)

    def value(self, logits: Tensor) -> Tensor:
        """The logarithm of the error bound [K], with a penalty on gaps above the largest."""
        lam = self.place(logits)
        mean = (self.high - self.low) / self.steps
        excess = (lam.diff(dim=1) / mean - self.limits[1]).clamp_min(0).sum(1)
        return objective(lam, self.power).log() + 10 * excess


def start_logits(search: Search, noise: NoiseSchedule, count: int) -> Tensor:
    """Gap logits [K, N] of the hand-made grids in STARTS, and of `count` random ones."""
    steps, low, high = search.steps, search.low, search.high
    made = torch.stack(
        [noise.lam(discretize(noise, steps, name)).clamp(low, high).diff() for name in STARTS]
    )
    drawn = np.random.default_rng(0).dirichlet(np.full(steps, 3.0), count)
    gaps = torch.cat([made / (high - low), torch.as_tensor(drawn)])
    return (gaps - search.limits[0] / steps).clamp_min(1e-2).log()


def descend(search: Search, logits: Tensor, iterations: int) -> Tensor:
    """Gap logits [K, N] after gradient descent (Adam, cosine decay), all side by side."""
    logits = logits.clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.1)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    for _ in range(iterations):
        optimizer.zero_grad()
        search.value(logits).sum().backward()
        optimizer.step()
        decay.step()
    return logits.detach()


def polish(search: Search, logits: Tensor) -> Tensor:
    """The best gap logits [N] after a search without gradients from the POLISHED best of [K, N].

    The bound has kinks at its optima, which gradients cannot settle in.
    """
    order = search.value(logits).argsort()[:POLISHED]
    centred = (logits - logits.mean(1, keepdim=True))[order]

    def value(z: np.ndarray) -> float:
        return float(search.value(torch.as_tensor(z)[None]))

    options = {"maxfev": 150 * search.steps, "xatol": 1e-7, "fatol": 1e-10, "adaptive": True}
    found = [minimize(value, z, method="Nelder-Mead", options=options) for z in centred.numpy()]
    return torch.as_tensor(min(found, key=lambda end: end.fun).x)


def objective(lam: Tensor, power: int) -> Tensor:
    """The error bound at the top of this file [K], for knots lam [K, N+1]."""
    steps = lam.shape[1] - 1
    error = torch.sigmoid(-2 * lam[:, :-1]) ** (power / 2) / torch.sigmoid(2 * lam[:, :-1]).sqrt()
    counted = torch.arange(steps) < (TRUNCATED if steps <= FEW else 0)
    effect = multistep_weights(lam) * error[:, None]
    own, total = effect[:, counted].square().sum(2), effect[:, ~counted].sum(1)
    return own.clamp_min(1e-60).sqrt().sum(1) + total.abs().sum(1)


def multistep_weights(lam: Tensor) -> Tensor:
    """The integrals J_sj [K, N, N] of step s and output j, for knots lam [K, N+1].

    Each step has its own order.
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
