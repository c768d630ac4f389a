"""Names of analytic models: `analytic:NAME?key=value&key=value`.

    analytic:gaussian?shape=3x4x4&std=0.5          N(mean, std^2 I)
    analytic:mixture-1d                            three components on a line
    analytic:mixture-2d?components=8&std=0.1       components on a circle
    analytic:mixture?means=-1,0;1,0.5&stds=0.2,0.3&weights=0.4,0.6
    analytic:random-mixture?shape=64&components=5&std=0.25&seed=0
    analytic:heavy-tails?shape=2&df=3&std=0.5&components=32
    analytic:empirical?data=FILE&std=0             .npy, or .safetensors with `data` and, if there
                                                   are classes, `labels`

Some are hard to sample (`hard`). They bring exact samples as a reference, and know their modes:

    analytic:modes?shape=2&components=8&radius=4&std=0.1&decay=1
    analytic:student-t?shape=2&df=2&std=0.3&components=32&least=1e-6
    analytic:near-singular?shape=2&std=1&ratio=1e-3
    analytic:rings?components=64&radius=1&std=0.05
    analytic:checkerboard?side=4&lattice=3&width=1

Each takes noise=edm (default), vp-linear, vp-cosine, flow or python:FILE.py:NAME, and the
parameters of that schedule (t_min, t_max, …).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass, replace
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import torch
from torch import Tensor

from ...core.denoiser import Condition, Denoiser, Guided, map_condition
from ...core.errors import InputError, unknown
from ...core.features import Extractor, FeatureMoments, Modes, Reference
from ...core.noise import EDM, FlowMatching, NoiseSchedule, VPCosine, VPLinear, noise_schedules
from ...core.user_code import PREFIX, content_in
from ..conditions import conditional_on, conditioning_name, draw_class, no_condition, read_classes
from ..fingerprint import weights_hash
from ..loaded import Model
from ..options import ModelOptions, needs_name, no_pipeline, without
from . import hard
from . import mixture as analytic

SCHEDULES = {"edm": EDM, "vp-linear": VPLinear, "vp-cosine": VPCosine, "flow": FlowMatching}
T = TypeVar("T")
NAMES = (
    "gaussian",
    "mixture",
    "mixture-1d",
    "mixture-2d",
    "random-mixture",
    "heavy-tails",
    "empirical",
)
HARD = ("modes", "student-t", "near-singular", "rings", "checkerboard")


class Parameters:
    """The key=value pairs of a name. A key that the distribution does not have is an error."""

    def __init__(self, name: str, text: str) -> None:
        self.name = f"analytic:{name}"
        self.values = dict(parse_qsl(text, keep_blank_values=True))
        self.taken: list[str] = []

    def take(self, key: str, read: Callable[[str], T], default: T) -> T:
        """The value of a key, converted by `read`.

        Raises InputError, naming key and value, if it cannot be converted.
        """
        self.taken.append(key)
        if key not in self.values:
            return default
        text = self.values.pop(key)
        try:
            return read(text)
        except ValueError as error:
            raise InputError(
                f"model {self.name!r}: {key}={text!r} is not understood ({error})"
            ) from error

    def finish(self) -> None:
        """Raise InputError for a key that was not taken."""
        for key in self.values:
            raise unknown(f"parameter of {self.name}", key, self.taken)


def open_analytic(rest: str, options: ModelOptions) -> Model:
    """The model behind `analytic:{rest}`."""
    needs_name(rest, "analytic", "the name of a distribution")
    name, _, query = rest.partition("?")
    if name not in (*NAMES, *HARD):
        raise unknown("analytic model", name, (*NAMES, *HARD))
    if options.dtype not in (None, "float64"):
        raise InputError(
            f"model analytic:{name}: dtype={options.dtype!r} does not apply, it computes in float64"
        )
    if torch.device(options.device).type == "mps":
        raise InputError(
            f"model analytic:{name}: device={options.device!r} has no float64, in which it "
            "computes; use 'cpu'"
        )
    parameters = Parameters(name, query)
    noise = _schedule(parameters)
    df = parameters.values.get("df") if name == "student-t" else None
    try:
        mixture = (_hard if name in HARD else _build)(name, noise, parameters)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"model analytic:{rest}: {error}") from error
    parameters.finish()
    described = {"noise": repr(noise)}
    if (source := content_in(query)) is not None:
        described["source"] = source
    digest = weights_hash(dict(mixture.state_dict()), described)
    mixture = mixture.requires_grad_(False).to(options.device)
    model = _loaded(mixture, f"analytic:{rest}", digest, options)
    if name not in HARD:
        return model
    order = math.inf if name != "student-t" else float(df or hard.DEGREES)
    identity = Extractor("identity", "identity", lambda x: x.flatten(1))
    return replace(model, extractor=identity, reference=_reference(mixture, order))


def _reference(mixture: analytic.Mixture, order: float) -> Reference:
    """Exact samples of a mixture, its exact moments, and its modes; all on the CPU."""
    features = mixture.draw(hard.REFERENCE_DRAWS, seed=0).flatten(1).cpu()
    mean, covariance = (part.cpu() for part in mixture.moments())
    modes = Modes(
        lambda f: hard.mode_of(mixture, f.to(mixture.means.device)).cpu(),
        hard.mode_weights(mixture).cpu(),
    )
    return Reference(
        FeatureMoments(mean, covariance), features, "exact samples", modes, finite_moments=order
    )


def _loaded(mixture: analytic.Mixture, model: str, digest: str, options: ModelOptions) -> Model:
    no_pipeline(options, model)
    without(["negative_prompt"], options, model, "only to a model of prompts")
    classes = [] if mixture.labels is None else sorted(set(mixture.labels.tolist()))
    # a mixture is a model without a condition, unless its classes are asked for
    wanted = bool(options.conditional or options.guided or options.classes or options.prompts)
    conditional = wanted and conditional_on(bool(classes), options, model)
    denoiser: Denoiser = mixture
    if conditional and options.guided:
        denoiser = Guided(mixture, float(options.guidance or 0), _no_label)
    return Model(
        denoiser=denoiser,
        id=model,
        hash=digest,
        conditioning=conditioning_name("class", options) if conditional else "none",
        draw_condition=draw_class(read_classes(options, max(classes) + 1, model))
        if conditional
        else no_condition,
        guidance=options.guidance if conditional else None,
        image_shape=mixture.shape,
        settings={"noise": mixture.noise.name, "components": len(mixture.means)},
    )


def _no_label(condition: Condition) -> Condition:
    return map_condition(lambda c: torch.full_like(c, analytic.ANY_LABEL), condition)


def _schedule(parameters: Parameters) -> NoiseSchedule:
    name = parameters.take("noise", str, "edm")
    schedule: Any = SCHEDULES[name] if name in SCHEDULES else _own_schedule(name, parameters)
    given = {
        f.name: parameters.take(f.name, float, f.default)
        for f in fields(schedule)
        if f.name != "name"
    }
    try:
        return schedule(**given)
    except ValueError as error:
        raise InputError(f"model {parameters.name!r}: {error}") from error


def _own_schedule(name: str, parameters: Parameters) -> type[NoiseSchedule]:
    """A noise schedule that is registered, or lies in a user's file."""
    if not name.startswith(PREFIX) and name not in noise_schedules:
        raise unknown(f"noise schedule of {parameters.name}", name, tuple(SCHEDULES))
    found = noise_schedules.get(name)
    if not isinstance(found, type) or not issubclass(found, NoiseSchedule):
        raise InputError(
            f"model {parameters.name!r}: noise={name!r} must be a class that derives from "
            "ld3_dist.core.noise.NoiseSchedule"
        )
    if not is_dataclass(found) or any(field.default is MISSING for field in fields(found)):
        raise InputError(
            f"model {parameters.name!r}: noise={name!r} must be a dataclass whose fields all have "
            "defaults"
        )
    return found


