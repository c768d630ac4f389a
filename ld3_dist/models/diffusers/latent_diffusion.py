"""Original latent-diffusion checkpoints as diffusers folders (Rombach et al. 2022).

The models are unconditional ones of LSUN and class-conditional ones of ImageNet. Each is a `.ckpt`
and a `.yaml`. diffusers has the same networks under other names. In the original, all levels lie in
one list, input_blocks or output_blocks, with n residual blocks per level and a resampling between
two levels:

    down level l, block j     input_blocks[1 + l (n + 1) + j]
    its downsampling          input_blocks[(l + 1) (n + 1)]
    up level l, block j       output_blocks[l (n + 1) + j]
    its upsampling            the last entry of its block n

The networks are built from the YAML, and each of their tensors is looked up by its original name.
If the checkpoint has averaged weights (`model_ema`, whose names have lost their dots), these are
taken.

A class-conditional model attends to one token. The token is a row of the table of class embeddings;
the last row stands for no class. No pipeline of diffusers has such a table, so it lies beside the
networks, in CLASS_EMBEDDING.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ...core.errors import InputError
from ..torch_files import read_tensors_of
from .original_process import latent_scale, make_scheduler
from .original_settings import CoderSettings, OriginalSettings, UNetSettings, read_settings

CLASS_EMBEDDING = "class_embedding.safetensors"
NETWORK = "model.diffusion_model."

_RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
_CODER_ENDS = {
    "conv_norm_out": "norm_out",
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0": "mid.attn_1",
}


def convert_original(checkpoint: Path, config: Path, folder: Path) -> Path:
    """Write the model of a checkpoint and its YAML as a folder for `diffusers:FOLDER`.

    Args:
        checkpoint: a .ckpt or .safetensors file.

    Raises InputError for files that cannot be read, for an architecture that is not of this kind,
    and
    for tensors that are missing or have another shape, naming them; nothing is written then.
    """
    try:
        import diffusers
    except ImportError as error:
        raise InputError(
            "converting needs the extra 'diffusers': pip install 'ld3_dist[diffusers]'"
        ) from error
    settings = read_settings(config)
    if folder.exists():
        raise InputError(f"{folder} exists already; remove it, or name another folder")
    tensors = read_tensors_of(checkpoint)
    scheduler = make_scheduler(settings, tensors, checkpoint)
    scale = latent_scale(settings, tensors, checkpoint)
    classes = _class_table(settings, tensors, checkpoint)
    unet, vq = _build(settings, scale, len(tensors), config)
    blocks = settings.unet.num_res_blocks
    _fill(
        unet,
        _averaged(tensors),
        lambda name: f"{NETWORK}{unet_name(name, blocks, unet)}",
        checkpoint,
    )
    _fill(vq, tensors, lambda name: f"first_stage_model.{autoencoder_name(name, vq)}", checkpoint)
    diffusers.LDMPipeline(vqvae=vq, unet=unet, scheduler=scheduler).save_pretrained(folder)
    if classes is not None:
        save_file({"weight": classes}, folder / CLASS_EMBEDDING)
    return folder


def _build(settings: OriginalSettings, scale: float, count: int, config: Path) -> tuple[Any, Any]:
    """The two networks on the meta device, if they have no more tensors than the file.

    Args:
        count: number of tensors in the checkpoint.

    Raises InputError for settings that make no network.
    """
    u, c = settings.unet, settings.coder
    blocks = len(u.channel_mult) * (2 * u.num_res_blocks + 1) * u.transformer_depth
    blocks += len(c.ch_mult) * (2 * c.num_res_blocks + 1)
    if blocks > count:
        raise InputError(
            f"{config}: its networks have at least {blocks} blocks, the checkpoint has {count} "
            f"tensors; the YAML is not the checkpoint's (channel_mult, num_res_blocks, "
            f"transformer_depth, ch_mult)"
        )
    try:
        with torch.device("meta"):
            return build_unet(u), build_autoencoder(c, scale)
    except (ValueError, TypeError, RuntimeError, ZeroDivisionError, AssertionError) as error:
        raise InputError(
            f"{config}: its unet_config and first_stage_config make no network of diffusers: "
            f"{error}"
        ) from error


def read_class_embedding(folder: Path) -> Tensor | None:
    """The table of class embeddings [classes + 1, width] of a converted folder.

    It is None if the folder has no table.
    """
    file = folder / CLASS_EMBEDDING
    if not file.is_file():
        return None
    try:
        return load_file(file)["weight"].float()
    except Exception as error:  # a damaged file makes the library raise anything
        raise InputError(f"{file}: is damaged ({error}); convert the checkpoint again") from error


def unet_name(name: str, blocks: int, unet: nn.Module) -> str:
    """The original name of a parameter of the U-Net, below `model.diffusion_model`."""
    found = re.match(
        r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)", name
    )
    if found is None:
        start = next((key for key in _ENDS if name.startswith(f"{key}.")), None)
        if start is None:
            return name
        rest = name[len(start) + 1 :]
        part = _part(
            rest, start.startswith("mid_block.resnets"), start.startswith("mid_block.attentions")
        )
        return f"{_ENDS[start]}.{part}"
    side, level, kind, j, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
    if kind == "downsamplers":
        return f"input_blocks.{(level + 1) * (blocks + 1)}.0.{rest.replace('conv', 'op', 1)}"
    at = (
        f"input_blocks.{1 + level * (blocks + 1) + j}"
        if side == "down"
        else f"output_blocks.{level * (blocks + 1) + j}"
    )
    if kind == "upsamplers":
        block: Any = unet.get_submodule(f"up_blocks.{level}")
        attends = getattr(block, "attentions", None) is not None
        return f"output_blocks.{level * (blocks + 1) + blocks}.{2 if attends else 1}.{rest}"
    residual = kind == "resnets"
    return f"{at}.{0 if residual else 1}.{_part(rest, residual, kind == 'attentions')}"


def autoencoder_name(name: str, vq: nn.Module) -> str:
    """The original name of a parameter of the VQModel, below `first_stage_model`."""
    side, _, rest = name.partition(".")
    if side not in ("encoder", "decoder"):
        return name
    found = re.match(
        r"(?:down|up)_blocks\.(\d+)\.(resnets|downsamplers|upsamplers)\.(\d+)\.(.*)", rest
    )
    if found is None:
        start = next((key for key in _CODER_ENDS if rest.startswith(f"{key}.")), None)
        rest = rest if start is None else f"{_CODER_ENDS[start]}{rest[len(start) :]}"
    else:
        coder: Any = vq.get_submodule(side)
        level = int(found[1]) if side == "encoder" else len(coder.up_blocks) - 1 - int(found[1])
        at = f"{'down' if side == 'encoder' else 'up'}.{level}"
        rest = (
            f"{at}.block.{found[3]}.{found[4]}"
            if found[2] == "resnets"
            else f"{at}.{found[2][:-3]}e.{found[4]}"
        )
    for ours, theirs in (
        ("conv_shortcut", "nin_shortcut"),
        ("group_norm", "norm"),
        ("to_out.0", "proj_out"),
    ):
        rest = rest.replace(f"{ours}.", f"{theirs}.")
    return f"{side}." + re.sub(r"\.to_([qkv])\.", r".\1.", rest)


def _part(rest: str, residual: bool, attention: bool) -> str:
    """The name inside a residual or attention block.

    Inside a transformer block, names are the same in both.
    """
    layer, _, leaf = rest.rpartition(".")
    if residual:
        return f"{_RESIDUAL[layer]}.{leaf}"
    if attention and not layer.startswith(("transformer_blocks", "proj_", "norm")):
        plain = {
            "group_norm": "norm",
            "to_out.0": "proj_out",
            "to_q": "qkv",
            "to_k": "qkv",
            "to_v": "qkv",
        }
        return f"{plain[layer]}.{leaf}"
    return rest


def _fill(net: nn.Module, tensors: Mapping[str, Tensor], source: Any, file: Path) -> None:
    """Load every tensor of a network from its original.

    Raises InputError naming the first tensor that is missing or does not fit.
    """
    filled = {}
    for name, wanted in net.state_dict().items():
        origin = source(name)
        if origin not in tensors:
            raise InputError(
                f"{file}: tensor {origin!r} is missing; the file is damaged, or not the model of "
                f"its YAML"
            )
        value = tensors[origin].float()
        which = re.search(r"\.to_([qkv])\.", name)
        if which and ".qkv." in f".{origin}":
            value = _head_major(
                value, "qkv".index(which[1]), net.get_submodule(name[: which.start()])
            )
        if value.numel() != wanted.numel():
            need, found = tuple(wanted.shape), tuple(value.shape)
            raise InputError(
                f"{file}: tensor {origin!r} has shape {found}, the network of the YAML needs {need}"
            )
        filled[name] = value.reshape(wanted.shape)  # 1x1 convolutions are linear layers there
    net.load_state_dict(filled, assign=True)


def _head_major(qkv: Tensor, which: int, attention: Any) -> Tensor:
    """q, k or v of a joint projection [3 C, ...].

    The projection lists the heads one after the other, each with its own q, k and v.
    """
    heads, size = int(attention.heads), len(qkv) // 3
    return qkv.reshape(heads, 3, size // heads, -1)[:, which].reshape(size, *qkv.shape[1:])


def _averaged(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The U-Net's tensors by name, with averaged values if there are any."""
    return {
        name: tensors.get("model_ema." + name.removeprefix("model.").replace(".", ""), tensor)
        for name, tensor in tensors.items()
        if name.startswith(NETWORK)
    }


