"""What a pipeline's scheduler says about its network: the noise schedule, the kind of prediction,
the network's time.

    epsilon, v_prediction, sample    alphas_cumprod [n] from the scheduler's betas
                                     (zero-terminal-SNR included): a VPDiscrete table; the network's
                                     time is the fractional step k = n t - 1
    flow (FlowMatchEuler, or         the straight path alpha = 1 - t, sigma = t; the network's time
                                     is n t flow_prediction)

    rectified flow (InstaFlow)       the same path and time, but the network predicts x_0 - z, minus
                                     the velocity; its folder has the scheduler of Stable Diffusion,
                                     which says nothing of that

Only the scheduler's configuration is used, never its stepping: which grid and which solver is for
us to choose. `shift` is kept as a fact: s -> shift s / (1 + (shift - 1) s) is how the pipeline
spaces its steps, not part of the process."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...core.errors import InputError, unknown
from ...core.noise import FlowMatching, NoiseSchedule, VPDiscrete

PREDICTIONS = {
    "epsilon": "noise",
    "v_prediction": "v",
    "sample": "data",
    "flow_prediction": "velocity",
    "reversed_flow_prediction": "-velocity",
}


@dataclass(frozen=True)
class Parametrisation:
    """A pipeline's noise schedule, prediction (of core.denoiser.PREDICTIONS), network time, steps
    n, default shift.
    """

    noise: NoiseSchedule
    prediction: str
    network_time: Callable[[Tensor], Tensor]
    steps: int
    shift: float | None


def read_parametrisation(
    scheduler: Any, model: str, tokens: int, shift: float | None, rectified: bool = False
) -> Parametrisation:
    """The process of a pipeline's scheduler.

    Args:
        tokens: number of image tokens the network sees, on which a dynamic shift depends.
        shift: what the user asks for in place of the scheduler's.
        rectified: the network is one of InstaFlow's, whatever the scheduler says.

    Raises InputError for a scheduler that belongs to neither family, naming it.
    """
    config, name = scheduler.config, type(scheduler).__name__
    steps = int(config.get("num_train_timesteps", 1000))
    kind = "reversed_flow_prediction" if rectified else config.get("prediction_type", "epsilon")
    if "FlowMatch" in name or kind in ("flow_prediction", "reversed_flow_prediction"):
        default = _default_shift(config, tokens)
        prediction = PREDICTIONS["flow_prediction" if "FlowMatch" in name else kind]
        return Parametrisation(
            FlowMatching(),
            prediction,
            lambda t: steps * t,
            steps,
            default if shift is None else shift,
        )
    if shift is not None:
        raise InputError(
            f"model {model!r}: shift={shift} applies to flow models, and its scheduler is "
            f"{name}; remove it"
        )
    if kind not in PREDICTIONS:
        raise unknown(
            f"prediction_type of {model!r} (scheduler/scheduler_config.json)",
            kind,
            tuple(PREDICTIONS),
        )
    table = getattr(scheduler, "alphas_cumprod", None)
    if not isinstance(table, Tensor):
        raise InputError(
            f"model {model!r}: its scheduler {name} has no table of betas; put one that has "
            "(DDPM, DDIM, PNDM, Euler, DPM-Solver, UniPC) or a flow-matching one into scheduler/"
        )
    if config.get("rescale_betas_zero_snr"):
        table = zero_terminal_snr(_alphas_cumprod(config, table))
    try:
        # where no signal is left, noise says nothing about the data: such a network starts one step
        # later
        empty = kind == "epsilon" and float(table[-1]) == 0
        noise = VPDiscrete(table.double().cpu(), t_max=1 - 1 / len(table) if empty else 1.0)
    except ValueError as error:
        raise InputError(
            f"model {model!r}: the betas of its scheduler are not usable: {error}"
        ) from error
    return Parametrisation(noise, PREDICTIONS[kind], noise.network_time, steps, None)


def zero_terminal_snr(alphas_cumprod: Tensor) -> Tensor:
    """Shift and scale sqrt(alphas_cumprod) so that it ends at exactly 0 and starts where it did
    (Lin et al. 2023).
    """
    root = alphas_cumprod.double().sqrt()
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2


def _alphas_cumprod(config: Mapping[str, Any], fallback: Tensor) -> Tensor:
    """The table before rescaling; some schedulers replace its last entry, so it is made again from
    the betas.
    """
    n, name = int(config.get("num_train_timesteps", 1000)), config.get("beta_schedule")
    first, last = float(config.get("beta_start", 1e-4)), float(config.get("beta_end", 0.02))
    if config.get("trained_betas") is not None:
        betas = torch.as_tensor(config["trained_betas"], dtype=torch.float64)
    elif name == "linear":
        betas = torch.linspace(first, last, n, dtype=torch.float64)
    elif name == "scaled_linear":
        betas = torch.linspace(first**0.5, last**0.5, n, dtype=torch.float64) ** 2
    else:
        return fallback
    return (1 - betas).cumprod(0)


def _default_shift(config: Mapping[str, Any], tokens: int) -> float:
    if config.get("use_dynamic_shifting"):  # log-shift linear in the number of tokens
        low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        a, b = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
        return math.exp(a + (b - a) * (tokens - low) / (high - low))
    return float(config.get("flow_shift") or config.get("shift") or 1.0)