def _build(name: str, noise: NoiseSchedule, parameters: Parameters) -> analytic.Mixture:
    take = parameters.take
    if name == "mixture-1d":
        return analytic.mixture_1d(noise)
    if name == "mixture-2d":
        return analytic.mixture_2d(noise, take("components", int, 8), take("std", float, 0.1))
    if name == "mixture":
        means, stds = take("means", _rows, None), take("stds", _row, None)
        weights = take("weights", _row, None)
        if means is None or stds is None:
            raise InputError(
                "model analytic:mixture needs means=… and stds=…, e.g. "
                "?means=-1,0;1,0.5&stds=0.2,0.3"
            )
        return analytic.Mixture(noise, means, stds, weights, torch.arange(len(means)))
    if name == "empirical":
        data, labels = _data(take("data", str, ""))
        return analytic.empirical(noise, data, labels, take("std", float, 0.0))
    shape = take("shape", _shape, (1,))
    if name == "gaussian":
        mean, std = take("mean", float, 0.0), take("std", float, 0.5)
        return analytic.gaussian(noise, torch.full(shape, mean), torch.full(shape, std))
    if name == "random-mixture":
        count, std = take("components", int, 5), take("std", float, 0.25)
        seed = take("seed", int, 0)
        return analytic.random_mixture(noise, shape, count, std, seed)
    df, std, count = take("df", float, 3.0), take("std", float, 0.5), take("components", int, 32)
    return analytic.heavy_tails(noise, shape, df, std, count)


