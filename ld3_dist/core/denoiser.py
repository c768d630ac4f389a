"""Denoisers: a pre-trained network seen as a data predictor D(x, t) ~ E[x_0 | x_t = x].

Networks predict data, noise eps, v (Salimans & Ho 2022, arXiv 2202.00512) or a velocity u (flow
matching, Lipman et al. 2023, arXiv 2210.02747), and each has its own kind of time. All of that is
converted here, once, on the way out; every solver sees only D:

    noise      x_0 = (x - sigma eps) / alpha
    v          x_0 = alpha x - sigma v                   with v = alpha eps - sigma x_0, for VP
    velocity   x_0 = (sigma' x - sigma u) / (sigma' alpha - sigma alpha')
                                                         with u = alpha' x_0 + sigma' eps
    edm        x_0 = c_skip x + c_out F(c_in x, c_noise)      (Karras et al. 2022, table 1)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from .errors import InputError
from .noise import NoiseSchedule

Condition = Tensor | Mapping[str, Tensor] | None
"""The condition of a batch: a tensor (class labels, embeddings), named tensors, or nothing.

The first dimension of every tensor is the batch.
"""

PREDICTIONS = ("data", "noise", "v", "velocity", "edm")

C = TypeVar("C", bound=Condition)


@runtime_checkable
class Denoiser(Protocol):
    """A data predictor with its noise schedule: all that solvers and learning know of a model."""

    @property
    def noise(self) -> NoiseSchedule:
        """The schedule the network was trained with."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample, latent or pixel, e.g. (3, 32, 32)."""
        ...

    def __call__(self, x: Tensor, t: Tensor, condition: Condition = None) -> Tensor:
        """x [B, *shape], t [B] in the schedule's time -> estimate of x_0 [B, *shape]."""
        ...

    def decode(self, x0: Tensor) -> Tensor:
        """Map samples to images in [-1, 1]; the identity for pixel models."""
        ...


def map_condition(f: Callable[[Tensor], Tensor], condition: Condition) -> Condition:
    """Apply f to every tensor of a condition (indexing, repeating, moving to a device)."""
    if condition is None:
        return None
    if isinstance(condition, Tensor):
        return f(condition)
    return {key: f(value) for key, value in condition.items()}


