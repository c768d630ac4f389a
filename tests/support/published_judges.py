"""The networks of HPSv2 and ImageReward at a tiny size, with the names of their authors' files.

They are written in plain PyTorch from the layouts that the papers and files describe, so that what
`ld3_dist` makes of the files is compared with something else than `transformers`.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import ClassVar, cast

import torch
from tiny_pipelines import clip_tokenizer, seeded
from torch import Tensor, nn
from torch.nn import functional


class Block(nn.Module):
    """A layer of a transformer, normalised before its parts, as OpenCLIP names them."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        layers = {"c_fc": nn.Linear(width, 3 * width), "gelu": nn.GELU()}
        layers["c_proj"] = nn.Linear(3 * width, width)
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """Layers of a transformer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList([Block(width, heads) for _ in range(2)])

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for block in self.resblocks:
            x = block(x, mask)
        return x


class Vision(nn.Module):
    """The half of a CLIP that looks at images, of 28 pixels in patches of 14."""

    def __init__(self, width: int, heads: int, length: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 14, 14, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn(5, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = Transformer(width, heads)
        self.proj = nn.Parameter(torch.randn(width, length))

    def forward(self, x: Tensor) -> Tensor:
        patches = self.conv1(x).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(x), 1, -1)
        x = self.ln_pre(torch.cat([first, patches], 1) + self.positional_embedding)
        return self.ln_post(self.transformer(x)[:, 0]) @ self.proj


class OpenClip(nn.Module):
    """A CLIP as OpenCLIP keeps it: images of 28 pixels, texts of 16 tokens."""

    SIDE, LENGTH, VOCABULARY = 28, 16, 190
    CONFIG: ClassVar = {"vision_cfg": {"head_width": 40}, "text_cfg": {"heads": 2}}

    def __init__(self) -> None:
        super().__init__()
        self.visual = Vision(80, 2, 8)
        self.token_embedding = nn.Embedding(self.VOCABULARY, 64)
        self.positional_embedding = nn.Parameter(torch.randn(self.LENGTH, 64))
        self.transformer = Transformer(64, 2)
        self.ln_final = nn.LayerNorm(64)
        self.text_projection = nn.Parameter(torch.randn(64, 8))
        self.logit_scale = nn.Parameter(torch.tensor(2.0))

    def cosines(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        """Prepared images [B, 3, 28, 28] and token numbers [B, 16] -> [B]; 0 fills up a text."""
        causal = torch.full((self.LENGTH, self.LENGTH), -torch.inf).triu(1)
        text = self.token_embedding(tokens) + self.positional_embedding
        text = self.ln_final(self.transformer(text, causal))
        last = text[torch.arange(len(text)), tokens.argmax(-1)]  # the end has the largest number
        return functional.cosine_similarity(self.visual(pixels), last @ self.text_projection)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Attention of [B, N, F] to [B, M, F] with a mask [B, M] of what is there."""
    split = [x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v)]
    there = None if mask is None else mask[:, None, None, :].bool()
    found = functional.scaled_dot_product_attention(*split, attn_mask=there)
    return found.transpose(1, 2).flatten(2)


def named(**parts: nn.Module) -> nn.ModuleDict:
    """Modules below a name."""
    return nn.ModuleDict(parts)


