"""Images against their prompts, in the space of a CLIP model from local weights (`transformers`).

    extractor clip:DIR     features [B, F] of unit length; DIR holds a CLIPModel as Hugging Face
                           saves it: CLIP itself, or a model trained on choices of people in the
                           same format (PickScore, HPSv2 as converted)
    metric clip_score      mean over samples of 100 max(cos(image, prompt), 0)
                           (Hessel et al. 2021, arXiv 2104.08718)
    metric preference      mean of exp(logit_scale) cos(image, prompt), the score of a preference
                           model (Kirstain et al. 2023, arXiv 2305.01569)
    metric aesthetic       mean of LAION's linear layers on the image's features, where DIR holds
                           their weights (AESTHETIC); no prompt enters

Every sample is compared with its own prompt, and sample i has the same prompt and noise under every
schedule: `prompt_scores` gives the values one by one, which compare paired. Only safetensors and,
for the linear layers, a file of tensors alone are read. ImageReward has a format of its own, and no
entry here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from ..core.errors import InputError
from ..core.features import Extractor, Reference, TextSpace
from ..core.installed import read_weights
from ..models.weights import sha256_of
from .scores import NotMeasured, Samples

AESTHETIC = ("aesthetic.safetensors", "sac+logos+ava1-l14-linearMSE.pth")
"""Names of the file of LAION's layers, looked for in this order."""

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""CLIP's own, where a folder has no preprocessor_config.json."""

CHUNK = 32
"""Images, or prompts, of one call."""


def open_clip(folder: str, device: str = "cpu") -> Extractor:
    """The extractor `clip:DIR`.

    Raises InputError without the folder, without `transformers`, and for weights of another model.
    """
    place = Path(folder).expanduser()
    what = f"extractor 'clip:{folder}'"
    if not (place / "config.json").is_file():
        raise InputError(
            f"{what}: there is no CLIP model (no config.json); download one into a folder first, "
            "e.g. with: hf download openai/clip-vit-base-patch32 --local-dir DIR"
        )
    weights = sorted(place.glob("*.safetensors"))
    weights = [file for file in weights if file.name not in AESTHETIC]
    if not weights:
        raise InputError(
            f"{what}: it has no *.safetensors; nothing else is read, as pickles can hold code"
        )
    model, tokenizer = _load(place, what)
    model = model.to(device)
    side, mean, std = _preprocessing(place, model)
    head, files = _head(place, what)

    @torch.no_grad()
    def features(x: Tensor) -> Tensor:
        """Images [B, 1 or 3, H, W] in [-1, 1] -> [B, F] of unit length."""
        pixels = [_pixels(part, side, mean, std) for part in x.split(CHUNK)]
        found = [model.visual_projection(model.vision_model(p).pooler_output) for p in pixels]
        return functional.normalize(torch.cat(found), dim=-1)

    @torch.no_grad()
    def embed(prompts: Sequence[str]) -> Tensor:
        """Prompts [M] -> [M, F] of unit length, on the CPU."""
        found = []
        for i in range(0, len(prompts), CHUNK):
            given = tokenizer(
                list(prompts[i : i + CHUNK]), padding=True, truncation=True, return_tensors="pt"
            ).to(device)
            text = model.text_model(given["input_ids"], given["attention_mask"]).pooler_output
            found.append(model.text_projection(text))
        return functional.normalize(torch.cat(found).float().cpu(), dim=-1)

    scale = float(model.logit_scale.detach().exp())
    digest = " ".join(sha256_of(file) for file in [*weights, *files])
    space = TextSpace(embed, scale, head)
    return Extractor(f"clip:{place.name}", digest, features, differentiable=False, text=space)


def _load(place: Path, what: str) -> tuple[Any, Any]:
    try:
        from transformers import AutoTokenizer, CLIPModel
    except ImportError as error:
        raise InputError(
            f"{what}: needs the extra 'diffusers': pip install 'ld3_dist[diffusers]'"
        ) from error
    try:
        model: Any = CLIPModel.from_pretrained(place, local_files_only=True, use_safetensors=True)
        tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=True)
    except Exception as error:  # it raises anything, by the kind of damage
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise InputError(f"{what}: cannot be opened ({reason}); download it again") from error
    return model.eval().requires_grad_(False), tokenizer


