"""A pipeline's network by its scheduler: noise schedule, prediction, network time.

    epsilon, v_prediction, sample    a VPDiscrete table: the scheduler's own alphas_cumprod [n];
                                     the network's time is the fractional step k = n t - 1
    flow_prediction                  the straight path alpha = 1 - t, sigma = t; the network's time
                                     is n t
    flow with invert_sigmas          the same path; the network's time is n (1 - t), and it predicts
                                     x_0 - z, minus the velocity
    rectified flow (InstaFlow)       the same path, time n t, and the network predicts x_0 - z; its
                                     folder has the scheduler of Stable Diffusion, which says
                                     nothing of that

Only the scheduler's configuration and table are used, never its stepping, because grid and solver
are ours to choose. `scheduler_options` lists the options that are read and those that are refused.
`shift` is kept as a fact: by s -> shift s / (1 + (shift - 1) s) the pipeline spaces its steps. It
is no part of the process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...core.errors import InputError, unknown
from ...core.noise import FlowMatching, NoiseSchedule, VPDiscrete
from .network_outputs import table_noise
from .parts import is_number
from .scheduler_options import check_options, family_of, implied_prediction, underlying

PREDICTIONS = {
    "epsilon": "noise",
    "v_prediction": "v",
    "sample": "data",
    "flow_prediction": "velocity",
}


@dataclass(frozen=True)
class Parametrisation:
    """The facts about a network that are needed to turn its output into data.

    prediction: one of core.denoiser.PREDICTIONS, or "-velocity".
    network_time: time of the noise schedule -> time of the network.
    steps: n, the number of steps the network was trained on.
    shift: of the pipeline's own grid; None for a model without flow.
    """

    noise: NoiseSchedule
    prediction: str
    network_time: Callable[[Tensor], Tensor]
    steps: int
    shift: float | None


def read_parametrisation(
    scheduler: Any, model: str, tokens: int, shift: float | None, rectified: bool = False
) -> Parametrisation:
    """Read the facts about a network from its pipeline's scheduler.

    Args:
        tokens: number of image tokens in the network; a dynamic shift depends on it.
        shift: the user's, in place of the scheduler's.
        rectified: True for a network of InstaFlow, whatever the scheduler says.

    Raises InputError for a class of scheduler or a value of an option that cannot be honoured,
    naming it and the remedy.
    """
    scheduler, reversed_flow = underlying(scheduler, model)
    family = family_of(scheduler, model)
    check_options(scheduler, model)
    if rectified or reversed_flow:
        return _flow(scheduler.config, model, tokens, shift, reverse=True)
    if family == "flow" or scheduler.config.get("use_flow_sigmas"):
        _demand_flow_prediction(scheduler, model)
        return _flow(scheduler.config, model, tokens, shift)
    return _table(scheduler, model, shift)


def _flow(
    config: Mapping[str, Any], model: str, tokens: int, shift: float | None, reverse: bool = False
) -> Parametrisation:
    n, invert = int(config.get("num_train_timesteps", 1000)), bool(config.get("invert_sigmas"))
    return Parametrisation(
        FlowMatching(),
        "-velocity" if reverse or invert else "velocity",
        (lambda t: n * (1 - t)) if invert else (lambda t: n * t),
        n,
        _default_shift(config, model, tokens) if shift is None else shift,
    )


def _demand_flow_prediction(scheduler: Any, model: str) -> None:
    kind = scheduler.config.get("prediction_type") or implied_prediction(scheduler)
    if kind != "flow_prediction":
        raise InputError(
            f"model {model!r}: its scheduler {type(scheduler).__name__} has use_flow_sigmas with "
            f"prediction_type={kind!r}; only 'flow_prediction' is known on flow sigmas: set it, "
            f"or remove use_flow_sigmas, in scheduler/scheduler_config.json"
        )


def _table(scheduler: Any, model: str, shift: float | None) -> Parametrisation:
    config, name = scheduler.config, type(scheduler).__name__
    if shift is not None:
        raise InputError(
            f"model {model!r}: shift={shift} applies to flow models, and its scheduler is "
            f"{name}; remove it"
        )
    kind = config.get("prediction_type") or implied_prediction(scheduler)
    if kind == "flow_prediction":
        raise InputError(
            f"model {model!r}: its scheduler {name} has prediction_type='flow_prediction' without "
            f"use_flow_sigmas: true; set it in scheduler/scheduler_config.json if the network is "
            f"one of flow matching"
        )
    if not isinstance(kind, str) or kind not in PREDICTIONS:
        raise unknown(
            f"prediction_type of {model!r} (scheduler/scheduler_config.json)",
            kind,
            tuple(PREDICTIONS),
        )
    noise = _noise_table(scheduler, kind, model)
    return Parametrisation(noise, PREDICTIONS[kind], noise.network_time, noise.steps, None)


def _noise_table(scheduler: Any, kind: str, model: str) -> VPDiscrete:
    """The scheduler's own table, with the exact end of a zero terminal SNR.

    Samplers that divide by alpha put 2^-24 in place of the last entry, which is 0 (Lin et al.
    2023, arXiv 2305.08891).
    """
    table = scheduler.alphas_cumprod.detach().double().cpu().clone()
    if scheduler.config.get("rescale_betas_zero_snr") and len(table):
        table[-1] = 0.0
    # If no signal is left, noise says nothing about the data: such a network starts one step later.
    empty = kind == "epsilon" and len(table) > 1 and float(table[-1]) == 0
    try:
        return table_noise(table, t_max=1 - 1 / len(table) if empty else 1.0)
    except ValueError as error:
        raise InputError(
            f"model {model!r}: the betas of its scheduler are not usable: {error}; mend "
            f"beta_start, beta_end, beta_schedule, trained_betas or num_train_timesteps in "
            f"scheduler/scheduler_config.json"
        ) from error


def _default_shift(config: Mapping[str, Any], model: str, tokens: int) -> float:
    """The shift of the pipeline's own grid.

    In a dynamic shift, the shift itself (`time_shift_type: linear`) or its logarithm is linear in
    the number of tokens.
    """
    if config.get("use_dynamic_shifting"):
        low = _number(config, "base_image_seq_len", 256, model)
        high = _number(config, "max_image_seq_len", 4096, model)
        a = _number(config, "base_shift", 0.5, model)
        b = _number(config, "max_shift", 1.15, model)
        mu = a + (b - a) * (tokens - low) / ((high - low) or 1)
        shift = mu if config.get("time_shift_type") == "linear" else math.exp(mu)
    elif config.get("use_flow_sigmas"):
        shift = _number(config, "flow_shift", 1.0, model) or 1.0
    else:
        shift = _number(config, "shift", 1.0, model) or 1.0
    if not 0 < shift < math.inf:
        raise InputError(
            f"model {model!r}: its scheduler's options make a time shift of {shift}, which must "
            f"be a positive number; give shift"
        )
    return shift


def _number(config: Mapping[str, Any], key: str, default: float, model: str) -> float:
    value = config.get(key)
    if value is None:
        return default
    if not is_number(value):
        raise InputError(
            f"model {model!r}: {key} in scheduler/scheduler_config.json is {value!r}; it must be a "
            "finite number"
        )
    return float(value)