class Reward(nn.Module):
    """ImageReward at a tiny size: images of 32 pixels in patches of 16."""

    SIDE, WIDTH, HEADS = 32, 128, 2
    WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "two", "dogs", "red")

    def __init__(self) -> None:
        super().__init__()
        w = self.WIDTH
        image = nn.Module()
        image.cls_token = nn.Parameter(torch.randn(1, 1, w))
        image.pos_embed = nn.Parameter(torch.randn(1, 5, w))
        image.patch_embed = named(proj=nn.Conv2d(3, w, 16, 16))
        image.blocks = nn.ModuleList([self._image_layer() for _ in range(2)])
        image.norm = nn.LayerNorm(w, eps=1e-6)
        text = nn.Module()
        words = nn.Embedding(len(self.WORDS) + 2, w)
        text.embeddings = named(word_embeddings=words, position_embeddings=nn.Embedding(40, w))
        text.embeddings["LayerNorm"] = nn.LayerNorm(w, eps=1e-12)
        text.encoder = named(layer=nn.ModuleList([self._text_layer() for _ in range(2)]))
        parts = {"visual_encoder": image, "text_encoder": text, "text_proj": nn.Linear(w, 8)}
        self.blip = nn.ModuleDict(parts)
        layers = [nn.Linear(w, 16), nn.Dropout(0.2), nn.Linear(16, 1)]
        self.mlp = named(layers=nn.Sequential(*layers))

    def _image_layer(self) -> nn.Module:
        w = self.WIDTH
        norms = {f"norm{i}": nn.LayerNorm(w, eps=1e-6) for i in (1, 2)}
        attention = named(qkv=nn.Linear(w, 3 * w), proj=nn.Linear(w, w))
        inner = named(fc1=nn.Linear(w, 2 * w), fc2=nn.Linear(2 * w, w))
        return named(**norms, attn=attention, mlp=inner)

    def _text_layer(self) -> nn.Module:
        w = self.WIDTH

        def output(width: int) -> nn.ModuleDict:
            return named(dense=nn.Linear(width, w), LayerNorm=nn.LayerNorm(w, eps=1e-12))

        def attention() -> nn.ModuleDict:
            own = {name: nn.Linear(w, w) for name in ("query", "key", "value")}
            return nn.ModuleDict({"self": named(**own), "output": output(w)})

        inner = named(dense=nn.Linear(w, 96))
        both = {"attention": attention(), "crossattention": attention()}
        return named(**both, intermediate=inner, output=output(96))

    def rewards(self, pixels: Tensor, tokens: Tensor, there: Tensor) -> Tensor:
        """Prepared images [B, 3, 32, 32], token numbers and mask [B, N] -> [B]."""
        image, text = self.blip["visual_encoder"], self.blip["text_encoder"]
        x = image.patch_embed["proj"](pixels).flatten(2).transpose(1, 2)
        x = torch.cat([image.cls_token.expand(len(x), -1, -1), x], 1) + image.pos_embed
        for layer in image.blocks:
            q, k, v = layer["attn"]["qkv"](layer["norm1"](x)).chunk(3, -1)
            x = x + layer["attn"]["proj"](attend(q, k, v, self.HEADS))
            y = functional.gelu(layer["mlp"]["fc1"](layer["norm2"](x)))
            x = x + layer["mlp"]["fc2"](y)
        patches = image.norm(x)
        at = text.embeddings
        places = at["position_embeddings"].weight[: tokens.shape[1]]
        h = at["LayerNorm"](at["word_embeddings"](tokens) + places)
        for layer in text.encoder["layer"]:
            h = self._read(layer["attention"], h, h, there)
            h = self._read(layer["crossattention"], h, patches, None)
            y = functional.gelu(layer["intermediate"]["dense"](h))
            h = layer["output"]["LayerNorm"](h + layer["output"]["dense"](y))
        raw = self.mlp["layers"](h[:, 0]).squeeze(-1)
        return (raw - 0.16717362830052426) / 1.0333394966054072

    def _read(self, part: nn.Module, h: Tensor, other: Tensor, there: Tensor | None) -> Tensor:
        own, after = cast(nn.ModuleDict, part)["self"], cast(nn.ModuleDict, part)["output"]
        found = attend(own["query"](h), own["key"](other), own["value"](other), self.HEADS, there)
        return after["LayerNorm"](h + after["dense"](found))


def tiny(kind: type[nn.Module], seed: int = 0) -> nn.Module:
    """A network of one of these kinds, with random weights and biases."""
    torch.manual_seed(seed)
    net = kind().eval().requires_grad_(False)
    for parameter in net.parameters():
        if parameter.ndim:
            parameter += 0.05 * torch.randn_like(parameter)
    return net


def save_clip(place: Path, side: int = 12, length: int = 8) -> None:
    """Write a CLIPModel as Hugging Face saves it, for images of `side` pixels."""
    from transformers import CLIPConfig, CLIPModel

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2}
    text = {**sizes, "vocab_size": 190, "max_position_embeddings": 16}
    text |= {"bos_token_id": 188, "eos_token_id": 189}
    vision = {**sizes, "image_size": side, "patch_size": 4}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=length)
    seeded(CLIPModel, config=config).save_pretrained(place)
    clip_tokenizer(place / "words").save_pretrained(place)


def save_hps(place: Path) -> None:
    """Write a checkpoint in the form of HPSv2's, with the tokenizer's files beside it."""
    state = tiny(OpenClip).state_dict()
    torch.save({"epoch": 3, "name": "tiny", "state_dict": state}, place / "HPS_v2.pt")
    (place / "open_clip_config.json").write_text(json.dumps({"model_cfg": OpenClip.CONFIG}))
    clip_tokenizer(place / "words").save_pretrained(place)


def bert_words(folder: Path) -> None:
    """The file of BERT's tokenizer with a few words."""
    (folder / "vocab.txt").write_text("\n".join(Reward.WORDS) + "\n")
