"""The scheduler that an LD3Scheduler replaces, and the facts it holds about the network."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch

from ..core.errors import InputError
from ..core.noise import FlowMatching, VPDiscrete
from ..models.diffusers.network_outputs import difference
from ..models.diffusers.parametrisation import (
    PREDICTIONS,
    Parametrisation,
    read_parametrisation,
)
from ..models.diffusers.scheduler_options import underlying
from ..schedule.file import Schedule


def scheduler_of(pipeline: Any) -> Any:
    """The scheduler of a pipeline, or the scheduler itself; InputError for anything else."""
    scheduler = getattr(pipeline, "scheduler", pipeline)
    if not isinstance(getattr(scheduler, "config", None), Mapping):
        raise InputError(
            f"{type(scheduler).__name__} is neither a diffusers pipeline with a scheduler nor a "
            f"scheduler"
        )
    return scheduler


def made_for(schedule: Schedule, options: Mapping[str, Any]) -> Any:
    """A scheduler with the noise schedule and the prediction of a schedule file.

    Args:
        options: of an LD3Scheduler saved without a base: its prediction_type, num_train_timesteps
            and, of a flow model, shift.

    Raises InputError for a noise schedule that no scheduler of diffusers has.
    """
    import diffusers

    noise = schedule.noise_schedule
    kind: Any = str(options.get("prediction_type") or named(schedule.prediction or "noise"))
    if "reversed_flow_prediction" in (kind, named(schedule.prediction or "noise")):
        return diffusers.DDIMScheduler()
    if isinstance(noise, VPDiscrete):
        if kind not in PREDICTIONS:
            raise InputError(f"prediction_type {kind!r}: one of {', '.join(PREDICTIONS)}")
        a2 = noise.alphas_cumprod
        betas = 1 - a2 / torch.cat([a2.new_ones(1), a2[:-1]])
        return diffusers.DDIMScheduler(
            num_train_timesteps=noise.steps, trained_betas=betas.tolist(), prediction_type=kind
        )
    if difference(noise, FlowMatching(), "") is not None:
        raise InputError(
            f"noise {noise.name!r} has no network steps: diffusers pipelines have vp-discrete or "
            f"flow noise"
        )
    known = {key: value for key, value in options.items() if key in _SHIFTING}
    return diffusers.FlowMatchEulerDiscreteScheduler(**known)


_SHIFTING = (
    "num_train_timesteps",
    "shift",
    "use_dynamic_shifting",
    "base_shift",
    "max_shift",
    "base_image_seq_len",
    "max_image_seq_len",
)


def named(prediction: str) -> str:
    """The word of diffusers for a prediction."""
    names = {kind: name for name, kind in PREDICTIONS.items()}
    return names.get(prediction, "reversed_flow_prediction")


def read_process(scheduler: Any, schedule: Schedule, force: bool) -> Parametrisation:
    """The parametrisation of a pipeline's network, after it was compared with the file's."""
    name = type(scheduler).__name__
    base, rectified = underlying(scheduler, name)
    # InstaFlow pipelines have the scheduler of Stable Diffusion, which does not describe their
    # network.
    if schedule.prediction == "-velocity" and hasattr(base, "alphas_cumprod"):
        rectified = not base.config.get("use_flow_sigmas")
    process = read_parametrisation(base, name, tokens=0, shift=None, rectified=rectified)
    differs = difference(schedule.noise_schedule, process.noise, name)
    demand(differs is None, schedule, f"{differs}; use it with {schedule.model}", force)
    told, found = schedule.prediction, process.prediction
    demand(
        told in (None, found),
        schedule,
        f"its network predicts {told}, the pipeline's {found}",
        force,
    )
    return process


def demand(good: bool, schedule: Schedule, complaint: str, force: bool) -> None:
    """Raise InputError with a complaint unless all is good; if forced, warn instead."""
    text = (
        f"schedule of {schedule.model} ({schedule.solver}, {schedule.nfe} evaluations): {complaint}"
    )
    if not good and not force:
        raise InputError(f"{text}, or run it all the same with force=True")
    if not good:
        warnings.warn(text, stacklevel=4)
