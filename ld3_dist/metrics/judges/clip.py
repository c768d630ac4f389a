"""CLIP models from local weights: features of images, and scores of images against their prompts.

    f(image), g(prompt)     features of unit length, [B, F]
    cos(image, prompt)      f(image) . g(prompt), for each image and its own prompt

A folder holds a CLIPModel as Hugging Face saves it (CLIP itself, or PickScore), or weights as
OpenCLIP saves them (`open_clip`; HPSv2 is in that form), and the tokenizer's files. Of the weights
only safetensors and files of tensors alone are read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...core.errors import InputError
from ...core.features import Extractor, Judge
from ...core.installed import read_weights
from ...models.weights import check_whole, sha256_of
from .images import MEAN, STD, Fit, pixels
from .layers import linear_layers
from .open_clip import in_open_clip, renamed, sizes
from .words import check_words

AESTHETIC = ("aesthetic.safetensors", "sac+logos+ava1-l14-linearMSE.pth")
"""Names of the file of LAION's layers, looked for in this order."""

CHUNK = 32
"""Images, or prompts, of one call."""


@dataclass(frozen=True)
class Clip:
    """A CLIP model that is open.

    hash: of its weights.
    images: images [B, 1 or 3, H, W] in [-1, 1] and how they are made square -> [B, F].
    texts: prompts [B] -> [B, F], on the images' device.
    scale: exp(logit_scale), which makes a preference of a cosine.
    """

    hash: str
    images: Callable[[Tensor, Fit], Tensor]
    texts: Callable[[Sequence[str]], Tensor]
    scale: float

    def cosines(self, x: Tensor, prompts: Sequence[str], fit: Fit = "cut") -> Tensor:
        """Images [B, 1 or 3, H, W] and their prompts -> cos(image, prompt) [B]."""
        return (self.images(x, fit) * self.texts(prompts)).sum(-1)


def open_clip(folder: str, device: str = "cpu") -> Extractor:
    """The extractor `clip:DIR`.

    Raises InputError without the folder, without `transformers`, and for weights of another model.
    """
    clip, place = _open(folder, f"extractor 'clip:{folder}'", device), Path(folder)
    images = clip.images
    return Extractor(
        f"clip:{place.name}", clip.hash, lambda x: images(x, "cut"), differentiable=False
    )


def clip_score(folder: str, device: str) -> Judge:
    """The judge `clip_score:DIR`: 100 max(cos(image, prompt), 0)."""
    clip = _open(folder, f"metric 'clip_score:{folder}'", device)
    return Judge(clip.hash, lambda x, prompts: (100 * clip.cosines(x, prompts)).clamp_min(0))


def pick_score(folder: str, device: str) -> Judge:
    """The judge `pick_score:DIR`: exp(logit_scale) cos(image, prompt)."""
    clip = _open(folder, f"metric 'pick_score:{folder}'", device)
    return Judge(clip.hash, lambda x, prompts: clip.scale * clip.cosines(x, prompts))


def hpsv2(folder: str, device: str) -> Judge:
    """The judge `hpsv2:DIR`: cos(image, prompt); images that are no squares get black borders."""
    clip = _open(folder, f"metric 'hpsv2:{folder}'", device)
    return Judge(clip.hash, lambda x, prompts: clip.cosines(x, prompts, "pad"))


def aesthetic(folder: str, device: str) -> Judge:
    """The judge `aesthetic:DIR`: LAION's layers on the features of the image alone.

    Raises InputError if the folder does not hold the layers, or another size of them.
    """
    what = f"metric 'aesthetic:{folder}'"
    clip, (head, digest) = _open(folder, what, device), _head(Path(folder).expanduser(), what)
    head = head.to(device)
    length = clip.images(torch.zeros(1, 3, 8, 8, device=device), "cut").shape[1]
    taken = next(head.parameters()).shape[1]
    if length != taken:
        raise InputError(
            f"{what}: the layers take {taken} features, the CLIP model makes {length}; LAION's "
            "belong to openai/clip-vit-large-patch14"
        )
    score = torch.no_grad()(lambda x, prompts: head(clip.images(x, "cut")).squeeze(-1))
    return Judge(f"{clip.hash} {digest}", score, reads_prompts=False)


def _open(folder: str, what: str, device: str) -> Clip:
    """The model in a folder, open once for all that ask for it."""
    place = Path(folder).expanduser()
    try:
        files = _weights_in(place)
        return _opened(place, device, tuple((str(f), f.stat().st_mtime_ns) for f in files))
    except InputError as error:
        raise InputError(f"{what}: {error}") from error