def _hard(name: str, noise: NoiseSchedule, parameters: Parameters) -> analytic.Mixture:
    """One of the distributions of `hard`."""
    take = parameters.take
    if name == "rings":
        radius, std = take("radius", float, 1.0), take("std", float, 0.05)
        return hard.rings(noise, take("components", int, 64), radius, std)
    if name == "checkerboard":
        lattice, width = take("lattice", int, 3), take("width", float, 1.0)
        return hard.checkerboard(noise, take("side", int, 4), lattice, width)
    shape = take("shape", _shape, (2,))
    if name == "near-singular":
        return hard.near_singular(noise, shape, take("std", float, 1.0), take("ratio", float, 1e-3))
    if name == "student-t":
        df, std = take("df", float, hard.DEGREES), take("std", float, 0.3)
        count, least = take("components", int, 32), take("least", float, 1e-6)
        return hard.student_t(noise, shape, df, std, count, least)
    count, radius = take("components", int, 8), take("radius", float, 4.0)
    std, decay = take("std", float, 0.1), take("decay", float, 1.0)
    return hard.modes(noise, shape, count, radius, std, decay)


def _shape(text: str) -> tuple[int, ...]:
    sizes = tuple(int(word) for word in text.split("x"))
    if min(sizes) < 1:
        raise ValueError("sizes must be at least 1, e.g. 3x32x32")
    return sizes


def _row(text: str) -> Tensor | None:
    return torch.tensor([float(word) for word in text.split(",")], dtype=torch.float64)


def _rows(text: str) -> Tensor | None:
    return torch.tensor(
        [[float(word) for word in row.split(",")] for row in text.split(";")], dtype=torch.float64
    )


def _data(file: str) -> tuple[Tensor, Tensor | None]:
    if not file:
        raise InputError(
            "model analytic:empirical needs data=FILE (.npy, or .safetensors with a tensor 'data')"
        )
    try:
        if file.endswith(".npy"):
            import numpy

            return torch.as_tensor(numpy.load(file, allow_pickle=False)).double(), None
        from safetensors.torch import load_file

        tensors = load_file(file)
    except Exception as error:  # each reader has its own exceptions for a damaged file
        raise InputError(
            f"data file {file!r} of analytic:empirical cannot be read: {error}"
        ) from error
    if "data" not in tensors:
        raise InputError(
            f"data file {file!r} of analytic:empirical has no tensor 'data'; it has "
            f"{sorted(tensors)}"
        )
    return tensors["data"].double(), tensors.get("labels")
