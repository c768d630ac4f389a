"""Noise schedules: how much signal and how much noise a sample carries at time t.

    x_t = alpha(t) x_0 + sigma(t) z,        z ~ N(0, I)
    lam(t) = log(alpha(t) / sigma(t))       half-log-SNR, strictly decreasing in t

A schedule knows alpha, sigma, their time derivatives, lam and the inverse of lam. All of them are
ordinary differentiable torch code. They work in the dtype of their argument (the solvers use
float64) and map times [...] -> [...].

When sampling, time runs backwards from `t_max` (noise) to `t_min` (data). Alpha may be zero at
t_max (flow matching, zero-terminal-SNR models), and sigma at t_min. Both are then replaced by
`FLOOR` in lam, so that lam is finite everywhere and no coefficient of a solver is infinite; the
error is of the order of `FLOOR`.

A noise schedule of your own is a frozen dataclass that derives from `NoiseSchedule`. Its fields are
numbers, words, lists of them, or tables. `@noise_schedules.register("name")` gives it a name that
schedule files can hold.

Sources: Karras et al. 2022 (arXiv 2206.00364), Song et al. 2021 (2011.13456), Nichol & Dhariwal
2021 (2102.09672), Lu et al. 2022 (2206.00927), Lipman et al. 2023 (2210.02747).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from functools import cached_property

import torch
from torch import Tensor

from .registry import Registry

FLOOR = 1e-10


class NoiseSchedule(ABC):
    """alpha, sigma and lam as functions of time in [t_min, t_max]."""

    name: str
    t_min: float
    t_max: float
    latest = math.inf
    """The largest time for which the formulas are valid."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.t_min < self.t_max <= self.latest:
            raise ValueError(
                f"{type(self).__name__}: need 0 <= t_min < t_max <= {self.latest:g}, got "
                f"{self.t_min} and {self.t_max}"
            )

    @property
    def prior_scale(self) -> float:
        """The scale of the starting noise: x_T = prior_scale * unit noise."""
        return 1.0

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

    @cached_property
    def starts_at_pure_noise(self) -> bool:
        """True if alpha(t_max) is zero: x_T carries no signal, and rules on noise are singular."""
        return float(self.alpha(torch.tensor(self.t_max, dtype=torch.float64))) < 1e-6


noise_schedules: Registry[type[NoiseSchedule]] = Registry("noise schedule")
"""The kinds of noise schedules, by the names that schedule files hold."""


class NoiseIsTime(NoiseSchedule):
    """A schedule whose time is the noise level: sigma(t) = t."""

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def d_sigma(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)


