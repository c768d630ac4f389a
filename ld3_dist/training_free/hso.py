"""HSO: the schedule with the least midpoint error proxy (Zhu et al. 2026, arXiv 2511.11688).

The exact solution in lam weighs the network's output by e^lam. With one output per step, taken at
the step's middle, its error enters the end point with

    MEP = sum_i err(m_i) (e^lam_{i+1} - e^lam_i),    m_i = (lam_i + lam_{i+1}) / 2

where err = sigma^p / alpha bounds the error of an output (p = 2), in the variance-preserving frame.
The search has two levels. The upper one chooses the rho of a start grid, polynomial in sigma /
alpha (Karras). The lower one descends on the proxy from there. The upper level compares by a
fitness that punishes steps which are too short in time t, as the authors do:

    SPF = MEP + 1e9 sum_i max(0, d - (t_i - t_{i+1}))^2,    d = 0.15 at 4 steps … 0.01 at 20

No network is needed. The authors also search over both ends of the grid. Here the ends belong to
the noise schedule. With fixed ends the proxy had one optimum on all schedules tried, whatever rho
the descent began with, so a few values of rho suffice.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from ..core.errors import InputError
from ..core.grid import lam_range
from ..core.noise import NoiseSchedule, VPLinear

POWER = 2.0
RHO = (3.0, 7.0, 11.0, 16.0)
"""The start grids; the authors search between the first and the last."""
SHORTEST = ((4.0, 0.15), (20.0, 0.01))
"""Shortest step in time without a penalty, at two numbers of steps; linear between them."""


def hso(noise: NoiseSchedule, steps: int) -> Tensor:
    """Knots [steps + 1], float64; a pure function of its arguments.

    Raises InputError for steps < 1.
    """
    if steps < 1:
        raise InputError(f"steps = {steps}: a grid needs at least one step")
    ends = torch.tensor([noise.t_max, noise.t_min], dtype=torch.float64)
    if steps == 1:
        return ends
    found = [refine(karras(noise, steps, rho)) for rho in RHO]
    best = min(found, key=lambda lam: float(fitness(lam, noise)))
    return torch.cat([ends[:1], noise.inverse(best)[1:-1], ends[1:]])


def karras(noise: NoiseSchedule, steps: int, rho: float) -> Tensor:
    """lam [steps + 1] of the grid that is polynomial in sigma / alpha, of degree rho."""
    low, high = lam_range(noise)
    u = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    lam = -rho * (math.exp(-low / rho) * (1 - u) + math.exp(-high / rho) * u).log()
    return torch.cat([lam.new_tensor([low]), lam[1:-1], lam.new_tensor([high])])


def refine(lam: Tensor) -> Tensor:
    """The grid [N+1] at the optimum of the proxy that descent from a grid lam [N+1] leads to."""
    low, high = lam[0], lam[-1]

    def place(logits: Tensor) -> Tensor:
        inner = low + (high - low) * torch.softmax(logits, 0).cumsum(0)[:-1]
        return torch.cat([low[None], inner, high[None]])

    def value(z: np.ndarray) -> tuple[float, np.ndarray]:
        logits = torch.as_tensor(z).requires_grad_()
        proxy = midpoint_error(place(logits))
        proxy.backward()
        return proxy.item(), torch.as_tensor(logits.grad).numpy()

    logits = (lam.diff() / (high - low)).log().numpy()
    return place(torch.as_tensor(minimize(value, logits, jac=True, options={"gtol": 1e-7}).x))


def midpoint_error(lam: Tensor) -> Tensor:
    """The proxy MEP at the top of this file, of knots lam [N+1]."""
    middle = (lam[1:] + lam[:-1]) / 2
    error = torch.sigmoid(-2 * middle) ** (POWER / 2) / torch.sigmoid(2 * middle).sqrt()
    return (error * lam.exp().diff()).sum()


def fitness(lam: Tensor, noise: NoiseSchedule) -> Tensor:
    """The fitness SPF at the top of this file, of knots lam [N+1].

    Time is the schedule's own if it lies in [0, 1], and that of a linear variance-preserving
    schedule at the same lam otherwise.
    """
    t = (noise if noise.t_max <= 1 else VPLinear()).inverse(lam)
    (few, longest), (many, shortest) = SHORTEST
    wanted = longest + (len(lam) - 1 - few) / (many - few) * (shortest - longest)
    short = (min(max(wanted, shortest), longest) + t.diff()).clamp_min(0)
    return midpoint_error(lam) + 1e9 * short.square().sum()