def join_conditions(first: Condition, second: Condition) -> Condition:
    """Concatenate two conditions of the same structure along the batch."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return {key: torch.cat([value, second[key]]) for key, value in first.items()}
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return torch.cat([first, second])
    raise TypeError(
        f"conditions of different structure: {type(first).__name__} and {type(second).__name__}"
    )


def per_sample(value: Tensor, x: Tensor) -> Tensor:
    """[B] -> [B, 1, 1, …], so that it broadcasts against x [B, *shape]."""
    return value.reshape(-1, *[1] * (x.ndim - 1)).to(x)


def network_output(out: Any, x: Tensor) -> Tensor:
    """The prediction [B, *shape] in what a network returned for x.

    Of a tuple it is the first element, of a dataclass the field `sample`. If there are twice as
    many channels as x has, the second half is a learned variance (Nichol & Dhariwal 2021); an ODE
    does not need it, and it is cut off. Raises InputError for anything else that is no tensor.
    """
    if isinstance(out, tuple | list) and out:
        out = out[0]
    out = getattr(out, "sample", out) if not isinstance(out, Tensor) else out
    if not isinstance(out, Tensor):
        raise InputError(
            f"the network returned {type(out).__name__}; return the predicted tensor "
            f"{tuple(x.shape)}"
        )
    doubled = out.ndim == x.ndim > 2 and out.shape[1] == 2 * x.shape[1]
    return out[:, : x.shape[1]] if doubled else out


class NetworkDenoiser(nn.Module):
    """A network with any of the PREDICTIONS as a Denoiser; the network's parameters are frozen.

    Args:
        net: module called as net(x, time [B], condition).
        noise: schedule of the network.
        shape: shape of one sample.
        prediction: one of PREDICTIONS.
        network_time: schedule time [B] -> the time that the network takes; the identity if not
            given.
        sigma_data: standard deviation of the data, for "edm".
        decoder: latent -> image; the identity if not given.
        dtype: the network's dtype, if it differs from that of x (bf16 network, float32 states).
    """

    def __init__(
        self,
        net: nn.Module,
        noise: NoiseSchedule,
        shape: tuple[int, ...],
        prediction: str = "data",
        network_time: Callable[[Tensor], Tensor] | None = None,
        sigma_data: float = 0.5,
        decoder: Callable[[Tensor], Tensor] | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if prediction not in PREDICTIONS:
            raise ValueError(f"unknown prediction {prediction!r}; one of {', '.join(PREDICTIONS)}")
        self.net = net.eval().requires_grad_(False)
        self.noise, self.shape, self.prediction = noise, tuple(shape), prediction
        self.network_time, self.sigma_data = network_time, sigma_data
        self.decoder, self.dtype = decoder, dtype

    def forward(self, x: Tensor, t: Tensor, condition: Condition = None) -> Tensor:
        alpha, sigma = per_sample(self.noise.alpha(t), x), per_sample(self.noise.sigma(t), x)
        if self.prediction == "edm":
            return self._edm(x, alpha, sigma, condition)
        out = self._network(x, t if self.network_time is None else self.network_time(t), condition)
        if self.prediction == "data":
            return out
        if self.prediction == "noise":
            return (x - sigma * out) / alpha
        if self.prediction == "v":
            return alpha * x - sigma * out
        d_alpha, d_sigma = (
            per_sample(self.noise.d_alpha(t), x),
            per_sample(self.noise.d_sigma(t), x),
        )
        return (d_sigma * x - sigma * out) / (d_sigma * alpha - sigma * d_alpha)

    def _edm(self, x: Tensor, alpha: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        # EDM's formulas hold in the variance-exploding frame: x / alpha, with noise sigma / alpha
        s, data = sigma / alpha, self.sigma_data
        total = s**2 + data**2
        x = x / alpha
        time = (s.log() / 4).flatten()
        return (data**2 / total) * x + s * data / total.sqrt() * self._network(
            x / total.sqrt(), time, condition
        )

    def _network(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        if self.dtype is None:
            return network_output(self.net(x, time, condition), x)
        cond = map_condition(lambda c: c.to(self.dtype) if c.is_floating_point() else c, condition)
        return network_output(self.net(x.to(self.dtype), time, cond), x).to(x.dtype)

    def decode(self, x0: Tensor) -> Tensor:
        return x0 if self.decoder is None else self.decoder(x0)


class Guided(nn.Module):
    """Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598).

        D = D_null + scale (D_cond - D_null)        in one network call of 2B samples

    Guidance is linear, so guiding D equals guiding the noise.

    Args:
        scale: a number, or a function of time [B] -> [B], for guidance that changes with time.
        null: turns a condition into the unconditional one of the same structure.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        scale: float | Callable[[Tensor], Tensor],
        null: Callable[[Condition], Condition],
    ) -> None:
        super().__init__()
        self.inner, self.scale, self.null = denoiser, scale, null
        self.noise, self.shape = denoiser.noise, denoiser.shape

    def forward(self, x: Tensor, t: Tensor, condition: Condition = None) -> Tensor:
        if condition is None:
            raise ValueError(
                "guidance needs a condition; this call has none (unconditional model? set "
                "guidance: null)"
            )
        both = join_conditions(condition, self.null(condition))
        cond, null = self.inner(torch.cat([x, x]), torch.cat([t, t]), both).chunk(2)
        scale = self.scale(t) if callable(self.scale) else torch.full_like(t, self.scale)
        return null + per_sample(scale, x) * (cond - null)

    def decode(self, x0: Tensor) -> Tensor:
        return self.inner.decode(x0)
