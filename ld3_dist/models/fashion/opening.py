"""`fashion`, `fashion:FILE`: the packaged model, or weights of it trained into another file."""

from __future__ import annotations

from pathlib import Path

import torch

from ...core.features import Extractor
from ..loaded import Model, ModelOptions, on_classes, to_device
from ..weights import sha256_of
from .classifier import classifier_hash, load_fashion_classifier
from .denoiser import fashion_denoiser, fashion_hash, load_fashion_network
from .network import CLASSES
from .reference import load_fashion_reference


def open_fashion(rest: str, options: ModelOptions) -> Model:
    """The fashion model; conditional on the ten classes unless conditional=False.

    Its samples are compared with the packaged statistics of the test images.
    """
    file = Path(rest).expanduser() if rest else None
    spec = f"fashion:{rest}" if rest else "fashion"
    net, sigma_data = load_fashion_network(options.device, options.torch_dtype, file)
    conditioning = on_classes(CLASSES, options, spec)
    conditional = conditioning.guidance is not None
    guidance = 1.0 if conditioning.guidance is None else conditioning.guidance
    denoiser = fashion_denoiser(to_device(net, options), sigma_data, guidance, conditional)
    return Model(
        denoiser=denoiser,
        id=spec,
        hash=fashion_hash() if file is None else sha256_of(file),
        conditioning=conditioning.name,
        draw_condition=conditioning.draw,
        guidance=conditioning.guidance,
        image_shape=tuple(denoiser.shape),
        settings={
            "noise": denoiser.noise.name,
            "parameters": sum(p.numel() for p in net.parameters()),
        },
        extractor=fashion_extractor(options.device),
        reference=load_fashion_reference(),
    )


def fashion_extractor(device: str | torch.device = "cpu") -> Extractor:
    """The packaged classifier as a feature extractor."""
    net = load_fashion_classifier(device)
    return Extractor("fashion classifier", classifier_hash(), net.features, net.maps)
