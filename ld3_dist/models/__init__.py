"""Models by name.

    digits                     the network and data that come with this package (8x8 handwritten
                               digits)
    digits-flow                a network of flow matching for the same digits
    fashion                    28x28 pictures of clothes; the network comes with this package
    edm:FILE                   an EDM checkpoint: .pkl (nothing in it is executed), URL, or
                               converted .safetensors
    diffusers:FOLDER           a diffusers pipeline on disk or on the hub: pixel, latent, class,
                               text, flow models
    analytic:NAME?key=value    distributions with an exact denoiser (`models/analytic/opening.py`
                               lists them)
    python:MODULE:FACTORY      your own, also python:FILE.py:FACTORY

A family is an entry of `families`: a function (rest of the name, options) -> Model in
`models/<family>/opening.py`. Another package adds one with `@families.register("name")`. A family's
module is imported when it is asked for, so an analytic model needs no other family's packages.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..core.errors import InputError
from ..core.registry import Registry
from .conditions import conditional_on, draw_class
from .loaded import Model
from .options import ModelOptions, no_pipeline, to_device

__all__ = [
    "Model",
    "ModelOptions",
    "conditional_on",
    "draw_class",
    "families",
    "load_model",
    "no_pipeline",
    "open_model",
    "to_device",
]

OpenModel = Callable[[str, ModelOptions], Model]
"""(the name after "family:", options) -> the model."""

families: Registry[OpenModel] = Registry("model", ("family:NAME",))

for _name, _function in {
    "digits": "open_digits",
    "fashion": "open_fashion",
    "edm": "open_edm",
    "diffusers": "open_diffusers",
    "analytic": "open_analytic",
}.items():
    families.register(_name, lazily=f"{__name__}.{_name}.opening:{_function}")
families.register("digits-flow", lazily=f"{__name__}.digits.opening:open_digits_flow")
families.register("python", lazily=f"{__name__}.user.opening:open_user_code")


def open_model(spec: str, options: ModelOptions | None = None) -> Model:
    """The model of a name; its network is called once, to see that schedules can be learned for it.

    Raises InputError for an unknown family, a file that is missing or damaged, an option that the
    model does not have, and a network that cannot be learned for (see `models.probe`).
    """
    family, _, rest = spec.partition(":")
    options = options or ModelOptions()
    opened = families.get(family)(rest, options)
    if not isinstance(opened, Model):
        raise InputError(
            f"model {spec!r}: its family {family!r} returned {type(opened).__name__}; it must "
            "return an ld3_dist.models.Model"
        )
    return opened.probed(options.device)


def load_model(spec: str, **options: Any) -> Model:
    """The model of a name, with the options of ModelOptions by name.

    Raises InputError as `open_model` does.

    >>> import ld3_dist as ld3
    >>> model = ld3.load_model("analytic:mixture-2d?components=4")
    >>> model.shape, model.noise.name
    ((2,), 'edm')
    """
    return open_model(spec, ModelOptions(**options))