def build_unet(u: UNetSettings) -> Any:
    """The U-Net of diffusers that equals the original."""
    from diffusers import UNet2DConditionModel, UNet2DModel

    widths = [u.model_channels * m for m in u.channel_mult]
    attends = [2**level in u.attention_resolutions for level in range(len(widths))]
    kind = "Attn" if u.context_dim is None else "CrossAttn"
    down = [f"{kind}DownBlock2D" if a else "DownBlock2D" for a in attends]
    up = [f"{kind}UpBlock2D" if a else "UpBlock2D" for a in reversed(attends)]
    shared: dict[str, Any] = {
        "sample_size": u.image_size,
        "in_channels": u.in_channels,
        "out_channels": u.out_channels,
        "layers_per_block": u.num_res_blocks,
        "block_out_channels": widths,
        "down_block_types": down,
        "up_block_types": up,
        "freq_shift": 0,
        "flip_sin_to_cos": True,
    }
    width = None if u.num_head_channels == -1 else u.num_head_channels
    if u.context_dim is None:
        return UNet2DModel(**shared, norm_eps=1e-5, attention_head_dim=width)
    # What UNet2DConditionModel calls attention_head_dim is the number of heads.
    heads: Any = [u.num_heads if width is None else channels // width for channels in widths]
    return UNet2DConditionModel(
        **shared,
        cross_attention_dim=u.context_dim,
        attention_head_dim=heads,
        transformer_layers_per_block=u.transformer_depth,
    )


def build_autoencoder(c: CoderSettings, scale: float) -> Any:
    """The VQModel of diffusers that equals the original.

    Args:
        scale: of the latents.
    """
    from diffusers import VQModel

    levels = len(c.ch_mult)
    return VQModel(
        in_channels=c.in_channels,
        out_channels=c.out_ch,
        latent_channels=c.z_channels,
        vq_embed_dim=c.embed_dim,
        num_vq_embeddings=c.n_embed,
        layers_per_block=c.num_res_blocks,
        block_out_channels=tuple(c.ch * m for m in c.ch_mult),
        sample_size=c.resolution,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        scaling_factor=scale,
    )


def _class_table(
    settings: OriginalSettings, tensors: Mapping[str, Tensor], file: Path
) -> Tensor | None:
    """The class embeddings [classes + 1, width]; None for an unconditional model."""
    width = settings.unet.context_dim
    if width is None:
        return None
    name = "cond_stage_model.embedding.weight"
    if name not in tensors:
        raise InputError(
            f"{file}: tensor {name!r} is missing: only models conditioned on classes are converted"
        )
    table = tensors[name].float()
    rows = settings.classes or len(table)
    if table.ndim != 2 or tuple(table.shape) != (rows, width):
        raise InputError(
            f"{file}: tensor {name!r} has shape {tuple(table.shape)}, the YAML needs "
            f"[{settings.classes or 'classes'}, {width}]"
        )
    return table.contiguous()
