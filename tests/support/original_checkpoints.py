"""Tiny latent-diffusion checkpoints in their original form: a Lightning .ckpt and its YAML, written
from its layout.
"""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import torch
import yaml

from ld3_dist.models.diffusers.latent_diffusion import (
    autoencoder_name,
    build_autoencoder,
    build_unet,
    unet_name,
)
from ld3_dist.models.diffusers.original_settings import OriginalSettings, parse_settings

CLASSES, WIDTH = 6, 12
UNET = {
    "image_size": 8,
    "in_channels": 3,
    "out_channels": 3,
    "model_channels": 32,
    "attention_resolutions": [2, 4],
    "num_res_blocks": 2,
    "channel_mult": [1, 2, 2],
}
ON_CLASSES = {
    **UNET,
    "num_heads": 1,
    "use_spatial_transformer": True,
    "transformer_depth": 1,
    "context_dim": WIDTH,
}
UNCONDITIONAL = {**UNET, "num_head_channels": 16}
CODER = {
    "double_z": False,
    "z_channels": 3,
    "resolution": 16,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [],
    "dropout": 0.0,
}
OUTSIDE = "model.diffusion_model."


def settings(unet: dict[str, Any]) -> dict[str, Any]:
    return {
        "linear_start": 0.0015,
        "linear_end": 0.0195,
        "timesteps": 1000,
        "unet_config": {"params": unet},
        "first_stage_config": {"params": {"embed_dim": 3, "n_embed": 16, "ddconfig": CODER}},
    }


def parsed(params: dict[str, Any]) -> OriginalSettings:
    return parse_settings({"params": params}, Path("test"))


def networks(params: dict[str, Any]) -> tuple[Any, Any]:
    """(U-Net, autoencoder) of the settings below `model.params`."""
    told = parsed(params)
    return build_unet(told.unet), build_autoencoder(told.coder, told.scale_factor)


def joint(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int) -> torch.Tensor:
    """The rows of a joint projection: of each head its q, its k, its v."""
    rows = []
    for head in range(heads):
        for part in (q, k, v):
            size = len(part) // heads
            rows += list(part[head * size : (head + 1) * size])
    return torch.stack(rows)


def originals(unet: Any, vq: Any, blocks: int) -> dict[str, torch.Tensor]:
    """The tensors of diffusers networks under the names of an original checkpoint."""
    made: dict[str, torch.Tensor] = {}
    tensors = unet.state_dict()
    for name, value in tensors.items():
        origin = unet_name(name, blocks, unet)
        if ".qkv." in origin:
            start, _, leaf = name.rpartition(".to_")[0], "", name.rpartition(".")[2]
            heads = unet.get_submodule(start).heads
            value = joint(*(tensors[f"{start}.to_{part}.{leaf}"] for part in "qkv"), heads)
        if ".qkv." in origin or (origin.endswith("proj_out.weight") and value.ndim == 2):
            value = value[..., None] if origin.endswith("weight") else value
        made[OUTSIDE + origin] = value
    for name, value in vq.state_dict().items():
        origin = autoencoder_name(name, vq)
        attends = "attn_1" in origin and "norm" not in origin and origin.endswith("weight")
        made[f"first_stage_model.{origin}"] = value[:, :, None, None] if attends else value
    return made


def write(
    folder: Path,
    unet: dict[str, Any],
    averaged: bool = False,
    params: dict[str, Any] | None = None,
    buffers: dict[str, torch.Tensor] | None = None,
    **extra: Any,
) -> tuple[Path, Path, Any, Any]:
    """(checkpoint, YAML, the U-Net that is in it, the autoencoder).

    params: more settings below `model.params`.  buffers: more tensors of the checkpoint.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    told = {**settings(unet), **(params or {})}
    net, vq = networks(told)
    with torch.no_grad():
        for parameter in (*net.parameters(), *vq.parameters()):
            parameter += 0.05 * torch.randn_like(parameter)
    tensors = originals(net, vq, unet["num_res_blocks"])
    if "context_dim" in unet:
        tensors["cond_stage_model.embedding.weight"] = torch.randn(CLASSES + 1, WIDTH)
    if averaged:
        for name in [name for name in tensors if name.startswith(OUTSIDE)]:
            tensors["model_ema." + name[len("model.") :].replace(".", "")] = tensors[name]
            tensors[name] = torch.zeros_like(tensors[name])
    tensors |= buffers or {}
    callback = lightning_callback()
    torch.save(
        {"state_dict": tensors, "epoch": 3, "callbacks": {"x": callback}, **extra},
        folder / "model.ckpt",
    )
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": {"params": told}}))
    return folder / "model.ckpt", folder / "config.yaml", net.eval(), vq.eval()


def lightning_callback() -> Any:
    """An object of a package that is not installed, as training frameworks leave them in their
    checkpoints.
    """
    module = types.ModuleType("pytorch_lightning.callbacks")
    made = type("ModelCheckpoint", (), {"__module__": module.__name__})
    module.ModelCheckpoint = made  # type: ignore[attr-defined]
    sys.modules["pytorch_lightning"] = types.ModuleType("pytorch_lightning")
    sys.modules[module.__name__] = module
    value = made()
    value.best = 0.5
    return value
