"""The noise schedule, prediction and latent scale of a latent-diffusion checkpoint.

The YAML names a beta schedule; with n steps, s = linear_start and e = linear_end,

    linear         beta_k = (sqrt(s) + (sqrt(e) - sqrt(s)) k / (n - 1))^2
    sqrt_linear    beta_k = s + (e - s) k / (n - 1)
    sqrt           beta_k = sqrt(s + (e - s) k / (n - 1))
    cosine         beta_k = min(1 - f((k + 1) / n) / f(k / n), 0.999),
                   f(u) = cos^2(pi/2 (u + cosine_s) / (1 + cosine_s))

(Rombach et al. 2022; Nichol & Dhariwal 2021, arXiv 2102.09672, for the cosine). The checkpoint
itself has the buffers that the network was trained with. If it has `alphas_cumprod`, `betas` or
`scale_factor`, these are taken, and a warning says if the YAML differs.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...core.errors import InputError
from .network_outputs import table_noise
from .original_settings import SCHEDULES, OriginalSettings

log = logging.getLogger("ld3_dist")

PREDICTIONS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
SAME = 1e-4
"""Largest relative difference between two tables that differ by rounding alone."""


def make_scheduler(settings: OriginalSettings, tensors: Mapping[str, Tensor], file: Path) -> Any:
    """The diffusers scheduler that describes a checkpoint's network.

    Raises InputError naming the buffer or the key of the YAML that is not usable.
    """
    import diffusers

    betas = betas_of(settings)
    table = (1 - betas).cumprod(0)
    stored = _stored_table(tensors, file)
    named = SCHEDULES[settings.beta_schedule]
    told: dict[str, Any] = {"beta_start": settings.linear_start, "beta_end": settings.linear_end}
    if stored is not None and _differ(stored, table):
        log.warning(
            "%s: its buffer alphas_cumprod is not what beta_schedule: %s, timesteps: %d, "
            "linear_start: %g and linear_end: %g of the YAML give; the buffer is taken",
            file, settings.beta_schedule, settings.timesteps, *told.values(),
        )  # fmt: skip
        before = torch.cat([stored.new_ones(1), stored[:-1]])
        betas, table, named = 1 - stored / before, stored, "the buffer"
    _check(table, file)
    if settings.given_betas is None and named == "linear":
        told["beta_schedule"] = "scaled_linear"
    elif settings.given_betas is None and named == "sqrt_linear":
        told["beta_schedule"] = "linear"
    else:
        told = {"trained_betas": betas.tolist()}
    prediction: Any = PREDICTIONS[settings.parameterization]
    return diffusers.DDIMScheduler(
        num_train_timesteps=len(table),
        prediction_type=prediction,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        **told,
    )


def betas_of(settings: OriginalSettings) -> Tensor:
    """The betas [n] that the YAML names, in float64."""
    if settings.given_betas is not None:
        return torch.tensor(settings.given_betas, dtype=torch.float64)
    n, start, end = settings.timesteps, settings.linear_start, settings.linear_end
    kind = SCHEDULES[settings.beta_schedule]
    if kind == "linear":
        return torch.linspace(start**0.5, end**0.5, n, dtype=torch.float64) ** 2
    if kind == "cosine":
        s = settings.cosine_s
        u = torch.arange(n + 1, dtype=torch.float64) / n
        f = ((u + s) / (1 + s) * math.pi / 2).cos() ** 2
        return (1 - f[1:] / f[:-1]).clamp(0, 0.999)
    line = torch.linspace(start, end, n, dtype=torch.float64)
    return line if kind == "sqrt_linear" else line.sqrt()


def latent_scale(settings: OriginalSettings, tensors: Mapping[str, Tensor], file: Path) -> float:
    """The factor of latents before they enter the network.

    Raises InputError if the YAML refers to a buffer that is missing, or if the factor is not a
    positive number.
    """
    stored = tensors.get("scale_factor")
    if stored is None:
        if settings.scale_by_std:
            raise InputError(
                f"{file}: the YAML has scale_by_std: true, but the checkpoint has no buffer "
                f"'scale_factor'; give scale_factor and scale_by_std: false in the YAML"
            )
        return settings.scale_factor
    value = float(stored.double()) if stored.numel() == 1 else math.nan
    if not 0 < value < math.inf:
        raise InputError(
            f"{file}: its buffer 'scale_factor' is no positive number (shape "
            f"{tuple(stored.shape)}, {value}); the file is damaged"
        )
    if not settings.scale_by_std and abs(value - settings.scale_factor) > SAME * value:
        log.warning(
            "%s: its buffer scale_factor is %g, the YAML says %g; the buffer is taken",
            file, value, settings.scale_factor,
        )  # fmt: skip
    return value


def _stored_table(tensors: Mapping[str, Tensor], file: Path) -> Tensor | None:
    """alphas_cumprod [n] of the checkpoint's buffers in float64; None if it has none."""
    found = [tensors.get(name) for name in ("alphas_cumprod", "betas")]
    for name, value in zip(("alphas_cumprod", "betas"), found, strict=True):
        if value is not None and value.ndim != 1:
            raise InputError(
                f"{file}: its buffer {name!r} has shape {tuple(value.shape)}, need [n]; the file "
                f"is damaged"
            )
    table, betas = found
    if table is not None:
        return table.double()
    return None if betas is None else (1 - betas.double()).cumprod(0)


def _differ(stored: Tensor, table: Tensor) -> bool:
    if len(stored) != len(table):
        return True
    return bool(((stored - table).abs() > SAME * table + 1e-7).any()) or not bool(
        torch.isfinite(stored).all()
    )


def _check(table: Tensor, file: Path) -> None:
    try:
        table_noise(table)
    except ValueError as error:
        raise InputError(
            f"{file}: its noise schedule is not usable: {error}; mend beta_schedule, linear_start, "
            f"linear_end or timesteps in the YAML, or get the checkpoint again"
        ) from error
