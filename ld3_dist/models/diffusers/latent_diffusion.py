"""Original latent-diffusion checkpoints (Rombach et al. 2022: LSUN, class-conditional ImageNet) as
diffusers folders.

Such a model is a `.ckpt` and a `.yaml`. The network is the same one that diffusers has, under other
names: its levels lie in one list, input_blocks and output_blocks, with n residual blocks a level
and a resampling between two levels:

    down level l, block j     input_blocks[1 + l (n + 1) + j]        its downsampling
                              input_blocks[(l + 1) (n + 1)]
    up level l, block j       output_blocks[l (n + 1) + j]           its upsampling       the last
                              entry of its block n

The networks are built from the YAML, and every tensor of theirs asks for its original by name.
Averaged weights (`model_ema`, whose names have lost their dots) are taken where the checkpoint has
them.

A class-conditional model attends to one token, a row of the table of class embeddings, the last row
of which stands for no class. No pipeline of diffusers has such a table: it lies beside the
networks, in CLASS_EMBEDDING."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ...core.errors import InputError
from ..torch_files import read_tensors_of

CLASS_EMBEDDING = "class_embedding.safetensors"
NETWORK = "model.diffusion_model."
UNSUPPORTED = (
    "resblock_updown",
    "use_scale_shift_norm",
    "use_new_attention_order",
    "num_classes",
    "n_embed",
)

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
    """Write the model of a checkpoint (.ckpt or .safetensors) and its YAML as a folder for
    `diffusers:FOLDER`.

    Raises InputError for files that cannot be read, an architecture that is none of these, and
    tensors that are missing or have another shape, naming them; nothing is written then."""
    try:
        import diffusers
    except ImportError as error:
        raise InputError(
            "converting needs the extra 'diffusers': pip install 'ld3_dist[diffusers]'"
        ) from error
    settings = _settings(config)
    if folder.exists():
        raise InputError(f"{folder} exists already; remove it, or name another folder")
    tensors = read_tensors_of(checkpoint)
    with torch.device("meta"):
        unet, vq = _unet(settings, config), _autoencoder(settings, config)
    classes = _class_table(settings, tensors, checkpoint)
    blocks = int(settings["unet_config"]["params"]["num_res_blocks"])
    _fill(
        unet,
        _averaged(tensors),
        lambda name: f"{NETWORK}{unet_name(name, blocks, unet)}",
        checkpoint,
    )
    _fill(vq, tensors, lambda name: f"first_stage_model.{autoencoder_name(name, vq)}", checkpoint)
    scheduler = diffusers.DDIMScheduler(
        num_train_timesteps=int(settings.get("timesteps", 1000)), beta_schedule="scaled_linear",
        beta_start=float(settings["linear_start"]), beta_end=float(settings["linear_end"]),
        clip_sample=False, set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip
    diffusers.LDMPipeline(vqvae=vq, unet=unet, scheduler=scheduler).save_pretrained(folder)
    if classes is not None:
        save_file({"weight": classes}, folder / CLASS_EMBEDDING)
    return folder


def read_class_embedding(folder: Path) -> Tensor | None:
    """The table of class embeddings [classes + 1, width] of a converted folder; None where it has
    none.
    """
    file = folder / CLASS_EMBEDDING
    if not file.is_file():
        return None
    try:
        return load_file(file)["weight"].float()
    except Exception as error:  # whatever a damaged file makes the library raise
        raise InputError(f"{file}: is damaged ({error}); convert the checkpoint again") from error


def unet_name(name: str, blocks: int, unet: nn.Module) -> str:
    """Where the original keeps a parameter of the diffusers U-Net, below `model.diffusion_model`."""
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
    return f"{at}.{0 if kind == 'resnets' else 1}.{_part(rest, kind == 'resnets', kind == 'attentions')}"


def autoencoder_name(name: str, vq: nn.Module) -> str:
    """Where the original keeps a parameter of the diffusers VQModel, below `first_stage_model`."""
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
    """The name inside a residual or attention block; that of a transformer block is the same in
    both.
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
    """Load every tensor of a network from its original; InputError names the first that is missing
    or does not fit.
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
    """q, k or v of a joint projection [3 C, ...] that lists, head after head, that head's q, k and
    v.
    """
    heads, size = int(attention.heads), len(qkv) // 3
    return qkv.reshape(heads, 3, size // heads, -1)[:, which].reshape(size, *qkv.shape[1:])


def _averaged(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The U-Net's tensors by their names, with the averaged values where there are any."""
    return {
        name: tensors.get("model_ema." + name.removeprefix("model.").replace(".", ""), tensor)
        for name, tensor in tensors.items()
        if name.startswith(NETWORK)
    }


