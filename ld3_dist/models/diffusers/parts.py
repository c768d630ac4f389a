"""Checks of a pipeline's parts: they fit each other, and the network needs no further input.

What an index and configurations tell is checked before any weights are read (`check_network_class`,
`check_not_quantised`).

A network can be sampled from noise alone if it takes as many channels as it gives, and no condition
except classes or text. Networks for inpainting, editing, upscaling, super-resolution, depth or
control get an image beside the sample; their configuration shows it, and they are refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ...core.errors import InputError

EXTRA = ("controlnet", "adapter", "t2i_adapter", "prior_prior", "depth_estimator", "unet_2")
"""Parts that give the network another condition."""

NETWORKS = {
    "UNet2DModel": "unet",
    "UNet2DConditionModel": "text unet",
    "DiTTransformer2DModel": "dit",
    "Transformer2DModel": "dit",
    "SD3Transformer2DModel": "sd3",
    "FluxTransformer2DModel": "flux",
}
"""Classes of diffusers that can be opened, and the names of their kinds here."""

OF_VIDEO = ("3D", "Video", "Temporal", "Motion")
OF_SOUND = ("1D", "Audio", "Music")
"""What names of classes hold whose samples are no images."""

LARGEST = 65_536
"""Largest side of a sample in a configuration."""


def check_network_class(index: Mapping[str, Any], spec: str) -> None:
    """Refuse a network that cannot be called, by the class that the pipeline's index names.

    Raises InputError with the reason and what can be done.
    """
    for part in ("transformer", "unet"):
        named = index.get(part)
        name = named[1] if isinstance(named, (list, tuple)) and len(named) == 2 else None
        if not isinstance(name, str) or name in NETWORKS:
            continue
        if any(word in name for word in OF_VIDEO):
            reason = "its samples are video or volumes, and only images can be sampled here"
        elif any(word in name for word in OF_SOUND):
            reason = "its samples are no images"
        else:
            reason = "how it takes its time, its text and its latents is not written here"
        raise InputError(
            f"model {spec!r}: its {part} is a {name}: {reason}; known are {', '.join(NETWORKS)}. "
            f"To learn for it, call it in a file of your own and give python:FILE.py:NAME"
        )


def check_not_quantised(told: Any, place: str) -> None:
    """Refuse a network whose weights a library quantises.

    They cannot be converted to the number type that is asked for, and gradients do not pass through
    all of them.

    Args:
        told: the value of `quantization_config` in its configuration, None without one.
    """
    if told:
        method = told.get("quant_method") if isinstance(told, Mapping) else None
        raise InputError(
            f"{place}: its weights are quantised (quantization_config, {method or 'no method'}), "
            f"and no gradients pass through such layers; give the full weights, with dtype: float8 "
            f"or int8 if they do not fit the memory"
        )


def check_parts(pipeline: Any, inner: Any, kind: str, vae: Any, spec: str) -> None:
    """Refuse a pipeline whose network needs more than noise, a time, and classes or text.

    Args:
        inner: the network.
        kind: its name in NETWORKS.
        vae: the autoencoder or None.

    Raises InputError naming the part, the option and its value.
    """
    for part in EXTRA:
        if getattr(pipeline, part, None) is not None:
            raise InputError(
                f"model {spec!r}: its part {part!r} gives the network a condition beside text; "
                f"give the pipeline without it"
            )
    _check_channels(inner, kind, vae, spec)
    if vae is not None:
        _check_latent_scale(vae, spec)
    part = "transformer" if getattr(pipeline, "transformer", None) is inner else "unet"
    for key, allowed in _ALLOWED.get(kind, {}).items():
        value = getattr(inner.config, key, None)
        if value not in allowed:
            raise InputError(
                f"model {spec!r}: {part}/config.json has {key}: {value!r}: its network needs an "
                f"input that is not known here; only pipelines from noise and text, or noise and "
                f"classes, can be opened"
            )
    if kind == "dit" and not isinstance(getattr(inner.config, "num_embeds_ada_norm", None), int):
        raise InputError(
            f"model {spec!r}: {part}/config.json has no num_embeds_ada_norm: its network is no DiT "
            f"with classes"
        )
    if getattr(pipeline, "text_encoder_2", None) is not None and kind == "text unet":
        _check_sizes_of_xl(pipeline, inner, spec)


_ALLOWED: dict[str, dict[str, tuple[Any, ...]]] = {
    "unet": {
        "class_embed_type": (None,),
        "time_embedding_type": ("positional", None),
    },
    "text unet": {
        "class_embed_type": (None,),
        "num_class_embeds": (None,),
        "addition_embed_type": (None, "text_time"),
        "encoder_hid_dim": (None,),
        "encoder_hid_dim_type": (None,),
        "time_cond_proj_dim": (None,),
    },
    "dit": {"norm_type": ("ada_norm_zero", None)},
}


def _check_channels(inner: Any, kind: str, vae: Any, spec: str) -> None:
    takes = inner.config.in_channels
    gives = getattr(inner.config, "out_channels", None) or takes
    whole = isinstance(takes, int) and isinstance(gives, int) and takes > 0
    if not whole or gives not in (takes, 2 * takes):
        raise InputError(
            f"model {spec!r}: its network takes {takes} channels and gives {gives}; networks for "
            f"inpainting, editing, upscaling or super-resolution, which get an image beside the "
            f"sample, cannot be opened"
        )
    latents = None if vae is None else getattr(vae.config, "latent_channels", None)
    channels = takes // 4 if kind == "flux" else takes
    if latents is not None and latents != channels:
        raise InputError(
            f"model {spec!r}: its network has samples of {channels} channels, its autoencoder "
            f"latents of {latents}: the parts are of two models"
        )


def _check_latent_scale(vae: Any, spec: str) -> None:
    """Refuse an autoencoder whose scale or shift of latents is no number."""
    config = vae.config
    for key, lowest in (("scaling_factor", 0.0), ("shift_factor", -math.inf)):
        value = getattr(config, key, None)
        if value is not None and not (is_number(value) and value > lowest):
            raise InputError(
                f"model {spec!r}: {key} of its autoencoder is {value!r}; it must be a finite "
                f"number{' above 0' if lowest == 0 else ''}"
            )
    for key in ("latents_mean", "latents_std"):
        value = getattr(config, key, None)
        good = isinstance(value, (list, tuple)) and all(map(is_number, value))
        if value is not None and not (good and len(value) in (1, config.latent_channels)):
            raise InputError(
                f"model {spec!r}: {key} of its autoencoder is {value!r}; it must be a list of "
                f"{config.latent_channels} finite numbers"
            )


def is_number(value: Any) -> bool:
    """True for a finite number of a configuration, which true and false are not."""
    return type(value) in (int, float) and math.isfinite(value)


def _check_sizes_of_xl(pipeline: Any, inner: Any, spec: str) -> None:
    """Refuse an SDXL refiner, whose network gets five numbers instead of six sizes."""
    config, encoder = inner.config, pipeline.text_encoder_2
    pooled = getattr(encoder.config, "projection_dim", 0)
    wanted = 6 * (config.addition_time_embed_dim or 0) + pooled
    if config.addition_embed_type != "text_time" or (
        config.projection_class_embeddings_input_dim != wanted
    ):
        raise InputError(
            f"model {spec!r}: its network does not take the six sizes of SDXL "
            f"(projection_class_embeddings_input_dim="
            f"{config.projection_class_embeddings_input_dim}, need {wanted}); a refiner cannot be "
            f"opened, give the base model"
        )


def sample_size(inner: Any, spec: str) -> tuple[int, int]:
    """(height, width) of the samples that the network was trained on, before packing.

    Raises InputError if the configuration has no size or one that makes no sense.
    """
    size = getattr(inner.config, "sample_size", None)
    if size is None:
        raise InputError(
            f"model {spec!r} states no image size (sample_size); give size: [height, width]"
        )
    pair = [size, size] if isinstance(size, int) else size
    good = isinstance(pair, (list, tuple)) and len(pair) == 2
    if not good or not all(type(side) is int and 0 < side <= LARGEST for side in pair):
        raise InputError(
            f"model {spec!r}: sample_size={size!r} of its network is no size; give size: "
            f"[height, width]"
        )
    return pair[0], pair[1]
