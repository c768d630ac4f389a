"""Noise schedules: how much signal and how much noise a sample carries at time t.

    x_t = alpha(t) x_0 + sigma(t) z,        z ~ N(0, I)
    lam(t) = log(alpha(t) / sigma(t))       half-log-SNR, strictly decreasing in t

A schedule knows alpha, sigma, their time derivatives, lam and the inverse of lam. Everything is ordinary
differentiable torch code that works in the dtype of its argument (the solvers use float64).

Times run backwards when sampling, from `t_max` (noise) to `t_min` (data). Where alpha is exactly zero at t_max (flow
matching, zero-terminal-SNR models) or sigma at t_min, lam is kept finite by flooring both at `FLOOR`; no coefficient
of a solver then sees an infinity, and the error is of the order of `FLOOR`.

Sources: Karras et al. 2022 (arXiv 2206.00364), Song et al. 2021 (2011.13456), Nichol & Dhariwal 2021 (2102.09672),
Lu et al. 2022 (2206.00927), Lipman et al. 2023 (2210.02747).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

FLOOR = 1e-10


class NoiseSchedule(ABC):
    """alpha, sigma and lam as functions of time; all methods map [...] -> [...]."""

    t_min: float
    t_max: float
    name: str

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Signal scale."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Noise scale (standard deviation)."""

    @abstractmethod
    def d_alpha(self, t: Tensor) -> Tensor:
        """d alpha / dt."""

    @abstractmethod
    def d_sigma(self, t: Tensor) -> Tensor:
        """d sigma / dt."""

    @abstractmethod
    def inverse(self, lam: Tensor) -> Tensor:
        """The time t at which lam(t) = lam."""

    def lam(self, t: Tensor) -> Tensor:
        """Half-log-SNR log(alpha / sigma), finite everywhere (see FLOOR)."""
        return self.alpha(t).clamp_min(FLOOR).log() - self.sigma(t).clamp_min(FLOOR).log()

    @property
    def prior_scale(self) -> float:
        """x_T = prior_scale * unit noise."""
        return 1.0

    @property
    def starts_at_pure_noise(self) -> bool:
        """True where alpha(t_max) is zero, so that x_T carries no signal and noise rules are singular there."""
        return float(self.alpha(torch.tensor(self.t_max, dtype=torch.float64))) < 1e-6

    def _check_range(self, upper: float) -> None:
        if not 0.0 <= self.t_min < self.t_max <= upper:
            raise ValueError(
                f"{type(self).__name__}: need 0 <= t_min < t_max <= {upper:g}, got t_min={self.t_min}, t_max={self.t_max}"
            )


