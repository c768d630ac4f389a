"""What it takes to step a pipeline from outside: its network's times, its outputs as data, its
guidance, its process.

x_0 = a x + b out        the rows of `core.denoiser`, as numbers at the times of a schedule
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...core.errors import InputError
from ...core.noise import FlowMatching, NoiseSchedule, VPDiscrete

SAME_LAM = 1e-2
"""Largest difference in half-log-SNR between two tables of the same noise schedule, made in
different precisions.
"""


def network_times(noise: NoiseSchedule, t: Tensor, steps: int) -> list[float]:
    """Times t of the schedule in the network's own unit: k = n t - 1 for a table of n entries, n t
    for flow matching.

    Raises InputError for noise schedules that no diffusers network is asked in.
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
    """(a, b) with x_0 = a x + b out, at each of the times [E]; prediction as in `core.denoiser`, or
    -velocity.
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
    """What keeps a schedule made for one noise schedule from running on another, in words; None
    where nothing does.

    Args:
        name: of the scheduler in which the second one was found.
    """
    if not (isinstance(made_for, VPDiscrete) and isinstance(found, VPDiscrete)):
        same = type(made_for) is type(found)
        return (
            None
            if same
            else f"its noise is {made_for.name}, that of the pipeline's {name} is {found.name}"
        )
    if made_for.steps != found.steps:
        return f"alphas_cumprod has {made_for.steps} entries in the file, {found.steps} in the pipeline's {name}"
    t = torch.arange(1, found.steps + 1, dtype=torch.float64) / found.steps
    gap = (made_for.lam(t) - found.lam(t)).abs()
    gap[t > min(made_for.t_max, found.t_max)] = 0
    k = int(gap.argmax())
    if float(gap[k]) < SAME_LAM:
        return None
    file, pipeline = float(made_for.alphas_cumprod[k]), float(found.alphas_cumprod[k])
    return f"alphas_cumprod[{k}] is {file:.6g} in the file, {pipeline:.6g} in the pipeline's {name}"


def guidance_of_call(scheduler: object) -> dict[str, float]:
    """The guidance arguments, by name, of the pipeline call that a scheduler is serving; empty
    where none is.

    A pipeline tells its scheduler nothing of guidance, so it is read from the arguments of the
    `__call__` that is under way. Wrapping the pipeline would do as well, but would have to be done
    anew for every pipeline that is loaded."""
    from diffusers import DiffusionPipeline

    frame = sys._getframe(1)
    while frame is not None:
        caller = frame.f_locals.get("self") if frame.f_code.co_name == "__call__" else None
        if (
            isinstance(caller, DiffusionPipeline)
            and getattr(caller, "scheduler", None) is scheduler
        ):
            return _effective_guidance(caller, frame.f_locals)
        frame = frame.f_back
    return {}


def _effective_guidance(pipeline: Any, arguments: Mapping[str, Any]) -> dict[str, float]:
    """Scales in effect: guidance at or below 1 is none; true_cfg_scale acts only with a negative
    prompt.
    """
    scale = arguments.get("guidance_scale")
    if "true_cfg_scale" not in arguments:
        return {"guidance_scale": 1.0 if scale is None else max(float(scale), 1.0)}
    negative = any(
        arguments.get(key) is not None for key in ("negative_prompt", "negative_prompt_embeds")
    )
    true_scale = max(float(arguments["true_cfg_scale"]), 1.0) if negative else 1.0
    if not getattr(pipeline.transformer.config, "guidance_embeds", False):
        return {"true_cfg_scale": true_scale}
    # embedded: the scale is an input of the network, and a second guidance on top of it is another
    # model
    return {"guidance_scale": float(scale or 0.0)} | (
        {"true_cfg_scale": true_scale} if true_scale != 1 else {}
    )
