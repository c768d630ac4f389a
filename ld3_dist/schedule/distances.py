"""Distances by name for a model, as `distance:` in YAML and `--distance` give them."""

from __future__ import annotations

from ..core.comparison import Distance
from ..core.distance import (
    check_distance,
    distance_entry,
    extractor_of_distance,
    make_distance,
)
from ..core.errors import InputError
from ..core.user_code import PREFIX
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
    entry = distance_entry(name)
    side = min(model.image_shape[-2:])
    if side < entry.min_side and not upsample:
        raise InputError(
            f"{name} needs images of at least {entry.min_side} pixels a side, those of {model.id} "
            f"have {side}; enlarge them (lpips: {{upsample: true}}; --upsample), or use l2 or "
            "feature"
        )
    wanted = extractor_of_distance(name)
    extractor = open_extractor(wanted, model, device) if wanted else None
    distance = make_distance(name, extractor, trunk=trunk, upsample=upsample).to(device)
    if name.startswith(PREFIX):
        check_distance(distance, model.image_shape, device)
    return distance
