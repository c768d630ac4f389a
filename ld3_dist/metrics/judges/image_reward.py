"""ImageReward: a model of people's choices between images of the same prompt.

    h          the first token of a text encoder that reads the prompt and attends to the image
    reward     (MLP(h) - m) / s

    m, s       0.1672 and 1.0333: mean and standard deviation of the rewards on its authors' data

A folder holds ImageReward.pt, as its authors publish it (or the same tensors as *.safetensors), and
the files of BERT's tokenizer. The networks are BLIP's, as in `transformers`; their sizes follow
from the weights. Images are cut to squares, and prompts to 35 tokens.

Source: Xu et al. 2023, arXiv 2304.05977, and the code that comes with the weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...core.errors import InputError
from ...core.features import Judge
from ...core.installed import read_weights
from ...models.weights import sha256_of
from .images import pixels
from .layers import linear_layers
from .words import check_words

CENTRE, SPREAD = 0.16717362830052426, 1.0333394966054072
LONGEST = 35
"""Tokens of a prompt that are read."""
CHUNK = 16
HEAD_WIDTH = 64

_IMAGE, _TEXT, _HEAD = "blip.visual_encoder.", "blip.text_encoder.", "mlp.layers."
_OF_IMAGE = (
    (r"^cls_token$", "embeddings.class_embedding"),
    (r"^pos_embed$", "embeddings.position_embedding"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"^blocks\.", "encoder.layers."),
    (r"\.attn\.proj\.", ".self_attn.projection."),
    (r"\.attn\.", ".self_attn."),
    (r"\.norm([12])\.", r".layer_norm\1."),
    (r"^norm\.", "post_layernorm."),
)
"""Names of the image's encoder as published, and their parts in `transformers`."""

_REMEDY = (
    "download ImageReward.pt of THUDM/ImageReward into the folder, and the tokenizer's files "
    "beside it: hf download bert-base-uncased --include 'tokenizer*' vocab.txt --local-dir DIR"
)


def image_reward(folder: str, device: str) -> Judge:
    """The judge `image_reward:DIR`.

    Raises InputError without the folder, without `transformers`, and for weights of another model.
    """
    what, place = f"metric 'image_reward:{folder}'", Path(folder).expanduser()
    files = [*sorted(place.glob("*.pt")), *sorted(place.glob("*.safetensors"))]
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "no *.pt and no *.safetensors"
        raise InputError(f"{what}: {place} has {found}; one file is expected: {_REMEDY}")
    file = files[0]
    weights = read_weights(file, f"{what}: {file.name}", _REMEDY)
    try:
        tokenizer = _tokenizer(place)
        seen, read, head = _networks(weights)
        check_words(tokenizer, place, read.config.vocab_size)
    except ImportError as error:
        raise InputError(
            f"{what}: needs the extra 'diffusers': pip install 'ld3_dist[diffusers]'"
        ) from error
    except Exception as error:  # the libraries raise anything, by the kind of damage
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{what}: {file.name}: cannot be opened ({reason}); {_REMEDY}") from error
    for network in (seen, read, head):
        network.to(device)
    side = int(seen.config.image_size)

    @torch.no_grad()
    def score(x: Tensor, prompts: Sequence[str]) -> Tensor:
        """Images [B, 1 or 3, H, W] in [-1, 1] and their prompts -> rewards [B]."""
        found = []
        for i in range(0, len(x), CHUNK):
            image = pixels(x[i : i + CHUNK].to(device), side)
            tokens = tokenizer(
                list(prompts[i : i + CHUNK]),
                padding=True,
                truncation=True,
                max_length=LONGEST,
                return_tensors="pt",
            ).to(device)
            patches = seen(pixel_values=image).last_hidden_state  # [B, patches, F]
            h = read(
                input_ids=tokens["input_ids"],
                attention_mask=tokens["attention_mask"],
                encoder_hidden_states=patches,
                encoder_attention_mask=torch.ones(patches.shape[:2], device=device),
            ).last_hidden_state[:, 0]
            found.append((head(h).squeeze(-1) - CENTRE) / SPREAD)
        return torch.cat(found)

    return Judge(sha256_of(file), score)


def _tokenizer(place: Path) -> Any:
    from transformers import BertTokenizer

    return BertTokenizer.from_pretrained(place, local_files_only=True)


def _networks(weights: Mapping[str, Tensor]) -> tuple[Any, Any, nn.Module]:
    """The encoders of image and text, and the layers on top; KeyError where one is missing."""
    from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

    image, text, top = (_part(weights, prefix) for prefix in (_IMAGE, _TEXT, _HEAD))
    patch = image["patch_embed.proj.weight"]
    width, positions = patch.shape[0], image["pos_embed"].shape[1]
    seen = BlipVisionModel(
        BlipVisionConfig(
            hidden_size=width,
            intermediate_size=image["blocks.0.mlp.fc1.weight"].shape[0],
            num_hidden_layers=_count(image, "blocks."),
            num_attention_heads=max(1, width // HEAD_WIDTH),
            image_size=patch.shape[-1] * round((positions - 1) ** 0.5),
            patch_size=patch.shape[-1],
            layer_norm_eps=1e-6,
        )
    )
    seen.load_state_dict(_renamed(image))
    vocabulary, hidden = text["embeddings.word_embeddings.weight"].shape
    read = BlipTextModel(
        BlipTextConfig(
            vocab_size=vocabulary,
            hidden_size=hidden,
            encoder_hidden_size=width,
            intermediate_size=text["encoder.layer.0.intermediate.dense.weight"].shape[0],
            num_hidden_layers=_count(text, "encoder.layer."),
            num_attention_heads=max(1, hidden // HEAD_WIDTH),
            max_position_embeddings=len(text["embeddings.position_embeddings.weight"]),
            **dict.fromkeys(("bos_token_id", "eos_token_id", "sep_token_id")),
        ),
        add_pooling_layer=False,
    )
    text.pop("embeddings.position_ids", None)
    read.load_state_dict(text, strict=False)
    missing = sorted(set(dict(read.named_parameters())) - set(text))
    if missing:
        raise KeyError(f"{_TEXT}{missing[0]}")
    return seen.eval().requires_grad_(False), read.eval().requires_grad_(False), linear_layers(top)


def _part(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors below a prefix, in float32."""
    return {k.removeprefix(prefix): v.float() for k, v in weights.items() if k.startswith(prefix)}


def _renamed(image: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = {}
    for name, value in image.items():
        for pattern, ours in _OF_IMAGE:
            name = re.sub(pattern, ours, name)
        found[name] = value
    return found


def _count(weights: Mapping[str, Tensor], prefix: str) -> int:
    """The number of layers below a prefix."""
    return len({k.removeprefix(prefix).split(".")[0] for k in weights if k.startswith(prefix)})
