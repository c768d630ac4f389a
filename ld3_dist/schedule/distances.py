"""Distances by name for a model, as `distance:` in YAML and `--distance` give them."""

from __future__ import annotations

from collections.abc import Mapping

from ..core.combined import Resized, Weighted, is_sum, resized_of, terms_of, written
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
    name: str | Mapping[str, float],
    model: Model,
    device: str,
    *,
    trunk: str | None = None,
    upsample: bool = False,
) -> Distance:
    """A distance by name, on a device, for the images of a model.

    Args:
        name: of a distance; a mapping of names to weights stands for their weighted sum.
        trunk: weights file of the network of LPIPS; by default in torch.hub's folder.
        upsample: enlarge images that are too small for LPIPS.

    Raises InputError for an unknown name, a model without the extractor that the distance needs,
    images that are too small, and weights that are missing.
    """
    name = name if isinstance(name, str) else written(name)
    distance_entry(name)
    return _open(name, model, device, min(model.image_shape[-2:]), trunk, upsample)


def _open(
    name: str, model: Model, device: str, side: int, trunk: str | None, upsample: bool
) -> Distance:
    """The distance of a name, for images whose smallest side has `side` pixels."""
    if is_sum(name):
        terms = [
            (weight, _open(term, model, device, side, trunk, upsample))
            for weight, term in terms_of(name)
        ]
        return Weighted(name, terms).to(device)
    resized, inner = resized_of(name)
    if resized is not None:
        opened = _open(inner, model, device, resized, trunk, upsample)
        distance: Distance = Resized(name, resized, opened).to(device)
    else:
        distance = _plain(name, model, device, side, trunk, upsample)
    if name.startswith((PREFIX, "resized:")) or "@" in name:
        check_distance(distance, model.image_shape, device)
    return distance


def _plain(
    name: str, model: Model, device: str, side: int, trunk: str | None, upsample: bool
) -> Distance:
    entry = distance_entry(name)
    if side < entry.min_side and not upsample:
        raise InputError(
            f"{name} needs images of at least {entry.min_side} pixels a side, those of {model.id} "
            f"have {side}; enlarge them (lpips: {{upsample: true}}; --upsample), or use l2 or "
            "feature"
        )
    wanted = extractor_of_distance(name)
    extractor = open_extractor(wanted, model, device) if wanted else None
    return make_distance(name, extractor, trunk=trunk, upsample=upsample).to(device)
