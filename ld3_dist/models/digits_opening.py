"""`digits`, `digits:FILE`: the packaged model, or weights of it trained into another file."""

from __future__ import annotations

from pathlib import Path

from .digits.network import CLASSES
from .digits.opening import digits_denoiser, digits_hash, load_digits_network
from .digits.weights import sha256_of
from .loaded import (
    LoadedModel,
    ModelOptions,
    conditional_on,
    conditioning_name,
    draw_class,
    no_condition,
    place,
    read_classes,
)


def open_digits(rest: str, options: ModelOptions) -> LoadedModel:
    """The digits model; conditional on the ten classes unless conditional=False."""
    file = Path(rest).expanduser() if rest else None
    spec = f"digits:{rest}" if rest else "digits"
    net, sigma_data = load_digits_network(options.device, options.torch_dtype, file)
    conditional = conditional_on(True, options, spec)
    guidance = 1.0 if options.guidance is None else options.guidance
    denoiser = digits_denoiser(place(net, options), sigma_data, guidance, conditional)
    return LoadedModel(
        denoiser=denoiser,
        id=spec,
        hash=digits_hash() if file is None else sha256_of(file),
        conditioning=conditioning_name("class", options) if conditional else "none",
        draw_condition=draw_class(read_classes(options, CLASSES, spec)) if conditional else no_condition,
        guidance=guidance if conditional else None,
        image_shape=tuple(denoiser.shape),
        settings={"noise": denoiser.noise.name, "parameters": sum(p.numel() for p in net.parameters())},
    )
