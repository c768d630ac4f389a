"""The common opening of embedded models: `NAME`, or `NAME:FILE` for weights in another file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from ...core.features import Reference
from ..conditions import on_classes
from ..loaded import Model
from ..options import ModelOptions, no_pipeline, to_device
from ..weights import sha256_of
from .classifier import EmbeddedClassifier
from .denoiser import EmbeddedNetwork


def open_embedded(
    network: EmbeddedNetwork[Any],
    classifier: EmbeddedClassifier[Any],
    rest: str,
    options: ModelOptions,
    *,
    data: Callable[[], Tensor] | None = None,
    reference: Callable[[], Reference] | None = None,
) -> Model:
    """An embedded model; conditional on its classes unless conditional=False.

    Args:
        rest: the text after the colon of its name: a weights file, or nothing for the packaged one.
        data, reference: return the images it was trained on, or their statistics.

    Raises InputError for a bad file, and for options that the model does not have.
    """
    file = Path(rest).expanduser() if rest else None
    spec = f"{network.model}:{rest}" if rest else network.model
    no_pipeline(options, spec)
    net, sigma_data = network.load_network(options.device, options.torch_dtype, file)
    conditioning = on_classes(network.classes, options, spec)
    conditional = conditioning.guidance is not None
    guidance = 1.0 if conditioning.guidance is None else conditioning.guidance
    denoiser = network.denoiser(to_device(net, options), sigma_data, guidance, conditional)
    return Model(
        denoiser=denoiser,
        id=spec,
        hash=network.hash() if file is None else sha256_of(file),
        conditioning=conditioning.name,
        draw_condition=conditioning.draw,
        guidance=conditioning.guidance,
        image_shape=tuple(denoiser.shape),
        settings={
            "noise": denoiser.noise.name,
            "parameters": sum(p.numel() for p in net.parameters()),
        },
        extractor=classifier.extractor(options.device),
        data=None if data is None else data().to(options.device),
        reference=None if reference is None else reference(),
    )
