"""Time grids, and the hand-made discretizations that place them.

A grid is what a schedule decides:

    knots   t_0 > t_1 > … > t_N     the integration times, from t_max to t_min          [*K, N+1]
    evals   tau_0 … tau_{E-1}       the time handed to the network at each evaluation   [*K, E]

A coupled grid has its evals at the solver's nominal times; LD3 (arXiv 2405.15506, section 3.3)
decouples them. The leading dimensions *K are members that are learned side by side. Knots and evals
are float64, and live on the CPU unless learning runs on a device that has float64.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import InputError, unknown
from .noise import NoiseSchedule

SOFT_LAM = math.log(1e3)
"""Stands for |lam| at an end of the schedule where lam is infinite."""


@dataclass(frozen=True)
class Grid:
    """Integration times and network times; validates itself.

    Raises InputError for knots that do not decrease strictly, for times that are negative or not
    finite, naming the index and the value, and for shapes that do not fit.
    """

    knots: Tensor
    evals: Tensor

    def __post_init__(self) -> None:
        knots, evals = self.knots, self.evals
        if knots.ndim == 0 or knots.shape[-1] < 2:
            raise InputError(
                f"knots: need at least two times (one step), got shape {tuple(knots.shape)}"
            )
        if evals.ndim == 0 or evals.shape[-1] < 1 or evals.shape[:-1] != knots.shape[:-1]:
            raise InputError(
                f"evals: shape {tuple(evals.shape)} does not fit knots of shape "
                f"{tuple(knots.shape)}: the leading dimensions must agree, with at least one "
                "network time"
            )
        for name, times in (("knots", knots), ("evals", evals)):
            _demand(name, times, (times >= 0) & (times < torch.inf), "is not a finite time >= 0")
        _demand(
            "knots",
            knots[..., 1:],
            knots[..., 1:] < knots[..., :-1],
            "is not below the knot before it",
            shift=1,
        )

    @property
    def steps(self) -> int:
        """Number N of steps."""
        return self.knots.shape[-1] - 1

    @property
    def nfe(self) -> int:
        """Number E of network evaluations."""
        return self.evals.shape[-1]

    def within(self, noise: NoiseSchedule) -> Grid:
        """Itself, if every time lies in the range of the schedule; InputError otherwise."""
        low, high = noise.t_min * (1 - 1e-6) - 1e-12, noise.t_max * (1 + 1e-6)
        outside = f"lies outside [{noise.t_min:g}, {noise.t_max:g}], the range of {noise.name}"
        for name, times in (("knots", self.knots), ("evals", self.evals)):
            _demand(name, times, (times >= low) & (times <= high), outside)
        return self

    def member(self, k: int) -> Grid:
        """The k-th of K packed grids."""
        return Grid(self.knots[k], self.evals[k])


def _demand(name: str, values: Tensor, ok: Tensor, complaint: str, shift: int = 0) -> None:
    # only on the CPU: on an accelerator the check would wait for all queued work
    if values.device.type == "cpu" and not bool(ok.all()):
        index = tuple((~ok).nonzero()[0].tolist())
        place = ", ".join(map(str, (*index[:-1], index[-1] + shift)))
        raise InputError(f"{name}[{place}] = {float(values[index])!r} {complaint}")


def lam_range(noise: NoiseSchedule) -> tuple[float, float]:
    """lam at t_max and at t_min; ±SOFT_LAM at an end of pure noise or pure data."""
    ends = noise.lam(torch.tensor([noise.t_max, noise.t_min], dtype=torch.float64)).tolist()
    low = -SOFT_LAM if noise.starts_at_pure_noise else ends[0]
    return low, (SOFT_LAM if ends[1] > 15 else ends[1])


# --- hand-made discretizations: (noise, u) -> times, u = 0 … 1 in N equal steps -------------------


def _uniform(noise: NoiseSchedule, u: Tensor) -> Tensor:
    return noise.t_max + u * (noise.t_min - noise.t_max)


def _polynomial(noise: NoiseSchedule, u: Tensor, rho: float) -> Tensor:
    """(t_max^(1/rho) + u (t_min^(1/rho) - t_max^(1/rho)))^rho.

    rho = 2 is 'quadratic' (DDIM, Song et al. 2020, arXiv 2010.02502).
    """
    a, b = noise.t_max ** (1 / rho), noise.t_min ** (1 / rho)
    return (a + u * (b - a)) ** rho


def _log_snr(noise: NoiseSchedule, u: Tensor) -> Tensor:
    """Uniform in lam (Lu et al. 2022, arXiv 2206.00927)."""
    low, high = lam_range(noise)
    return noise.inverse(low + u * (high - low))


def _karras(noise: NoiseSchedule, u: Tensor, rho: float = 7.0) -> Tensor:
    """Polynomial in the noise level sigma / alpha (Karras et al. 2022, arXiv 2206.00364, eq. 5)."""
    low, high = lam_range(noise)
    a, b = math.exp(-low / rho), math.exp(-high / rho)
    return noise.inverse(-rho * (a + u * (b - a)).log())


def _cosine(noise: NoiseSchedule, u: Tensor) -> Tensor:
    """Dense at both ends: the Chebyshev extrema (1 + cos(pi u)) / 2 in time."""
    return noise.t_min + (noise.t_max - noise.t_min) * (1 + (math.pi * u).cos()) / 2


def _beta(noise: NoiseSchedule, u: Tensor, a: float = 0.6, b: float = 0.6) -> Tensor:
    """Quantiles of Beta(a, b) in time (Beta Sampling, Lee et al. 2024, arXiv 2407.12173)."""
    from scipy.special import betaincinv

    return noise.t_min + (noise.t_max - noise.t_min) * torch.as_tensor(
        betaincinv(a, b, (1 - u).numpy())
    )


AYS = {
    "ays-sd15": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "ays-sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    "ays-svd": (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}
"""Align Your Steps (Sabour et al. 2024, arXiv 2404.14507): sigma / alpha at the knots of ten steps.