@noise_schedules.register("edm")
@dataclass(frozen=True)
class EDM(NoiseIsTime):
    """Variance exploding with sigma(t) = t, alpha = 1 (Karras et al. 2022, table 1)."""

    t_min: float = 0.002
    t_max: float = 80.0
    name: str = "edm"

    @property
    def prior_scale(self) -> float:
        return self.t_max

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def d_alpha(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def lam(self, t: Tensor) -> Tensor:
        return -t.clamp_min(FLOOR).log()

    def inverse(self, lam: Tensor) -> Tensor:
        return torch.exp(-lam)


@noise_schedules.register("flow")
@dataclass(frozen=True)
class FlowMatching(NoiseIsTime):
    """The straight path of flow matching and rectified flow: alpha = 1 - t, sigma = t.

    (Lipman et al. 2023.) alpha(1) = 0.
    """

    t_min: float = 1e-3
    t_max: float = 1.0
    name: str = "flow"

    latest = 1.0

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def d_alpha(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t)

    def inverse(self, lam: Tensor) -> Tensor:
        return torch.sigmoid(-lam)


class VariancePreserving(NoiseSchedule):
    """alpha^2 + sigma^2 = 1; a subclass gives log alpha, its derivative, and the inverse of lam."""

    @abstractmethod
    def log_alpha(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """log alpha(t), negative and decreasing, and d log alpha / dt = -beta(t) / 2."""

    def alpha(self, t: Tensor) -> Tensor:
        return self.log_alpha(t)[0].exp()

    def sigma(self, t: Tensor) -> Tensor:
        return _one_minus_square(self.log_alpha(t)[0]).sqrt()

    def d_alpha(self, t: Tensor) -> Tensor:
        log_alpha, rate = self.log_alpha(t)
        return log_alpha.exp() * rate

    def d_sigma(self, t: Tensor) -> Tensor:
        log_alpha, rate = self.log_alpha(t)
        return -(2 * log_alpha).exp() * rate / _one_minus_square(log_alpha).sqrt()

    def lam(self, t: Tensor) -> Tensor:
        log_alpha = self.log_alpha(t)[0]
        return log_alpha - 0.5 * _one_minus_square(log_alpha).log()


def _one_minus_square(log_alpha: Tensor) -> Tensor:
    """sigma^2 = 1 - alpha^2 without cancellation, above zero."""
    return (-torch.expm1(2 * log_alpha)).clamp_min(FLOOR**2)


def _log_alpha(lam: Tensor) -> Tensor:
    """log alpha of a variance-preserving schedule, -log(1 + exp(-2 lam)) / 2."""
    return -0.5 * torch.logaddexp(-2 * lam, torch.zeros_like(lam))


@noise_schedules.register("vp-linear")
@dataclass(frozen=True)
class VPLinear(VariancePreserving):
    """beta(t) = beta_0 + (beta_1 - beta_0) t on t in [0, 1] (Song et al. 2021, eq. 32)."""

    beta_0: float = 0.1
    beta_1: float = 20.0
    t_min: float = 1e-3
    t_max: float = 1.0
    name: str = "vp-linear"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.beta_0 < self.beta_1:
            raise ValueError(
                f"VPLinear: need 0 < beta_0 < beta_1, got beta_0={self.beta_0}, "
                f"beta_1={self.beta_1}"
            )

    def log_alpha(self, t: Tensor) -> tuple[Tensor, Tensor]:
        span = self.beta_1 - self.beta_0
        return -0.25 * t**2 * span - 0.5 * t * self.beta_0, -0.5 * (self.beta_0 + t * span)

    def inverse(self, lam: Tensor) -> Tensor:
        span = self.beta_1 - self.beta_0
        # log alpha is quadratic in t; its root is written so that nothing cancels
        s = -4 * span * _log_alpha(lam)
        return s / ((self.beta_0**2 + s).sqrt() + self.beta_0) / span


@noise_schedules.register("vp-cosine")
@dataclass(frozen=True)
class VPCosine(VariancePreserving):
    """alpha(t) = cos(pi/2 (t+s)/(1+s)) / cos(pi/2 s/(1+s)) (Nichol & Dhariwal 2021).

    alpha(1) = 0.
    """

    s: float = 0.008
    t_min: float = 1e-3
    t_max: float = 1.0
    name: str = "vp-cosine"
    latest = 1.0

    @property
    def _rate(self) -> float:
        return math.pi / 2 / (1 + self.s)

    def log_alpha(self, t: Tensor) -> tuple[Tensor, Tensor]:
        angle = (t + self.s) * self._rate
        cos = angle.cos().clamp_min(FLOOR)
        return cos.log() - math.log(math.cos(self.s * self._rate)), -self._rate * angle.sin() / cos

    def inverse(self, lam: Tensor) -> Tensor:
        return (
            torch.acos(_log_alpha(lam).exp() * math.cos(self.s * self._rate)) / self._rate - self.s
        )


@noise_schedules.register("vp-discrete")
@dataclass(frozen=True, eq=False)
class VPDiscrete(VariancePreserving):
    """A schedule given as a table `alphas_cumprod` [n]: alpha_k^2 at network steps k = 0 … n-1.

    Time is t = (k + 1) / n, as in DPM-Solver (Lu et al. 2022). Between the entries, lam(t) is the
    monotone rational quadratic interpolant of the table (Gregory & Delbourgo 1982, doi
    10.1093/imanum/2.2.123). It is strictly decreasing and continuously differentiable, and its
    inverse has a closed form. A linear interpolant would have a kink every 1/n, which spoils the
    order of solvers of order 2 and more; a cubic one has no such inverse.

    Raises ValueError for a table that has fewer than 3 entries, does not decrease strictly, or
    leaves [0, 1].
    """

    alphas_cumprod: Tensor
    t_min: float = 0.0
    t_max: float = 1.0
    name: str = "vp-discrete"

    def __post_init__(self) -> None:
        a2 = torch.as_tensor(self.alphas_cumprod, dtype=torch.float64).detach().cpu()
        if a2.ndim != 1 or len(a2) < 3:
            raise ValueError(
                "VPDiscrete: alphas_cumprod must be a vector of at least 3 numbers, got shape "
                f"{tuple(a2.shape)}"
            )
        before = torch.cat([a2.new_tensor([1 + 1e-12]), a2[:-1]])
        bad = (~((a2 < before) & (a2 >= 0))).nonzero()  # true of NaN as well
        if len(bad):
            k = int(bad[0, 0])
            raise ValueError(
                f"VPDiscrete: alphas_cumprod[{k}] = {float(a2[k])} breaks 1 >= a_0 > a_1 > … >= 0"
            )
        a2 = a2.clamp(FLOOR**2, 1 - FLOOR)
        lam = 0.5 * (a2.log() - torch.log1p(-a2))
        object.__setattr__(self, "alphas_cumprod", a2)
        object.__setattr__(self, "_table", _segments(lam))
        object.__setattr__(self, "t_min", self.t_min or 1.0 / self.steps)
        if not 1.0 / self.steps <= self.t_min < self.t_max <= 1.0:
            raise ValueError(
                f"VPDiscrete: need 1/{self.steps} <= t_min < t_max <= 1, got {self.t_min}, "
                f"{self.t_max}"
            )

    @property
    def steps(self) -> int:
        """The number n of entries of the table."""
        return len(self.alphas_cumprod)

    def network_time(self, t: Tensor) -> Tensor:
        """The fractional network step k = n t - 1 in [0, n-1]."""
        return t * self.steps - 1

    def log_alpha(self, t: Tensor) -> tuple[Tensor, Tensor]:
        k = self.network_time(t)
        i = k.detach().floor().clamp(0, self.steps - 2).long()
        s = k - i
        start, rise, slope, bend = self._table.to(t)[i].unbind(-1)  # type: ignore[attr-defined]
        room = s * (1 - s)
        below = rise + bend * room
        up = slope * (1 - s) ** 2 + 2 * rise * room + (bend - slope + 2 * rise) * s**2
        lam = start + rise * (rise * s**2 + slope * room) / below
        return _log_alpha(lam), torch.sigmoid(-2 * lam) * (rise / below) ** 2 * up * self.steps

    def inverse(self, lam: Tensor) -> Tensor:
        table = self._table.to(lam)  # type: ignore[attr-defined]
        i = (torch.searchsorted(-table[:, 0], -lam.detach().contiguous()) - 1).clamp(
            0, self.steps - 2
        )
        start, rise, slope, bend = table[i].unbind(-1)
        down = lam - start
        b = rise * slope - bend * down  # a s^2 + b s - rise down = 0
        s = 2 * rise * down / (b + (b**2 + 4 * (rise**2 - b) * rise * down).clamp_min(0).sqrt())
        return (i + s + 1) / self.steps


def _segments(y: Tensor) -> Tensor:
    """Start, rise, slope and bend of each segment of a strictly monotone table, [n-1, 4].

    The slope at an entry, per unit of the index, is the harmonic mean of the rises on both sides.
    The bend of a segment is the sum of the slopes at its ends minus twice its rise.
    """
    rise = y.diff()
    slope = torch.cat([rise[:1], 2 * rise[1:] * rise[:-1] / (rise[1:] + rise[:-1]), rise[-1:]])
    return torch.stack([y[:-1], rise, slope[:-1], slope[:-1] + slope[1:] - 2 * rise], -1)


def same_noise(a: NoiseSchedule, b: NoiseSchedule) -> bool:
    """Return True if two noise schedules have one kind and equal parameters.

    Times of one then mean the same for the other.
    """
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    mine, yours = vars(a), vars(b)
    names = [field.name for field in fields(a) if field.name != "name"]  # type: ignore[arg-type]
    return all(_equal(mine[name], yours[name]) for name in names)


def describe(noise: NoiseSchedule) -> str:
    """A noise schedule in words: its name and the parameters that are numbers."""
    values = {field.name: getattr(noise, field.name) for field in fields(noise)}  # type: ignore[arg-type]
    numbers = [f"{k} {v:g}" for k, v in values.items() if isinstance(v, int | float)]
    return f"{noise.name} ({', '.join(numbers)})"


def _equal(a: object, b: object) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=1e-6, atol=1e-9)
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12)
    return a == b
