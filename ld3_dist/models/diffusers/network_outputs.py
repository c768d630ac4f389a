"""A pipeline's network from outside: its times, its outputs as data, its noise schedule compared.

x_0 = a x + b out        the formulas of `core.denoiser`, as numbers at the times of a schedule
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...core.errors import InputError
from ...core.noise import (
    EDM,
    FLOOR,
    FlowMatching,
    NoiseSchedule,
    VPCosine,
    VPDiscrete,
    VPLinear,
)

BUILT_IN = (EDM, FlowMatching, VPCosine, VPDiscrete, VPLinear)

SAME_LAM = 1e-2
"""Largest difference in half-log-SNR between two tables of the same noise schedule.

Such tables differ because they were made in different precisions.
"""


def table_noise(alphas_cumprod: Tensor, t_max: float = 1.0) -> VPDiscrete:
    """The noise schedule of a table.

    Raises ValueError for a table that is no noise schedule, and for one with several entries at its
    end that are pure noise and cannot be told apart. A single 0 (zero terminal SNR) is allowed.
    """
    noise = VPDiscrete(alphas_cumprod, t_max=t_max)
    lost = int((noise.alphas_cumprod <= FLOOR**2).sum())
    if lost > 1:
        raise ValueError(
            f"its last {lost} entries of alphas_cumprod are below {FLOOR**2:g}, which is pure noise"
        )
    return noise


def without_variance(out: Tensor, x: Tensor) -> Tensor:
    """A network's output [B, C, …] for x [B, C, …], without a predicted variance.

    Networks with a learned variance return 2 C channels, of which the first C are the prediction
    (Nichol & Dhariwal 2021, arXiv 2102.09672). This is the one place where the others are cut off.

    Raises InputError if the channels are neither C nor 2 C.
    """
    if out.ndim < 2 or x.ndim < 2 or out.shape[1] == x.shape[1]:
        return out
    if out.shape[1] != 2 * x.shape[1]:
        raise InputError(
            f"the network gives {out.shape[1]} channels for a sample of {x.shape[1]}; only as "
            f"many, or twice as many (a learned variance), can be used"
        )
    return out[:, : x.shape[1]]


def network_times(noise: NoiseSchedule, t: Tensor, steps: int) -> list[float]:
    """Times t of the schedule in the network's own unit.

    It is k = n t - 1 for a table of n entries, and n t for flow matching.

    Raises InputError for noise schedules that no diffusers network takes.
    """
    if isinstance(noise, VPDiscrete):
        return noise.network_time(t).tolist()
    if isinstance(noise, FlowMatching):
        return (steps * t).tolist()
    raise InputError(
        f"noise {noise.name!r} has no network steps: diffusers pipelines have vp-discrete or "
        f"flow noise"
    )


def data_coefficients(
    prediction: str, noise: NoiseSchedule, t: Tensor
) -> list[tuple[float, float]]:
    """(a, b) with x_0 = a x + b out, at each of the times [E].

    prediction: as in `core.denoiser`, or "-velocity".
    """
    alpha, sigma = noise.alpha(t), noise.sigma(t)
    if prediction == "data":
        a, b = torch.zeros_like(t), torch.ones_like(t)
    elif prediction == "v":
        a, b = alpha, -sigma
    elif prediction in ("velocity", "-velocity"):
        d_alpha, d_sigma = noise.d_alpha(t), noise.d_sigma(t)
        w = d_sigma * alpha - sigma * d_alpha
        a, b = d_sigma / w, (sigma if prediction == "-velocity" else -sigma) / w
    else:
        if float(alpha.min()) < 1e-6:
            raise InputError(
                "its first step is at pure noise, where a network that predicts noise says nothing"
            )
        a, b = 1 / alpha, -sigma / alpha
    return list(zip(a.tolist(), b.tolist(), strict=True))


def difference(made_for: NoiseSchedule, found: NoiseSchedule, name: str) -> str | None:
    """The difference that keeps a schedule from running on a pipeline, in words.

    It is None if there is none. A noise schedule of a user's own is compared by its numbers at the
    times of the pipeline's. It may be another way to write a table or the straight path.

    Args:
        made_for: the schedule's noise schedule.
        found: the pipeline's.
        name: of the scheduler in which `found` was found.
    """
    if isinstance(made_for, VPDiscrete) and isinstance(found, VPDiscrete):
        return _different_tables(made_for, found, name)
    if type(made_for) is type(found):
        return None
    unlike = f"its noise is {made_for.name}, that of the pipeline's {name} is {found.name}"
    if type(made_for) in BUILT_IN:
        return unlike
    gap = _different_numbers(made_for, found)
    return None if gap is None else f"{unlike}, and they differ: {gap}"


def _different_tables(made_for: VPDiscrete, found: VPDiscrete, name: str) -> str | None:
    if made_for.steps != found.steps:
        return (
            f"alphas_cumprod has {made_for.steps} entries in the file, {found.steps} in the "
            f"pipeline's {name}"
        )
    t = torch.arange(1, found.steps + 1, dtype=torch.float64) / found.steps
    gap = (made_for.lam(t) - found.lam(t)).abs()
    gap[t > min(made_for.t_max, found.t_max)] = 0
    k = int(gap.argmax())
    if float(gap[k]) < SAME_LAM:
        return None
    file, pipeline = float(made_for.alphas_cumprod[k]), float(found.alphas_cumprod[k])
    return f"alphas_cumprod[{k}] is {file:.6g} in the file, {pipeline:.6g} in the pipeline's {name}"


def _different_numbers(made_for: NoiseSchedule, found: NoiseSchedule) -> str | None:
    """The first difference in alpha, sigma or half-log-SNR of two schedules, in words.

    It is None if they agree.
    """
    n = found.steps if isinstance(found, VPDiscrete) else 1000
    t = torch.arange(1, n + 1, dtype=torch.float64) / n
    t = t[(t >= max(made_for.t_min, found.t_min)) & (t <= min(made_for.t_max, found.t_max))]
    if not len(t) or made_for.t_max > found.t_max + 1e-9:
        return (
            f"times run from {made_for.t_min:g} to {made_for.t_max:g} in the file, from "
            f"{found.t_min:g} to {found.t_max:g} in the pipeline"
        )
    t = t[found.alpha(t) > 1e-6]  # lam has no meaning if no signal is left
    for what in ("alpha", "sigma", "lam"):
        ours, theirs = getattr(made_for, what)(t), getattr(found, what)(t)
        k = int((ours - theirs).abs().nan_to_num(torch.inf).argmax())
        if not abs(float(ours[k] - theirs[k])) < SAME_LAM:
            return (
                f"{what}({float(t[k]):g}) is {float(ours[k]):.6g} in the file, "
                f"{float(theirs[k]):.6g} in the pipeline"
            )
    return None
