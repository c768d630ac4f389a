"""The networks of a pipeline's folder, each with every tensor that its class needs.

The libraries give values of their own to tensors that the files lack: transformers draws them at
random and diffusers leaves them empty. Both say so in a log at most, and a text encoder that was
drawn at random still makes images. Networks are therefore loaded one by one, and refused here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from ..weights import check_whole

NETWORKS = (
    "unet", "transformer", "vae", "vqvae", "text_encoder", "text_encoder_2", "text_encoder_3"
)  # fmt: skip
"""Parts that have weights."""


def load_networks(
    folder: Path, index: Mapping[str, Any], absent: Collection[str], variant: str | None
) -> dict[str, Any]:
    """The networks of a pipeline by the names of their parts, on the CPU.

    Parts whose classes neither diffusers nor transformers has are left to the pipeline itself.

    Args:
        index: the content of model_index.json.
        absent: parts that are not loaded.
        variant: the set of weight files; parts without it have plain ones.

    Raises InputError naming the part and the tensors that are missing or not finite.
    """
    found = {}
    for part in NETWORKS:
        named = index.get(part)
        if part in absent or not isinstance(named, list | tuple) or len(named) != 2:
            continue
        kind = _class(*named)
        if kind is None:
            continue
        place = folder / part
        chosen = {"variant": variant} if variant in variants_of(place) - {None} else {}
        loaded, told = kind.from_pretrained(str(place), output_loading_info=True, **chosen)
        check_whole(loaded, told.get("missing_keys", ()), place)
        found[part] = loaded
    return found


def _class(library: Any, name: Any) -> Any:
    """A class of networks of diffusers or transformers; None for any other."""
    if library not in ("diffusers", "transformers") or not isinstance(name, str):
        return None
    kind = getattr(import_module(library), name, None)
    return kind if isinstance(kind, type) and issubclass(kind, nn.Module) else None


def variants_of(part: Path) -> set[str | None]:
    """Variants of the weight files in a part's folder, None for the plain ones.

    "model.fp16.safetensors" and "model.fp16-00001-of-00002.safetensors" are of variant fp16.
    """
    found: set[str | None] = set()
    for file in part.iterdir():
        if file.suffix not in (".safetensors", ".bin"):
            continue
        _, _, variant = file.stem.partition(".")
        found.add(variant.partition("-")[0] or None)
    return found
