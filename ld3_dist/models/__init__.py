"""From a name to a denoiser.

    digits                     the network and data that come with this package (8x8 handwritten
                               digits)
    edm:FILE                   an EDM checkpoint: .pkl (nothing in it is executed), URL, or
                               converted .safetensors
    diffusers:FOLDER           a diffusers pipeline on disk or on the hub: pixel, latent, class,
                               text, flow models
    analytic:NAME?key=value    distributions with an exact denoiser (`models/analytic/opening.py`
                               lists them)
    python:MODULE:FACTORY      your own

`open_model` yields everything a sweep needs (`Model`), `load_model` the denoiser alone. A loader's
module is imported when it is asked for: an analytic model needs none of the others' packages."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ..core.denoiser import Denoiser
from ..core.errors import InputError, unknown
from .loaded import Model, ModelOptions

__all__ = ["Model", "ModelOptions", "load_model", "open_model"]

_LOADERS = {
    "digits": ("digits.opening", "open_digits"),
    "edm": ("edm.opening", "open_edm"),
    "diffusers": ("diffusers.opening", "open_diffusers"),
    "analytic": ("analytic.opening", "open_analytic"),
    "python": ("user.opening", "open_user_code"),
}


def open_model(spec: str, options: ModelOptions | None = None) -> Model:
    """Open a model by name.

    Raises InputError for an unknown kind, a file that is missing or damaged, and an option the
    model does not have."""
    kind, _, rest = spec.partition(":")
    if kind not in _LOADERS:
        raise unknown("model", spec, tuple(_LOADERS))
    if not rest and kind != "digits":
        raise InputError(
            f"model {spec!r}: something must follow the colon; see the list in ld3_dist.models"
        )
    module, function = _LOADERS[kind]
    return getattr(import_module(f"{__name__}.{module}"), function)(rest, options or ModelOptions())


def load_model(spec: str, **options: Any) -> Denoiser:
    """The denoiser alone; options are those of ModelOptions, e.g. load_model("digits",
    guidance=1.5, device="cuda").
    """
    return open_model(spec, ModelOptions(**options)).denoiser