def _preprocessing(place: Path, model: Any) -> tuple[int, Tensor, Tensor]:
    """Side of the images, mean and standard deviation of their channels."""
    given: dict[str, Any] = {}
    file = place / "preprocessor_config.json"
    if file.is_file():
        try:
            given = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{file}: is no JSON ({error}); download it again") from error
    side = int(model.config.vision_config.image_size)
    mean, std = given.get("image_mean", MEAN), given.get("image_std", STD)
    return side, torch.tensor(mean).view(1, 3, 1, 1), torch.tensor(std).view(1, 3, 1, 1)


def _pixels(x: Tensor, side: int, mean: Tensor, std: Tensor) -> Tensor:
    """Images in [-1, 1] -> [B, 3, side, side]: shorter side to `side`, centre cut, normalised."""
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise InputError(f"clip looks at images [B, 1 or 3, H, W], got {tuple(x.shape)}")
    x = ((x.float().clamp(-1, 1) + 1) / 2).expand(-1, 3, -1, -1)
    factor = side / min(x.shape[2:])
    size = [max(side, round(n * factor)) for n in x.shape[2:]]
    x = functional.interpolate(x, size=size, mode="bicubic", align_corners=False, antialias=True)
    top, left = ((n - side) // 2 for n in size)
    x = x[:, :, top : top + side, left : left + side].clamp(0, 1)
    return (x - mean.to(x)) / std.to(x)


def _head(place: Path, what: str) -> tuple[nn.Module | None, list[Path]]:
    """LAION's linear layers, and their file; nothing where it is not there."""
    file = next((place / name for name in AESTHETIC if (place / name).is_file()), None)
    if file is None:
        return None, []
    if file.suffix == ".safetensors":
        try:
            tensors = load_file(file)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{what}: {file.name} is damaged ({error}); copy it again") from error
    else:
        tensors = read_weights(file, f"{what}: {file.name}", "it")
    numbers = sorted({int(key.split(".")[-2]) for key in tensors if key.endswith(".weight")})
    prefix = next(iter(tensors)).rsplit(".", 2)[0]
    layers = []
    for i in numbers:
        weight, bias = (tensors[f"{prefix}.{i}.{name}"] for name in ("weight", "bias"))
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        layer.load_state_dict({"weight": weight.float(), "bias": bias.float()})
        layers.append(layer)
    return nn.Sequential(*layers).requires_grad_(False), [file]


def prompt_scores(samples: Samples) -> Tensor:
    """cos(image, prompt) of every sample [M]; NotMeasured without prompts or a space of texts."""
    if samples.text is None:
        raise NotMeasured("it needs the extractor clip:DIR, with a CLIP model in the folder DIR")
    if samples.prompts is None:
        raise NotMeasured("the model has no prompts")
    different = list(dict.fromkeys(samples.prompts))
    embedded = samples.text.embed(different)[[different.index(p) for p in samples.prompts]]
    return (functional.normalize(samples.features.float(), dim=-1) * embedded).sum(-1)


def clip_score(samples: Samples, reference: Reference | None) -> float:
    """The metric `clip_score`."""
    return float((100 * prompt_scores(samples)).clamp_min(0).mean())


def preference(samples: Samples, reference: Reference | None) -> float:
    """The metric `preference`."""
    cosines = prompt_scores(samples)
    assert samples.text is not None
    return samples.text.scale * float(cosines.mean())


def aesthetic(samples: Samples, reference: Reference | None) -> float:
    """The metric `aesthetic`."""
    if samples.text is None:
        raise NotMeasured("it needs the extractor clip:DIR, with a CLIP model in the folder DIR")
    head = samples.text.head
    if head is None:
        raise NotMeasured(f"the folder of the extractor has no {' or '.join(AESTHETIC)}")
    first = next(head.parameters())
    if first.shape[1] != samples.features.shape[1]:
        raise NotMeasured(
            f"its layers take {first.shape[1]} features, the extractor makes "
            f"{samples.features.shape[1]}"
        )
    return float(head(functional.normalize(samples.features.float(), dim=-1)).mean())