@dataclass(frozen=True)
class EDM(NoiseSchedule):
    """Variance exploding with sigma(t) = t, alpha = 1 (Karras et al. 2022, table 1)."""

    t_min: float = 0.002
    t_max: float = 80.0
    name: str = "edm"

    def __post_init__(self) -> None:
        self._check_range(math.inf)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def d_alpha(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def lam(self, t: Tensor) -> Tensor:
        return -t.clamp_min(FLOOR).log()

    def inverse(self, lam: Tensor) -> Tensor:
        return torch.exp(-lam)

    @property
    def prior_scale(self) -> float:
        return self.t_max


class VariancePreserving(NoiseSchedule):
    """alpha^2 + sigma^2 = 1; a subclass gives log alpha and its derivative."""

    @abstractmethod
    def log_alpha(self, t: Tensor) -> Tensor:
        """log alpha(t), negative and decreasing."""

    @abstractmethod
    def d_log_alpha(self, t: Tensor) -> Tensor:
        """d log alpha / dt = -beta(t) / 2."""

    def alpha(self, t: Tensor) -> Tensor:
        return self.log_alpha(t).exp()

    def sigma(self, t: Tensor) -> Tensor:
        return (-torch.expm1(2 * self.log_alpha(t))).clamp_min(FLOOR**2).sqrt()

    def d_alpha(self, t: Tensor) -> Tensor:
        return self.alpha(t) * self.d_log_alpha(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        return -(self.alpha(t) ** 2) * self.d_log_alpha(t) / self.sigma(t)

    def lam(self, t: Tensor) -> Tensor:
        log_alpha = self.log_alpha(t).clamp_min(math.log(FLOOR))
        return log_alpha - 0.5 * (-torch.expm1(2 * log_alpha)).clamp_min(FLOOR**2).log()


@dataclass(frozen=True)
class VPLinear(VariancePreserving):
    """beta(t) = beta_0 + (beta_1 - beta_0) t on t in [0, 1] (Song et al. 2021, eq. 32)."""

    beta_0: float = 0.1
    beta_1: float = 20.0
    t_min: float = 1e-3
    t_max: float = 1.0
    name: str = "vp-linear"

    def __post_init__(self) -> None:
        self._check_range(math.inf)
        if not 0 < self.beta_0 < self.beta_1:
            raise ValueError(f"VPLinear: need 0 < beta_0 < beta_1, got beta_0={self.beta_0}, beta_1={self.beta_1}")

    def log_alpha(self, t: Tensor) -> Tensor:
        return -0.25 * t**2 * (self.beta_1 - self.beta_0) - 0.5 * t * self.beta_0

    def d_log_alpha(self, t: Tensor) -> Tensor:
        return -0.5 * (self.beta_0 + t * (self.beta_1 - self.beta_0))

    def inverse(self, lam: Tensor) -> Tensor:
        # -2 log alpha = log(1 + exp(-2 lam)); the root of the quadratic is written without cancellation
        span = self.beta_1 - self.beta_0
        s = 2 * span * torch.logaddexp(-2 * lam, torch.zeros_like(lam))
        return s / ((self.beta_0**2 + s).sqrt() + self.beta_0) / span


@dataclass(frozen=True)
class VPCosine(VariancePreserving):
    """alpha(t) = cos(pi/2 (t+s)/(1+s)) / cos(pi/2 s/(1+s)) (Nichol & Dhariwal 2021); alpha(1) = 0."""

    s: float = 0.008
    t_min: float = 1e-3
    t_max: float = 1.0
    name: str = "vp-cosine"

    def __post_init__(self) -> None:
        self._check_range(1.0)

    def _angle(self, t: Tensor) -> Tensor:
        return (t + self.s) / (1 + self.s) * (math.pi / 2)

    @property
    def _angle_0(self) -> float:
        return self.s / (1 + self.s) * math.pi / 2

    def log_alpha(self, t: Tensor) -> Tensor:
        return self._angle(t).cos().clamp_min(FLOOR).log() - math.log(math.cos(self._angle_0))

    def d_log_alpha(self, t: Tensor) -> Tensor:
        return -(math.pi / 2) / (1 + self.s) * self._angle(t).tan()

    def d_alpha(self, t: Tensor) -> Tensor:
        return -(math.pi / 2) / (1 + self.s) * self._angle(t).sin() / math.cos(self._angle_0)

    def d_sigma(self, t: Tensor) -> Tensor:
        return -self.alpha(t) * self.d_alpha(t) / self.sigma(t)

    def inverse(self, lam: Tensor) -> Tensor:
        alpha = torch.exp(-0.5 * torch.logaddexp(-2 * lam, torch.zeros_like(lam)))
        angle = torch.acos(alpha * math.cos(self._angle_0))
        return angle * (2 / math.pi) * (1 + self.s) - self.s


@dataclass(frozen=True, eq=False)
class VPDiscrete(VariancePreserving):
    """A schedule given as a table `alphas_cumprod [n]`, alpha_k^2 at network steps k = 0 … n-1.

    Time is t = (k + 1) / n as in DPM-Solver. lam(t) is the monotone cubic Hermite interpolant of the table (Fritsch &
    Carlson 1980), so it is strictly decreasing, continuously differentiable and exactly invertible; a linear
    interpolant would give solvers of order 2 and more a kink every 1/n.

    Raises ValueError when the table is not strictly decreasing inside [0, 1] or has fewer than 3 entries.
    """

    alphas_cumprod: Tensor
    t_min: float = 0.0
    t_max: float = 1.0
    name: str = "vp-discrete"

    def __post_init__(self) -> None:
        a2 = torch.as_tensor(self.alphas_cumprod, dtype=torch.float64).detach().cpu()
        if a2.ndim != 1 or len(a2) < 3:
            raise ValueError(f"VPDiscrete: alphas_cumprod must be a vector of at least 3, got shape {tuple(a2.shape)}")
        bad = ((a2[1:] >= a2[:-1]) | (a2[1:] < 0) | (a2[:-1] > 1)).nonzero()
        if len(bad) or not torch.isfinite(a2).all():
            k = int(bad[0, 0]) + 1 if len(bad) else int((~torch.isfinite(a2)).nonzero()[0, 0])
            raise ValueError(f"VPDiscrete: alphas_cumprod[{k}] = {float(a2[k])} breaks 1 >= a_0 > a_1 > … >= 0")
        n = len(a2)
        a2 = a2.clamp(FLOOR**2, 1 - FLOOR)
        lam = 0.5 * (a2.log() - torch.log1p(-a2))
        object.__setattr__(self, "alphas_cumprod", a2)
        object.__setattr__(self, "_lam", lam)
        object.__setattr__(self, "_slope", _monotone_slopes(lam))
        object.__setattr__(self, "t_min", self.t_min or 1.0 / n)
        if not 1.0 / n <= self.t_min < self.t_max <= 1.0:
            raise ValueError(f"VPDiscrete: need 1/{n} <= t_min < t_max <= 1, got {self.t_min}, {self.t_max}")

    @property
    def steps(self) -> int:
        """Number n of entries of the table."""
        return len(self.alphas_cumprod)

    def network_time(self, t: Tensor) -> Tensor:
        """The fractional network step k = n t - 1 in [0, n-1]."""
        return t * self.steps - 1

    def _hermite(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """lam and d lam / dt. The cubic of a segment is in its local coordinate s in [0, 1]."""
        k = self.network_time(t)
        i = k.detach().floor().clamp(0, self.steps - 2).long()
        s = k - i
        table, slope = self._lam.to(t), self._slope.to(t)  # type: ignore[attr-defined]
        rise, m0, m1 = table[i + 1] - table[i], slope[i], slope[i + 1]
        c, b = m0 + m1 - 2 * rise, 3 * rise - 2 * m0 - m1
        return table[i] + s * (m0 + s * (b + s * c)), (m0 + s * (2 * b + 3 * s * c)) * self.steps

    def lam(self, t: Tensor) -> Tensor:
        return self._hermite(t)[0]

    def log_alpha(self, t: Tensor) -> Tensor:
        lam = self.lam(t)
        return -0.5 * torch.logaddexp(-2 * lam, torch.zeros_like(lam))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sigmoid(-2 * self.lam(t)).sqrt()

    def d_log_alpha(self, t: Tensor) -> Tensor:
        lam, d_lam = self._hermite(t)
        return torch.sigmoid(-2 * lam) * d_lam

    def inverse(self, lam: Tensor) -> Tensor:
        with torch.no_grad():  # bracketed in its segment, then bisection: monotone, cannot fail
            table = self._lam.to(lam)  # type: ignore[attr-defined]
            i = torch.searchsorted(-table, -lam.contiguous()).clamp(1, self.steps - 1)
            low, high = i.to(lam) / self.steps, (i.to(lam) + 1) / self.steps
            for _ in range(30):
                mid = 0.5 * (low + high)
                above = self._hermite(mid)[0] > lam
                low, high = torch.where(above, mid, low), torch.where(above, high, mid)
            t = 0.5 * (low + high)
            value, slope = self._hermite(t)
            t = t - (value - lam) / slope
        # one more Newton step, differentiable: its gradient is that of the implicit function, 1 / lam'(t)
        value, slope = self._hermite(t)
        return t - (value - lam) / slope.detach()


def _monotone_slopes(y: Tensor) -> Tensor:
    """Fritsch-Carlson slopes (per unit index) of a strictly monotone table: harmonic means of neighbouring rises."""
    rise = y[1:] - y[:-1]
    inner = 2 * rise[1:] * rise[:-1] / (rise[1:] + rise[:-1])
    return torch.cat([rise[:1], inner, rise[-1:]])


@dataclass(frozen=True)
class FlowMatching(NoiseSchedule):
    """The straight path alpha = 1 - t, sigma = t of flow matching / rectified flow; alpha(1) = 0."""

    t_min: float = 1e-3
    t_max: float = 1.0
    name: str = "flow"

    def __post_init__(self) -> None:
        self._check_range(1.0)

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def d_alpha(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def inverse(self, lam: Tensor) -> Tensor:
        return torch.sigmoid(-lam)
