"""`diffusers:FOLDER` or `diffusers:HUB_ID`: a diffusers pipeline as a Denoiser.

The kind of model follows from the pipeline's parts, not from its name:

    unet UNet2DModel                    pixels, or latents with a vae or vqvae; classes, if the
                                        network embeds any
    unet UNet2DConditionModel           with a text_encoder: Stable Diffusion 1.x and 2.x; XL where
                                        there is a text_encoder_2; InstaFlow where the pipeline is a
                                        RectifiedFlowPipeline. With CLASS_EMBEDDING: latent
                                        diffusion on classes (`latent_diffusion` converts it)
    transformer DiT                     latents, classes
    transformer SD3, Flux               latents, text, flow matching

Only the pipeline's networks, its autoencoder and its text encoders run. `parts` lists the classes
of networks, and the pipelines that are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...core.denoiser import Condition, Denoiser, Guided, NetworkDenoiser
from ...core.errors import InputError, unknown
from ..conditions import Conditioning, conditional_on, conditioning_name, draw_class, on_classes
from ..fingerprint import weights_hash
from ..loaded import Model
from ..options import ModelOptions, needs_name, to_device
from .latent_diffusion import CLASS_EMBEDDING, read_class_embedding
from .networks import (
    ClassTransformer,
    ClassUNet,
    FlowTransformer,
    LatentDecoder,
    PackedTransformer,
    PixelNetwork,
    Reversed,
    TextUNet,
)
from .parametrisation import Parametrisation, read_parametrisation
from .parts import NETWORKS, check_parts, sample_size
from .pipelines import load_pipeline
from .prompts import Prompts, prompt_lines
from .scheduler_options import underlying


def open_diffusers(rest: str, options: ModelOptions) -> Model:
    """The model behind `diffusers:{rest}`."""
    needs_name(rest, "diffusers", "a folder or hub id")
    spec = f"diffusers:{rest}"
    pipeline, rectified = load_pipeline(rest, options.variant)
    inner = getattr(pipeline, "transformer", None) or getattr(pipeline, "unet", None)
    kind = NETWORKS.get(type(inner).__name__)
    if inner is None or kind is None:
        raise unknown(f"network of {spec}", type(inner).__name__, tuple(NETWORKS))
    vae = getattr(pipeline, "vae", None) or getattr(pipeline, "vqvae", None)
    check_parts(pipeline, inner, kind, vae, spec)
    shape = _shape(inner, kind, vae, options, spec)
    table = read_class_embedding(Path(rest).expanduser()) if kind == "text unet" else None
    if kind == "text unet":
        kind = _text_kind(pipeline, table, spec)
    process = read_parametrisation(
        pipeline.scheduler, spec, shape[1] * shape[2] // 4, options.shift, rectified
    )
    conditioning = _conditioning(pipeline, inner, kind, spec, options, table)
    digest = _hash(inner, vae, pipeline.scheduler, table, rectified, spec)
    if conditioning.name.startswith("prompts"):
        digest = weights_hash(_encoders(pipeline), {"model": digest})
    embedded = kind == "flux" and bool(inner.config.guidance_embeds)
    guidance = options.guidance if options.guidance is not None else 3.5 if embedded else 1.0
    image_shape = _image_shape(shape, vae)
    net = _network(inner, kind, image_shape, guidance if embedded else None, table)
    net = to_device(Reversed(net) if process.prediction == "-velocity" else net, options)
    decoder = None if vae is None else LatentDecoder(vae).to(options.device)
    denoiser = _denoiser(net, process, shape, decoder, options)
    if guidance != 1 and not embedded and conditioning.null is not None:
        denoiser = Guided(denoiser, guidance, Null(conditioning.null))
    return Model(
        denoiser=denoiser,
        id=spec,
        hash=digest,
        conditioning=conditioning.name,
        draw_condition=conditioning.draw,
        draw_prompts=conditioning.prompts,
        guidance=None if conditioning.name == "none" else guidance,
        image_shape=image_shape,
        settings={
            "pipeline": type(pipeline).__name__,
            "prediction": process.prediction,
            "steps": process.steps,
            "shift": process.shift,
            "embedded_guidance": embedded,
            "parameters": sum(p.numel() for p in inner.parameters()),
        },
    )


def _shape(
    inner: nn.Module, kind: str, vae: nn.Module | None, options: ModelOptions, spec: str
) -> tuple[int, int, int]:
    """The shape [C, h, w] of the network's input (FLUX-type: before packing)."""
    config: Any = inner.config
    channels = config.in_channels // 4 if kind == "flux" else config.in_channels
    if vae is None and (kind != "unet" or channels not in (1, 3)):
        raise InputError(
            f"model {spec!r} has {channels}-channel latents but no decoder: its model_index.json "
            f"needs a vae or vqvae"
        )
    factor = 1 if vae is None else _factor(vae)
    if options.size is not None:
        step = factor * (2 if kind in ("flux", "sd3") else 1)
        if options.size[0] % step or options.size[1] % step:
            raise InputError(f"model {spec!r}: size={options.size} must be multiples of {step}")
        return channels, options.size[0] // factor, options.size[1] // factor
    height, width = (128, 128) if kind == "flux" else sample_size(inner, spec)
    return channels, height, width


def _factor(vae: Any) -> int:
    return 2 ** (len(vae.config.block_out_channels) - 1)


