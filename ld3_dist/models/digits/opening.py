"""`digits`, `digits:FILE`: the packaged model, or weights of it trained into another file."""

from __future__ import annotations

from pathlib import Path

import torch

from ...core.features import Extractor
from ..loaded import Model, ModelOptions, no_pipeline, on_classes, to_device
from ..weights import sha256_of
from .classifier import classifier_hash, load_digits_classifier
from .data import digits_reference
from .denoiser import digits_denoiser, digits_hash, load_digits_network
from .network import CLASSES


def open_digits(rest: str, options: ModelOptions) -> Model:
    """The digits model; conditional on the ten classes unless conditional=False."""
    file = Path(rest).expanduser() if rest else None
    spec = f"digits:{rest}" if rest else "digits"
    no_pipeline(options, spec)
    net, sigma_data = load_digits_network(options.device, options.torch_dtype, file)
    conditioning = on_classes(CLASSES, options, spec)
    conditional = conditioning.guidance is not None
    guidance = 1.0 if conditioning.guidance is None else conditioning.guidance
    denoiser = digits_denoiser(to_device(net, options), sigma_data, guidance, conditional)
    return Model(
        denoiser=denoiser,
        id=spec,
        hash=digits_hash() if file is None else sha256_of(file),
        conditioning=conditioning.name,
        draw_condition=conditioning.draw,
        guidance=conditioning.guidance,
        image_shape=tuple(denoiser.shape),
        settings={
            "noise": denoiser.noise.name,
            "parameters": sum(p.numel() for p in net.parameters()),
        },
        extractor=digits_extractor(options.device),
        data=digits_reference()[0].to(options.device),
    )


def digits_extractor(device: str | torch.device = "cpu") -> Extractor:
    """The packaged classifier as a feature extractor."""
    classifier = load_digits_classifier(device)
    return Extractor("digits classifier", classifier_hash(), classifier.features, classifier.maps)
