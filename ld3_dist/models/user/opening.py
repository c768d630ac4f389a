"""`python:MODULE:FACTORY` and `python:FILE.py:FACTORY`: anybody's denoiser.

FACTORY(options: ModelOptions) returns a Denoiser, or a Model where there are conditions to draw.
The whole of what is needed for a network `net(x, time)` that predicts noise at 1000 steps, in a
file my_model.py:

    import torch
    from ld3_dist.core.denoiser import NetworkDenoiser
    from ld3_dist.core.noise import VPDiscrete
    from ld3_dist.models.loaded import to_device

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = MyUNet()
            self.inner.load_state_dict(torch.load("my_weights.pt", weights_only=True))

        def forward(self, x, time, condition):                 # x [B, 3, 32, 32], time [B],
            condition None return self.inner(x, time)

    def build(options):
        betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
        noise = VPDiscrete((1 - betas).cumprod(0))
        return NetworkDenoiser(to_device(Net(), options), noise, (3, 32, 32), "noise",
        noise.network_time)

and in the YAML `model: python:my_model.py:build`. For classes, return Model(…,
conditioning="class", draw_condition=draw_class(range(10)), …) and use the labels [B] that then
arrive as `condition`.

Importing a module runs it: this is the one kind of model whose file is trusted.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType

import torch

from ...core.denoiser import Condition, Denoiser, map_condition
from ...core.errors import InputError, unknown
from ...core.noise import NoiseSchedule
from ..loaded import Model, ModelOptions, conditional_on, no_condition, weights_hash


def open_user_code(rest: str, options: ModelOptions) -> Model:
    """The model behind `python:{rest}`; InputError where it cannot be imported or is not a
    denoiser.
    """
    spec = f"python:{rest}"
    name, _, factory = rest.rpartition(":")
    if not name or not factory:
        raise InputError(f"model {spec!r}: write python:MODULE:FACTORY or python:FILE.py:FACTORY")
    module = _import(name, spec)
    build = getattr(module, factory, None)
    if not callable(build):
        known = tuple(
            n for n, value in vars(module).items() if callable(value) and not n.startswith("_")
        )
        raise unknown(f"factory of {spec}", factory, known or ("(the module has none)",))
    built = build(options)
    if isinstance(built, Model):
        _check(built.denoiser, built.draw_condition(0, range(2)), spec, options)
        return built
    conditional_on(False, options, spec)
    built = _check(built, None, spec, options)
    shape = tuple(built.shape)
    with torch.no_grad():
        image = built.decode(torch.zeros(1, *shape, device=options.device))
    return Model(
        denoiser=built,
        id=spec,
        hash=_hash(built, module),
        conditioning="none",
        draw_condition=no_condition,
        guidance=None,
        image_shape=tuple(image.shape[1:]),
        settings={"noise": built.noise.name},
    )


def _import(name: str, spec: str) -> ModuleType:
    if not name.endswith(".py"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name and name.startswith(error.name):
                raise InputError(
                    f"model {spec!r}: no module {error.name!r}; install it, add its folder to "
                    f"PYTHONPATH, "
                    "or give the file: python:FILE.py:FACTORY"
                ) from error
            raise
    file = Path(name).expanduser().resolve()
    found = importlib.util.spec_from_file_location(f"ld3_dist_user_{file.stem}", file)
    if not file.is_file() or found is None or found.loader is None:
        raise InputError(f"model {spec!r}: file {str(file)!r} not found")
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module  # dataclasses and pickling look their module up by name
    found.loader.exec_module(module)
    return module


def _check(built: object, condition: Condition, spec: str, options: ModelOptions) -> Denoiser:
    """One call on two samples: a wrong shape is found here and not in the middle of a sweep."""
    if not isinstance(built, Denoiser) or not callable(built):
        raise InputError(
            f"model {spec!r}: got {type(built).__name__}, which lacks noise, shape, __call__ or "
            f"decode"
        )
    if not isinstance(built.noise, NoiseSchedule):
        raise InputError(
            f"model {spec!r}: noise is {type(built.noise).__name__}, not a ld3_dist.core.noise "
            f"schedule"
        )
    x = built.noise.prior_scale * torch.randn(
        2, *built.shape, generator=torch.Generator().manual_seed(0)
    )
    t = torch.full((2,), 0.5 * (built.noise.t_min + built.noise.t_max))
    with torch.no_grad():
        condition = map_condition(lambda c: c.to(options.device), condition)
        out = built(x.to(options.device), t.to(options.device), condition)
    if tuple(out.shape) != tuple(x.shape):
        raise InputError(
            f"model {spec!r}: for x {tuple(x.shape)} it returned {tuple(out.shape)}; shapes must "
            f"be equal"
        )
    if not torch.isfinite(out).all():
        raise InputError(
            f"model {spec!r}: returned values that are not finite at t = {float(t[0]):g}"
        )
    return built


def _hash(built: Denoiser, module: ModuleType) -> str:
    source = hashlib.sha256(inspect.getsource(module).encode()).hexdigest()
    tensors = built.state_dict() if isinstance(built, torch.nn.Module) else {}
    return weights_hash(tensors, {"source": source})
