"""CLIP models as OpenCLIP saves them, and HPSv2 with them, turned into `transformers`' CLIPModel.

A folder of OpenCLIP's holds open_clip_config.json beside the weights. HPSv2 is a single .pt file, a
ViT-H-14 with the key `state_dict`; its sizes follow from the weights' shapes, and its numbers of
attention heads from HEAD_WIDTH. OpenCLIP keeps queries, keys and values as one matrix, and both
projections transposed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...core.errors import InputError

HEAD_WIDTH = {1280: 80, 1408: 88, 1664: 104}
"""Width of a head of the image's transformer where it is not 64, by the transformer's width."""

_TOWERS = (
    ("visual.transformer.resblocks.", "vision_model.encoder.layers."),
    ("transformer.resblocks.", "text_model.encoder.layers."),
)
_PARTS = (
    ("ln_1.", "layer_norm1."),
    ("ln_2.", "layer_norm2."),
    ("attn.out_proj.", "self_attn.out_proj."),
    ("mlp.c_fc.", "mlp.fc1."),
    ("mlp.c_proj.", "mlp.fc2."),
)
_WHOLE = {
    "logit_scale": "logit_scale",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
_TRANSPOSED = {
    "text_projection": "text_projection.weight",
    "visual.proj": "visual_projection.weight",
}


def in_open_clip(weights: Mapping[str, Tensor]) -> bool:
    """Tell if weights have OpenCLIP's names."""
    return "visual.conv1.weight" in weights and "token_embedding.weight" in weights


def renamed(weights: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    """Weights with OpenCLIP's names -> the same with those of `transformers`.

    Raises InputError for a name that no CLIP with two transformers has.
    """
    found: dict[str, Tensor] = {}
    for name, value in weights.items():
        if name in _WHOLE:
            found[_WHOLE[name]] = value
        elif name in _TRANSPOSED:
            found[_TRANSPOSED[name]] = value.T.contiguous()
        elif name != "attn_mask":
            found |= _of_layer(name, value, what)
    return found


def _of_layer(name: str, value: Tensor, what: str) -> dict[str, Tensor]:
    for theirs, ours in _TOWERS:
        number, _, rest = name.removeprefix(theirs).partition(".")
        if not name.startswith(theirs) or not number.isdigit():
            continue
        if match := re.fullmatch(r"attn\.in_proj_(weight|bias)", rest):
            parts = zip("qkv", value.chunk(3), strict=True)
            place = f"{ours}{number}.self_attn"
            return {f"{place}.{letter}_proj.{match[1]}": part for letter, part in parts}
        for their_part, part in _PARTS:
            if rest.startswith(their_part):
                return {f"{ours}{number}.{part}{rest.removeprefix(their_part)}": value}
    raise InputError(f"{what}: its key {name!r} belongs to no CLIP of two transformers")


def sizes(weights: Mapping[str, Tensor], given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of CLIPConfig that follow from weights with OpenCLIP's names.

    Args:
        given: `model_cfg` of open_clip_config.json; empty if there is none.
    """
    patches = weights["visual.conv1.weight"]
    positions, width = weights["visual.positional_embedding"].shape
    vocabulary, text_width = weights["token_embedding.weight"].shape
    vision_cfg, text_cfg = given.get("vision_cfg", {}), given.get("text_cfg", {})
    head_width = vision_cfg.get("head_width", HEAD_WIDTH.get(width, 64))
    heads = text_cfg.get("heads", max(1, text_width // 64))
    act = "quick_gelu" if given.get("quick_gelu") else "gelu"
    vision = _tower(weights, "visual.", width, max(1, width // head_width), act)
    vision |= {"patch_size": patches.shape[-1]}
    vision |= {"image_size": patches.shape[-1] * round((positions - 1) ** 0.5)}
    text = _tower(weights, "", text_width, heads, act) | {"vocab_size": vocabulary}
    text |= {"max_position_embeddings": len(weights["positional_embedding"])}
    projection = weights["text_projection"].shape[1]
    return {"vision_config": vision, "text_config": text, "projection_dim": projection}


def _tower(
    weights: Mapping[str, Tensor], prefix: str, width: int, heads: int, act: str
) -> dict[str, Any]:
    layers = f"{prefix}transformer.resblocks."
    numbers = {
        name.removeprefix(layers).split(".")[0] for name in weights if name.startswith(layers)
    }
    inner = weights[f"{layers}0.mlp.c_fc.weight"].shape[0]
    found = {"hidden_size": width, "num_hidden_layers": len(numbers)}
    found |= {"num_attention_heads": heads, "intermediate_size": inner}
    return found | {"hidden_act": act}