@lru_cache(maxsize=2)
def _opened(place: Path, device: str, written: tuple[tuple[str, int], ...]) -> Clip:
    files = [Path(name) for name, _ in written]
    model, tokenizer = _load(place, files)
    model = model.to(device)
    side = int(model.config.vision_config.image_size)
    length = int(model.config.text_config.max_position_embeddings)
    mean, std = _normalisation(place)

    @torch.no_grad()
    def images(x: Tensor, fit: Fit) -> Tensor:
        found = [
            model.visual_projection(
                model.vision_model(pixels(part.to(device), side, fit, mean, std)).pooler_output
            )
            for part in x.split(CHUNK)
        ]
        return functional.normalize(torch.cat(found).float(), dim=-1)

    @torch.no_grad()
    def texts(prompts: Sequence[str]) -> Tensor:
        different = list(dict.fromkeys(prompts))
        found = []
        for i in range(0, len(different), CHUNK):
            given = tokenizer(
                different[i : i + CHUNK],
                padding=True,
                truncation=True,
                max_length=length,
                return_tensors="pt",
            ).to(device)
            text = model.text_model(given["input_ids"], given["attention_mask"]).pooler_output
            found.append(model.text_projection(text))
        features = functional.normalize(torch.cat(found).float(), dim=-1)
        return features[[different.index(prompt) for prompt in prompts]]

    digest = " ".join(sha256_of(file) for file in files)
    return Clip(digest, images, texts, float(model.logit_scale.detach().exp()))


def _weights_in(place: Path) -> list[Path]:
    """The files of weights in a folder; InputError if there are none that can be read."""
    if not place.is_dir():
        raise InputError(
            f"{place} is no folder; download a CLIP model into one first, e.g. with: "
            "hf download openai/clip-vit-base-patch32 --local-dir DIR"
        )
    safe = [file for file in sorted(place.glob("*.safetensors")) if file.name not in AESTHETIC]
    if (place / "config.json").is_file() and safe:
        return safe
    single = [*safe, *sorted(place.glob("*.pt"))]
    if len(single) == 1:
        return single
    if not single:
        raise InputError(
            f"{place} has no *.safetensors, and no *.pt of OpenCLIP; nothing else is read, "
            "as pickles can hold code"
        )
    names = ", ".join(file.name for file in single)
    raise InputError(f"{place} has {names} and no config.json; keep one file of weights")


def _load(place: Path, files: list[Path]) -> tuple[Any, Any]:
    """The model and its tokenizer."""
    try:
        from transformers import AutoTokenizer, CLIPModel, CLIPTokenizer
    except ImportError as error:
        raise InputError(
            "CLIP models need the extra 'diffusers': pip install 'ld3_dist[diffusers]'"
        ) from error
    hugging_face = (place / "config.json").is_file()
    try:
        if hugging_face:
            tokenizer: Any = AutoTokenizer.from_pretrained(place, local_files_only=True)
            loaded: Any = CLIPModel.from_pretrained(
                place, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
            model, missing = loaded[0], loaded[1]["missing_keys"]
        else:
            tokenizer = CLIPTokenizer.from_pretrained(place, local_files_only=True)
            model, missing = _from_open_clip(place, files[0], tokenizer), ()
        check_whole(model, missing, place)
    except InputError:
        raise
    except Exception as error:  # it raises anything, by the kind of damage
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        remedy = "download it again"
        if not hugging_face:
            remedy += ", and the tokenizer's files with it: hf download --local-dir DIR "
            remedy += "openai/clip-vit-base-patch32 tokenizer.json tokenizer_config.json "
            remedy += "vocab.json merges.txt"
        raise InputError(f"{place}: cannot be opened ({reason}); {remedy}") from error
    return model.eval().float().requires_grad_(False), tokenizer


def _from_open_clip(place: Path, file: Path, tokenizer: Any) -> nn.Module:
    """A CLIPModel with the weights of a file of OpenCLIP's."""
    from transformers import CLIPConfig, CLIPModel

    weights = read_weights(file, str(file), "download it again", "state_dict")
    if not in_open_clip(weights):
        raise InputError(
            f"{file}: holds no CLIP as OpenCLIP saves it; a model of Hugging Face's form needs "
            "its config.json"
        )
    config, given = place / "open_clip_config.json", {}
    if config.is_file():
        given = json.loads(config.read_text(encoding="utf-8")).get("model_cfg", {})
    arguments = sizes(weights, given)
    check_words(tokenizer, place, arguments["text_config"]["vocab_size"])
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    arguments["text_config"] |= special | {"pad_token_id": tokenizer.pad_token_id}
    model = CLIPModel(CLIPConfig(**arguments))
    model.load_state_dict(
        {key: value.float() for key, value in renamed(weights, str(file)).items()}
    )
    return model


def _normalisation(place: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the channels."""
    given: dict[str, Any] = {}
    file, theirs = place / "preprocessor_config.json", place / "open_clip_config.json"
    found = file if file.is_file() else theirs
    if found.is_file():
        try:
            given = json.loads(found.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{found}: is no JSON ({error}); download it again") from error
    short = given.get("preprocess_cfg", {})
    mean = given.get("image_mean") or short.get("mean") or MEAN
    return tuple(mean), tuple(given.get("image_std") or short.get("std") or STD)


def _head(place: Path, what: str) -> tuple[nn.Module, str]:
    """LAION's linear layers, and the hash of their file."""
    file = next((place / name for name in AESTHETIC if (place / name).is_file()), None)
    if file is None:
        raise InputError(
            f"{what}: the folder has no {' or '.join(AESTHETIC)}; copy LAION's layers into it"
        )
    tensors = read_weights(file, f"{what}: {file.name}", "copy it again")
    return linear_layers(tensors), sha256_of(file)
