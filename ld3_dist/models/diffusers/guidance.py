"""The guidance of a pipeline call in progress, and all else in the call that changes it.

A pipeline does not tell its scheduler about guidance. Before the first step, guidance is read from
the arguments of the `__call__` that the scheduler serves. Later in the call it is read from the
attributes into which pipelines copy their arguments, because a callback can change them between two
steps.

Some changes cannot be seen from there: negative prompts and adapters, which change the network's
condition; hooks and attention processors, which change the network; guiders of modular pipelines;
loops outside of pipelines.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Mapping
from typing import Any

from ...core.errors import InputError

SCALES = ("guidance_scale", "true_cfg_scale")
GUIDING = re.compile(r"guid|cfg|pag_|sag_|stg_")
"""Pattern of the arguments of a pipeline call that have to do with guidance."""
HARMLESS = frozenset(
    {
        *SCALES,
        # the time when a ControlNet acts, which is no guidance
        "control_guidance_start",
        "control_guidance_end",
        # they have no effect without skip_guidance_layers
        "skip_layer_guidance_scale",
        "skip_layer_guidance_start",
        "skip_layer_guidance_stop",
    }
)
OFF: dict[str, float] = {"cfg_trunc_ratio": 1, "cfg_truncation": 1, "cfg_interval_end": 1}
"""Values that switch an argument off, if None, False and 0 do not."""


def guidance_of_call(scheduler: object, under_way: bool = False) -> dict[str, float]:
    """The guidance scales in effect in the pipeline call that a scheduler serves, by name.

    It is empty if no pipeline is calling.

    Args:
        under_way: True if steps were taken already, so that the pipeline's attributes count.

    Raises InputError for an argument that changes guidance otherwise than by its scale, such as
    guidance_rescale or pag_scale. The message names it and the value that switches it off.
    """
    found = _caller(scheduler)
    if found is None:
        return {}
    pipeline, arguments = found
    names = list(inspect.signature(type(pipeline).__call__).parameters)
    told = {name: arguments[name] for name in names if name in arguments}
    if under_way:
        attributes = vars(pipeline)
        told |= {name: attributes[f"_{name}"] for name in names if f"_{name}" in attributes}
    scales = _effective_scales(pipeline, told)
    _refuse_changes(type(pipeline).__name__, told, guided=max(scales.values()) > 1)
    return scales


def _caller(scheduler: object) -> tuple[Any, Mapping[str, Any]] | None:
    """(pipeline, its local variables) of the innermost call that a scheduler serves."""
    from diffusers import DiffusionPipeline

    frame = sys._getframe(2)
    while frame is not None:
        caller = frame.f_locals.get("self") if frame.f_code.co_name == "__call__" else None
        if (
            isinstance(caller, DiffusionPipeline)
            and getattr(caller, "scheduler", None) is scheduler
        ):
            return caller, frame.f_locals
        frame = frame.f_back
    return None


def _effective_scales(pipeline: Any, told: Mapping[str, Any]) -> dict[str, float]:
    """The scales in effect.

    Guidance of 1 or less is none, and true_cfg_scale acts only with a negative prompt.
    """
    scale = _number("guidance_scale", told.get("guidance_scale"))
    if "true_cfg_scale" not in told:
        return {"guidance_scale": 1.0 if scale is None else max(scale, 1.0)}
    negative = any(
        told.get(key) is not None for key in ("negative_prompt", "negative_prompt_embeds")
    )
    true_scale = _number("true_cfg_scale", told["true_cfg_scale"])
    true_scale = max(true_scale or 1.0, 1.0) if negative else 1.0
    if not getattr(pipeline.transformer.config, "guidance_embeds", False):
        return {"true_cfg_scale": true_scale}
    # Embedded: the scale is an input of the network, and a second guidance on top of it is another
    # model.
    embedded = {"guidance_scale": scale or 0.0}
    return embedded if true_scale == 1 else {**embedded, "true_cfg_scale": true_scale}


def _number(name: str, value: Any) -> float | None:
    if value is None:
        return None
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{name} is no single number in this call, but a schedule is learned with one; call "
            f"with one number"
        ) from error


def _refuse_changes(pipeline: str, told: Mapping[str, Any], guided: bool) -> None:
    """Refuse arguments that change guidance otherwise than by its scale."""
    for name, value in told.items():
        if not GUIDING.search(name) or name in HARMLESS or name.startswith("callback"):
            continue
        off = OFF.get(name, 0)
        if value is None or value is False or (isinstance(value, (int, float)) and value == off):
            continue
        if name == "guidance_rescale" and not guided:
            continue
        shown = 0 if isinstance(value, (int, float)) and not isinstance(value, bool) else None
        off = OFF.get(name, shown) if not isinstance(value, bool) else False
        raise InputError(
            f"{name} = {value!r} of {pipeline} changes guidance in a way that no schedule is "
            f"learned with; call with {name}={off}"
        )
