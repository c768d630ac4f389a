"""Distances by name for a model: what `distance:` in YAML and `--distance` stand for."""

from __future__ import annotations

from ..core.distance import MIN_SIDE, Distance, make_distance
from ..core.errors import InputError
from ..metrics.extractors import open_extractor
from ..models import Model


def open_distance(
    name: str, model: Model, device: str, *, trunk: str | None = None, upsample: bool = False
) -> Distance:
    """A distance by name, on a device, for the images of a model.

    Args:
        trunk: weights file of the network of LPIPS; by default in torch.hub's folder.
        upsample: enlarge images that are too small for LPIPS.

    Raises InputError for an unknown name, a model without the extractor that the distance needs,
    images that are too small, and weights that are missing.
    """
    side, least = min(model.image_shape[-2:]), MIN_SIDE.get(name.partition("-")[2] or "vgg", 1)
    if name.startswith("lpips") and side < least and not upsample:
        raise InputError(
            f"{name} needs images of at least {least} pixels a side, those of {model.id} have "
            f"{side}; enlarge them (lpips: {{upsample: true}}; --upsample), or use l2 or feature"
        )
    extractor = open_extractor("auto", model, device) if name == "feature" else None
    maps = extractor.maps if extractor else None
    return make_distance(name, maps, trunk=trunk, upsample=upsample).to(device)