Each table is for the model in its name.
"""


def _ays(noise: NoiseSchedule, u: Tensor, table: str) -> Tensor:
    """The published table, interpolated linearly in log(sigma / alpha), as its authors do."""
    import numpy as np

    log_sigma = np.log(AYS[table])
    return noise.inverse(
        -torch.as_tensor(np.interp(u.numpy(), np.linspace(0, 1, len(log_sigma)), log_sigma))
    )


_RULES = {
    "uniform": _uniform,
    "log_snr": _log_snr,
    "karras": _karras,
    "cosine": _cosine,
    "beta": _beta,
}
DISCRETIZATIONS = (*_RULES, "quadratic", "poly-<rho>", *AYS)


def discretize(noise: NoiseSchedule, steps: int, name: str) -> Tensor:
    """Knots [steps + 1] of a hand-made discretization, float64, from t_max to t_min exactly.

    Args:
        name: uniform, quadratic, poly-<rho> (in time), log_snr, karras, cosine, beta, ays-sd15,
            ays-sdxl or ays-svd (the last three for the models they were made for).

    Raises:
        InputError: unknown name, steps < 1, or a discretization that does not decrease on this
            schedule.
    """
    if steps < 1:
        raise InputError(f"steps = {steps}: a grid needs at least one step")
    u = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    polynomial = re.fullmatch(r"poly-(\d+(?:\.\d+)?)", name)
    if name in _RULES:
        knots = _RULES[name](noise, u)
    elif name == "quadratic" or (polynomial and float(polynomial[1]) > 0):
        knots = _polynomial(noise, u, float(polynomial[1]) if polynomial else 2.0)
    elif name in AYS:
        knots = _ays(noise, u, name)
    else:
        raise unknown("discretization", name, DISCRETIZATIONS)
    knots = torch.cat(
        [knots.new_tensor([noise.t_max]), knots[1:-1], knots.new_tensor([noise.t_min])]
    )
    return Grid(knots, knots[:1]).within(noise).knots


def resample(noise: NoiseSchedule, knots: Tensor, steps: int) -> Tensor:
    """A grid with another number of steps: knots [N+1] -> [steps + 1].

    A monotone cubic through the points (i / N, lam_i) is read at (k / steps). Its slope at a knot
    is the harmonic mean of the slopes on both sides (Fritsch & Butland 1984, doi 10.1137/0905021).
    A good grid for N steps is a good start for N + 2.

    Raises InputError for steps < 1 and for knots that are no grid of this schedule.
    """
    if steps < 1:
        raise InputError(f"steps = {steps}: a grid needs at least one step")
    start = Grid(knots.double(), knots[:-1].double()).within(noise).knots
    lam = noise.lam(start)
    rise = lam.diff()
    before, after = torch.cat([rise[:1], rise]), torch.cat([rise, rise[-1:]])
    slope = 2 * before * after / (before + after)
    u = torch.linspace(0, 1, steps + 1, dtype=lam.dtype)[1:-1] * len(rise)
    i = u.long().clamp_max(len(rise) - 1)
    s = u - i
    curve = lam[i] + rise[i] * s * s * (3 - 2 * s)
    curve = curve + slope[i] * s * (1 - s) ** 2 - slope[i + 1] * s * s * (1 - s)
    return torch.cat([start[:1], noise.inverse(curve), start[-1:]])
