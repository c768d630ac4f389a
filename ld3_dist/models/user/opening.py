"""`python:FILE.py:FACTORY` and `python:MODULE:FACTORY`: a user's own denoiser.

FACTORY(options: ModelOptions) returns a Denoiser, or a Model if more belongs to it: conditions to
draw, a feature extractor, data, statistics of data, a version. For a network that predicts noise at
1000 steps, a file my_model.py with these lines is enough:

    import torch
    from ld3_dist.core.denoiser import NetworkDenoiser
    from ld3_dist.core.noise import VPDiscrete
    from ld3_dist.models import to_device
    from my_network import MyUNet                          # a file beside this one

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = MyUNet()
            self.inner.load_state_dict(torch.load("my_weights.pt", weights_only=True))

        def forward(self, x, time, condition):             # x [B, 3, 32, 32], time [B]
            return self.inner(x, time)

    def build(options):
        betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
        noise = VPDiscrete((1 - betas).cumprod(0))
        net = to_device(Net(), options)
        return NetworkDenoiser(net, noise, (3, 32, 32), "noise", noise.network_time)

and in the YAML `model: python:my_model.py:build`. For classes, return Model(denoiser,
conditioning="class", draw_condition=draw_class(range(10))); the labels [B] then arrive as
`condition`.

Importing a file runs it: this is the one kind of model whose file is trusted.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from ...core.denoiser import Denoiser
from ...core.errors import InputError
from ...core.user_code import PREFIX, content_of, import_name, left_as_found, split
from ..conditions import conditional_on
from ..fingerprint import weights_hash
from ..loaded import Model
from ..options import ModelOptions
from ..probe import check_denoiser


def open_user_code(rest: str, options: ModelOptions) -> Model:
    """The model behind `python:{rest}`.

    Its hash covers the file, the files of its folder that it imports, and all that can be read of
    the factory's result.

    Raises InputError if the file cannot be imported, the factory fails, or its result is no
    denoiser.
    """
    spec = f"{PREFIX}{rest}"
    if spec.count(":") < 2 or not split(spec, "model")[1]:
        raise InputError(f"model {spec!r}: write python:MODULE:FACTORY or python:FILE.py:FACTORY")
    build = import_name(spec, "model")
    if not callable(build):
        raise InputError(
            f"model {spec!r}: is a {type(build).__name__}; give a function (options) -> Denoiser"
        )
    try:
        with left_as_found():
            built = build(options)
    except InputError as error:
        raise InputError(f"model {spec!r}: {error}") from error
    except (Exception, SystemExit) as error:  # it is somebody else's code: anything may come
        raise InputError(
            f"model {spec!r}: the factory fails ({type(error).__name__}: {error}); it is called "
            "with the model's options, ld3_dist.models.ModelOptions"
        ) from error
    if not isinstance(built, Model):
        check_denoiser(built, spec)
        conditional_on(False, options, spec)
        built = Model(cast(Denoiser, built), id=spec)
    found = weights_hash({}, {"model": built.hash, "source": content_of(spec)})
    return replace(
        built, id=spec, hash=found, settings={**_noise(built.denoiser), **built.settings}
    )


def _noise(denoiser: Denoiser) -> dict[str, str]:
    return {"noise": denoiser.noise.name}