def _settings(config: Path) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(config.read_text(encoding="utf-8"))["model"]["params"]
        for key in ("unet_config", "first_stage_config"):
            settings[key]["params"].items()
        for key in ("linear_start", "linear_end"):
            float(settings[key])
    except OSError as error:
        raise InputError(
            f"{config}: cannot be read ({error.strerror}); give the YAML of the checkpoint"
        ) from error
    except (
        yaml.YAMLError,
        UnicodeDecodeError,
        KeyError,
        TypeError,
        AttributeError,
        ValueError,
    ) as error:
        raise InputError(
            f"{config}: not the YAML of a latent-diffusion model ({type(error).__name__}: {error})"
        ) from error
    return settings


def _unet(settings: Mapping[str, Any], config: Path) -> Any:
    from diffusers import UNet2DConditionModel, UNet2DModel

    p = settings["unet_config"]["params"]
    for key in UNSUPPORTED:
        if p.get(key):
            raise InputError(
                f"{config}: unet_config has {key}: {p[key]!r}, which has no counterpart in "
                f"diffusers"
            )
    levels, transformer = len(p["channel_mult"]), bool(p.get("use_spatial_transformer"))
    widths = [int(p["model_channels"]) * m for m in p["channel_mult"]]
    attends = [2**level in p["attention_resolutions"] for level in range(levels)]
    kind = "CrossAttn" if transformer else "Attn"
    down = [f"{kind}DownBlock2D" if a else "DownBlock2D" for a in attends]
    up = [f"{kind}UpBlock2D" if a else "UpBlock2D" for a in reversed(attends)]
    shared = {
        "sample_size": p["image_size"],
        "in_channels": p["in_channels"],
        "out_channels": p["out_channels"],
        "layers_per_block": p["num_res_blocks"],
        "block_out_channels": widths,
        "down_block_types": down,
        "up_block_types": up,
        "freq_shift": 0,
        "flip_sin_to_cos": True,
    }
    head, heads = p.get("num_head_channels", -1), p.get("num_heads", -1)
    if not transformer:
        if head == -1 and heads != 1:
            raise InputError(
                f"{config}: unet_config has num_heads: {heads}; only num_head_channels, or 1 "
                f"head, is known"
            )
        return UNet2DModel(**shared, norm_eps=1e-5, attention_head_dim=None if head == -1 else head)
    # what UNet2DConditionModel calls attention_head_dim is the number of heads
    count: Any = [heads if head == -1 else width // head for width in widths]
    return UNet2DConditionModel(
        **shared, cross_attention_dim=p["context_dim"], attention_head_dim=count,
        transformer_layers_per_block=int(p.get("transformer_depth", 1)),
    )  # fmt: skip


def _autoencoder(settings: Mapping[str, Any], config: Path) -> Any:
    from diffusers import VQModel

    p = settings["first_stage_config"]["params"]
    d = p["ddconfig"]
    if "n_embed" not in p or d.get("attn_resolutions") or d.get("double_z"):
        raise InputError(
            f"{config}: its first stage is not a VQ autoencoder without attention; only those "
            f"are known"
        )
    levels = len(d["ch_mult"])
    return VQModel(
        in_channels=d["in_channels"],
        out_channels=d["out_ch"],
        latent_channels=d["z_channels"],
        vq_embed_dim=p["embed_dim"],
        num_vq_embeddings=p["n_embed"],
        layers_per_block=d["num_res_blocks"],
        block_out_channels=tuple(d["ch"] * m for m in d["ch_mult"]),
        sample_size=d["resolution"],
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        scaling_factor=float(settings.get("scale_factor", 1.0)),
    )


def _class_table(
    settings: Mapping[str, Any], tensors: Mapping[str, Tensor], file: Path
) -> Tensor | None:
    """The class embeddings [classes + 1, width]; None for an unconditional model."""
    p = settings["unet_config"]["params"]
    if not p.get("use_spatial_transformer"):
        return None
    name = "cond_stage_model.embedding.weight"
    if name not in tensors:
        raise InputError(
            f"{file}: tensor {name!r} is missing: only models conditioned on classes are converted"
        )
    table = tensors[name].float()
    if table.ndim != 2 or table.shape[1] != p["context_dim"]:
        raise InputError(
            f"{file}: tensor {name!r} has shape {tuple(table.shape)}, need [classes, "
            f"{p['context_dim']}]"
        )
    return table.contiguous()