def _image_shape(shape: tuple[int, int, int], vae: Any) -> tuple[int, ...]:
    return (
        shape
        if vae is None
        else (vae.config.out_channels, shape[1] * _factor(vae), shape[2] * _factor(vae))
    )


def _text_kind(pipeline: Any, table: Tensor | None, spec: str) -> str:
    """The kind of a UNet2DConditionModel, by the parts beside it."""
    if table is not None:
        return "class unet"
    if (
        getattr(pipeline, "text_encoder", None) is None
        and getattr(pipeline, "text_encoder_2", None) is None
    ):
        raise InputError(
            f"model {spec!r} attends to a condition, but has neither a text_encoder nor "
            f"{CLASS_EMBEDDING}: convert the original checkpoint with ld3-dist convert"
        )
    return "sdxl" if getattr(pipeline, "text_encoder_2", None) is not None else "sd"


def _network(
    inner: Any, kind: str, image: tuple[int, ...], guidance: float | None, table: Tensor | None
) -> nn.Module:
    if kind == "unet":
        return PixelNetwork(inner, _class_count(inner) > 0)
    if kind == "dit":
        return ClassTransformer(inner)
    if kind == "sd3":
        return FlowTransformer(inner)
    if kind == "flux":
        return PackedTransformer(inner, guidance)
    if kind == "class unet":
        assert table is not None
        return ClassUNet(inner, table)
    height, width = image[1:]
    return TextUNet(
        inner, torch.tensor([height, width, 0, 0, height, width]) if kind == "sdxl" else None
    )


def _denoiser(
    net: nn.Module,
    process: Parametrisation,
    shape: tuple[int, ...],
    decoder: nn.Module | None,
    options: ModelOptions,
) -> Denoiser:
    return NetworkDenoiser(
        net,
        process.noise,
        shape,
        process.prediction.removeprefix("-"),
        process.network_time,
        decoder=decoder,
        dtype=options.torch_dtype,
    )


def _conditioning(
    pipeline: Any, inner: Any, kind: str, spec: str, options: ModelOptions, table: Tensor | None
) -> Conditioning:
    if kind in ("unet", "dit", "class unet"):
        return _class_conditioning(inner, kind, spec, options, table)
    lines = prompt_lines(options, spec)
    if options.conditional is False and options.guided:
        conditional_on(True, options, spec)
    prompts = Prompts(pipeline, kind, lines, options, spec)
    name = "none" if options.conditional is False else conditioning_name("prompts", options)
    # encoded only where it is used: text encoders are large
    null = prompts.null() if options.guided else None
    return Conditioning(name, prompts.draw, null=null, prompts=prompts.texts)


def _class_conditioning(
    inner: Any, kind: str, spec: str, options: ModelOptions, table: Tensor | None
) -> Conditioning:
    """The conditioning on classes, with the last embedding as the null class.

    A UNet2DModel does not tell whether it was trained with a null class. Its last embedding is
    taken as the null class only if guidance is asked for.
    """
    if kind == "unet":
        count = _class_count(inner)
        null = count - 1
        count = null if options.guided or options.conditional is False else count
    else:
        null = count = int(inner.config.num_embeds_ada_norm) if table is None else len(table) - 1
    found = on_classes(max(count, 0), options, spec)
    if found.guidance is None and null >= 0:
        return Conditioning("none", draw_class([null]))
    return replace(found, null=torch.tensor([null]))


def _class_count(unet: Any) -> int:
    return int(getattr(unet.config, "num_class_embeds", None) or 0)


class Null:
    """A function that replaces a condition by the null condition, repeated to its batch."""

    def __init__(self, null: Condition) -> None:
        self.null = null

    def __call__(self, condition: Condition) -> Condition:
        """The null condition, with the structure, batch, device and dtype of `condition`."""
        if isinstance(condition, Tensor) and isinstance(self.null, Tensor):
            return self.null.to(condition).expand_as(condition)
        assert isinstance(condition, Mapping)
        assert isinstance(self.null, Mapping)
        null = self.null
        return {name: null[name].to(value).expand_as(value) for name, value in condition.items()}


def _hash(
    inner: nn.Module,
    vae: nn.Module | None,
    scheduler: Any,
    table: Tensor | None,
    rectified: bool,
    spec: str,
) -> str:
    tensors = {f"network.{name}": tensor for name, tensor in inner.state_dict().items()}
    if vae is not None:
        tensors.update({f"decoder.{name}": tensor for name, tensor in vae.state_dict().items()})
    if table is not None:
        tensors["classes"] = table
    base, reversed_flow = underlying(scheduler, spec)
    config: dict[str, Any] = {"scheduler": _settings(base), "network": _settings(inner)}
    if vae is not None:
        config["decoder"] = _settings(vae)  # the scale of the latents stands there alone
    if rectified or reversed_flow:
        config["rectified"] = True
    return weights_hash(tensors, config)


def _settings(part: Any) -> dict[str, Any]:
    """The configuration of a pipeline's part, without versions and paths."""
    return {key: value for key, value in part.config.items() if not key.startswith("_")}


def _encoders(pipeline: Any) -> dict[str, Tensor]:
    """The weights that turn prompts into conditions."""
    found = {}
    for name in ("text_encoder", "text_encoder_2", "text_encoder_3"):
        part = getattr(pipeline, name, None)
        if isinstance(part, nn.Module):
            found |= {f"{name}.{key}": tensor for key, tensor in part.state_dict().items()}
    return found
