"""Distributions whose denoiser, score and density are known exactly at every time.

A mixture of K Gaussians with diagonal covariances, x_0 ~ sum_k w_k N(mu_k, diag(s_k^2)), remains
such a mixture when noise is added:

    x_t = alpha x_0 + sigma z  ~  sum_k w_k N(alpha mu_k, v_k),    v_k = alpha^2 s_k^2 + sigma^2
    r_k(x, t)   = softmax_k( log w_k + log N(x; alpha mu_k, v_k) )    posterior of the component
    D(x, t)     = sum_k r_k ( mu_k + (alpha s_k^2 / v_k) (x - alpha mu_k) )  =  E[x_0 | x_t = x]
    log p_t(x)  = logsumexp_k( log w_k + log N(x; alpha mu_k, v_k) )
    score       = grad_x log p_t(x)  =  (alpha D(x, t) - x) / sigma^2    (Tweedie's formula, Efron
                                                                         2011)

There are three special cases. K = 1 is a Gaussian. Equal means with different s_k are a Gaussian
scale mixture (heavy tails). s_k = 0 with one component per example is the empirical denoiser of a
data set, which memorises it.

The probability-flow ODE has a closed solution in two cases (`transport`). For a single Gaussian,
every coordinate keeps its standard score. In one dimension, every trajectory keeps its quantile
F_t(x_t).

All arithmetic is in float64, for x of any dtype: at sigma = 0.002 the exponents are differences of
large numbers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ...core.denoiser import Condition
from ...core.noise import NoiseSchedule

ANY_LABEL = -1
"""The label that stands for 'no condition'."""


class Mixture(nn.Module):
    """A mixture of Gaussians as a Denoiser.

    Args:
        noise: any noise schedule.
        means: mu_k [K, *shape].
        stds: s_k, [K] (isotropic) or [K, *shape]; zero is allowed if sigma(t_min) > 0.
        weights: w_k [K], positive, normalised here; equal if not given.
        labels: int64 [K], the class of each component. A condition is then int64 [B] of such
            classes, or ANY_LABEL. Without labels, a condition is refused.

    Raises ValueError for sizes that do not fit, negative stds and weights that are not positive.
    """

    means: Tensor
    stds: Tensor
    log_weights: Tensor
    labels: Tensor | None

    def __init__(
        self,
        noise: NoiseSchedule,
        means: Tensor,
        stds: Tensor,
        weights: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> None:
        super().__init__()
        count = len(means)
        weights = torch.ones(count) if weights is None else weights
        _check_mixture(means, stds, weights, labels)
        self.noise, self.shape = noise, tuple(means.shape[1:])
        self.register_buffer("means", means.double().reshape(count, -1))  # [K, d]
        self.register_buffer("stds", stds.double().reshape(count, -1))  # [K, d] or [K, 1]
        self.register_buffer(
            "log_weights", (weights.double() / weights.double().sum()).log()
        )  # [K]
        self.register_buffer("labels", labels)

    @property
    def dim(self) -> int:
        """The number of coordinates d of a sample."""
        return self.means.shape[1]

    def _posterior(self, x: Tensor, t: Tensor, label: Condition) -> tuple[Tensor, Tensor, Tensor]:
        """log w_k N(x; alpha mu_k, v_k) [B, K], v_k [B, K, d or 1] and alpha [B, 1, 1].

        They are taken at x [B, d] and t [B].
        """
        alpha, sigma = self.noise.alpha(t)[:, None, None], self.noise.sigma(t)[:, None, None]
        v = (alpha * self.stds) ** 2 + sigma**2  # [B, K, d|1]
        if v.shape[2] == 1:
            # one matrix product instead of a tensor [B, K, d]: data sets have many components
            centre = self.means.mean(0)
            y, mu = x - alpha[:, 0] * centre, self.means - centre
            dots = (
                (y**2).sum(1, keepdim=True)
                - 2 * alpha[:, 0] * (y @ mu.T)
                + alpha[:, 0] ** 2 * (mu**2).sum(1)
            )
            mahalanobis, log_det = dots.clamp_min(0) / v[:, :, 0], self.dim * v[:, :, 0].log()
        else:
            mahalanobis = ((x[:, None] - alpha * self.means) ** 2 / v).sum(2)
            log_det = v.log().sum(2)
        log_normal = -0.5 * (mahalanobis + log_det + self.dim * math.log(2 * math.pi))
        return self._class_weights(label, len(x)) + log_normal, v, alpha

    def _class_weights(self, label: Condition, count: int) -> Tensor:
        """log w_k [B, K], normalised within the class of each sample; minus infinity outside."""
        log_weights = self.log_weights.expand(count, -1)
        if label is None:
            return log_weights
        if self.labels is None:
            raise ValueError("this mixture has no classes: sample it without a condition")
        if not isinstance(label, Tensor):
            raise TypeError(
                f"a mixture's condition is an int64 tensor of classes, got {type(label).__name__}"
            )
        match = (label[:, None] == self.labels) | (label[:, None] == ANY_LABEL)
        if not match.any(1).all():
            missing = int(label[~match.any(1)][0])
            raise ValueError(
                f"class {missing} is none of this mixture's: {sorted(set(self.labels.tolist()))}"
            )
        return torch.where(match, log_weights, -torch.inf).log_softmax(1)

    def forward(self, x: Tensor, t: Tensor, condition: Condition = None) -> Tensor:
        """x [B, *shape], t [B] -> E[x_0 | x_t = x] [B, *shape], in x's dtype."""
        flat = x.reshape(len(x), -1).double()
        log_joint, v, alpha = self._posterior(flat, t.double(), condition)
        r = log_joint.softmax(1)  # [B, K]
        gain = alpha * self.stds**2 / v  # [B, K, d|1]
        if gain.shape[2] == 1:
            rg = r * gain[:, :, 0]
            mean = (r - alpha[:, 0] * rg) @ self.means + rg.sum(1, keepdim=True) * flat
        else:
            component = self.means + gain * (flat[:, None] - alpha * self.means)  # [B, K, d]
            mean = (r[:, :, None] * component).sum(1)
        return mean.to(x.dtype).reshape(x.shape)

    def decode(self, x0: Tensor) -> Tensor:
        """The samples themselves."""
        return x0

    def log_density(
        self, x: Tensor, t: Tensor | None = None, condition: Condition = None
    ) -> Tensor:
        """log p_t(x), float64 [B]; without t the density of the data."""
        flat = x.reshape(len(x), -1).double()
        if t is None:
            v = self.stds**2
            terms = (
                (flat[:, None] - self.means) ** 2 / v + v.log() + math.log(2 * math.pi)
            )  # [B, K, d]
            return (self._class_weights(condition, len(x)) - 0.5 * terms.sum(2)).logsumexp(1)
        return self._posterior(flat, t.double(), condition)[0].logsumexp(1)

    def score(self, x: Tensor, t: Tensor, condition: Condition = None) -> Tensor:
        """grad_x log p_t(x) [B, *shape], float64."""
        per = (-1, *[1] * (x.ndim - 1))
        alpha, sigma = (
            self.noise.alpha(t.double()).reshape(per),
            self.noise.sigma(t.double()).reshape(per),
        )
        return (alpha * self(x.double(), t, condition) - x) / sigma**2

    def draw(self, count: int, seed: int, t: float | None = None) -> Tensor:
        """Exact samples of x_0, or of x_t, float64 [count, *shape]."""
        generator = torch.Generator().manual_seed(seed)
        k = torch.multinomial(
            self.log_weights.exp().cpu(), count, replacement=True, generator=generator
        )
        z = torch.randn(count, self.dim, generator=generator, dtype=torch.float64)
        x = self.means.cpu()[k] + self.stds.cpu()[k] * z
        if t is not None:
            time = torch.tensor(t, dtype=torch.float64)
            z = torch.randn(count, self.dim, generator=generator, dtype=torch.float64)
            x = self.noise.alpha(time) * x + self.noise.sigma(time) * z
        return x.reshape(count, *self.shape).to(self.means.device)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean [d] and covariance [d, d] of x_0, float64."""
        w = self.log_weights.exp()[:, None]
        mean = (w * self.means).sum(0)
        spread = self.means - mean
        return mean, torch.diag((w * self.stds**2).expand(-1, self.dim).sum(0)) + (
            w * spread
        ).T @ spread

    def transport(self, x: Tensor, t_from: float, t_to: float) -> Tensor:
        """The exact solution at t_to of the probability-flow ODE through x [B, *shape] at t_from.

        It is float64 and has no gradient. Raises ValueError unless the mixture is a single Gaussian
        or one-dimensional.
        """
        if len(self.means) > 1 and self.dim > 1:
            raise ValueError(
                f"no closed solution for {len(self.means)} components in {self.dim} dimensions"
            )
        flat = x.reshape(len(x), -1).double()
        (mean, std), (mean_to, std_to) = self._marginal(t_from), self._marginal(t_to)  # [K, d]
        if len(self.means) == 1:
            out = mean_to + std_to / std * (flat - mean)
        else:
            out = self._match_quantile(flat, mean.T, std.T, mean_to.T, std_to.T)
        return out.reshape(x.shape)

    def _marginal(self, t: float) -> tuple[Tensor, Tensor]:
        time = torch.tensor(t, dtype=torch.float64, device=self.means.device)
        alpha, sigma = self.noise.alpha(time), self.noise.sigma(time)
        return alpha * self.means, ((alpha * self.stds) ** 2 + sigma**2).sqrt()

    def _match_quantile(
        self, x: Tensor, mean: Tensor, std: Tensor, mean_to: Tensor, std_to: Tensor
    ) -> Tensor:
        """The points [B, 1] that have the same quantiles at t_to as x [B, 1] at t_from.

        Means and stds at both times are [1, K]. Bisection runs on the log-probability of the nearer
        tail, so that both tails are exact.
        """

        def log_tail(y: Tensor, mu: Tensor, s: Tensor, sign: Tensor) -> Tensor:
            return (self.log_weights + torch.special.log_ndtr(sign * (y - mu) / s)).logsumexp(
                1, keepdim=True
            )

        ones = torch.ones_like(x)
        sign = torch.where(log_tail(x, mean, std, ones) < math.log(0.5), ones, -ones)
        target = log_tail(x, mean, std, sign)
        # a point moves no further than within the standard scores that it has in the components
        z = ((x - mean) / std).abs().amax(1, keepdim=True) + 1
        low = (mean_to - z * std_to).amin(1, keepdim=True)
        high = (mean_to + z * std_to).amax(1, keepdim=True)
        for _ in range(200):
            mid = 0.5 * (low + high)
            below = sign * (log_tail(mid, mean_to, std_to, sign) - target) < 0
            low, high = torch.where(below, mid, low), torch.where(below, high, mid)
        return 0.5 * (low + high)


def _check_mixture(means: Tensor, stds: Tensor, weights: Tensor, labels: Tensor | None) -> None:
    count = len(means)
    if count == 0 or means.ndim < 2:
        raise ValueError(
            f"mixture: means must be [K, *shape] with K >= 1, got {tuple(means.shape)}"
        )
    if stds.shape not in (means.shape, means.shape[:1]):
        raise ValueError(
            f"mixture: stds must be [{count}] or {tuple(means.shape)}, got {tuple(stds.shape)}"
        )
    if not (torch.isfinite(means).all() and torch.isfinite(stds).all() and (stds >= 0).all()):
        raise ValueError("mixture: means must be finite and stds finite and not negative")
    if weights.shape != (count,) or not (torch.isfinite(weights).all() and (weights > 0).all()):
        raise ValueError(
            f"mixture: weights must be {count} positive numbers, got {weights.tolist()}"
        )
    if labels is not None and labels.shape != (count,):
        raise ValueError(f"mixture: labels must be [{count}], got {tuple(labels.shape)}")


def gaussian(noise: NoiseSchedule, mean: Tensor, std: Tensor) -> Mixture:
    """N(mean, diag(std^2)); mean and std [*shape]."""
    return Mixture(noise, mean[None], std.expand(mean.shape)[None])


def mixture_1d(noise: NoiseSchedule) -> Mixture:
    """Three components of different widths on a line, shape (1,)."""
    means, stds = torch.tensor([[-1.0], [0.1], [0.9]]), torch.tensor([0.08, 0.2, 0.12])
    return Mixture(noise, means, stds, torch.tensor([0.3, 0.45, 0.25]), torch.arange(3))


def mixture_2d(noise: NoiseSchedule, components: int = 8, std: float = 0.1) -> Mixture:
    """`components` Gaussians on the unit circle, shape (2,), one class each."""
    angle = torch.arange(components, dtype=torch.float64) * (2 * math.pi / components)
    means = torch.stack([angle.cos(), angle.sin()], 1)
    return Mixture(noise, means, torch.full((components,), std), labels=torch.arange(components))


def random_mixture(
    noise: NoiseSchedule,
    shape: tuple[int, ...],
    components: int = 5,
    std: float = 0.25,
    seed: int = 0,
) -> Mixture:
    """A mixture of means ~ N(0, I / 4) and stds between std / 2 and std, one class each.

    It is a pure function of the arguments.
    """
    generator = torch.Generator().manual_seed(seed)
    means = 0.5 * torch.randn(components, *shape, generator=generator, dtype=torch.float64)
    stds = std * (0.5 + 0.5 * torch.rand(components, generator=generator, dtype=torch.float64))
    return Mixture(noise, means, stds, labels=torch.arange(components))


def heavy_tails(
    noise: NoiseSchedule,
    shape: tuple[int, ...],
    df: float = 3.0,
    std: float = 0.5,
    components: int = 32,
) -> Mixture:
    """A Gaussian scale mixture close to Student's t with `df` degrees of freedom and scale `std`.

        t_df = z / sqrt(chi2_df / df)

    The distribution of the scale is cut into `components` equally likely pieces, each at its
    median. The model is this finite mixture and is exact. Its tails are the tails of its widest
    component.
    """
    from scipy.stats import chi2

    if not (df > 0 and std > 0 and components >= 1):
        raise ValueError(
            f"heavy tails: need df > 0, std > 0, components >= 1, got {df}, {std}, {components}"
        )
    quantiles = (torch.arange(components, dtype=torch.float64) + 0.5) / components
    stds = std * (df / torch.as_tensor(chi2.ppf(quantiles.numpy(), df))).sqrt()
    return Mixture(noise, torch.zeros(components, *shape), stds)


def empirical(
    noise: NoiseSchedule, data: Tensor, labels: Tensor | None = None, std: float = 0.0
) -> Mixture:
    """The optimal denoiser of a data set [M, *shape]; with std > 0, of its kernel density."""
    return Mixture(noise, data, torch.full((len(data),), std), labels=labels)
