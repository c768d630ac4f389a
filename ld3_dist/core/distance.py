"""The table of distances between samples, and how one is made from its name.

    l1, l2                  elementwise; for any samples, latents included
    feature                 on the features of the extractor that the model brings
    feature:EXTRACTOR       on the features of any other extractor, by its name
    feature:EXTRACTOR@LAYER on one layer alone: a name that the extractor gives it, or its number
    lpips-alex, lpips-vgg, lpips-squeeze
                            LPIPS; `lpips` alone is lpips-vgg
    st-lpips-alex, st-lpips-vgg
                            shift-tolerant LPIPS, whose networks can be installed (extra `features`)
    efficientnet-lite0      on the features of that classifier of photographs (extra `features`);
                            the same as feature:efficientnet-lite0
    python:FILE.py:NAME     your own
    l2+0.1*feature          weighted sums, and
    resized:PIXELS:NAME     images that are resized first: see `combined`

The formulas are in `comparison`, `lpips` and `st_lpips`. Your own distance is a function (a, b) ->
[B], or a factory that returns a Distance. It can also be registered:

    @distances.register("huber")
    def huber(a, b):
        return nn.functional.smooth_l1_loss(a, b, reduction="none").flatten(1).mean(1)
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from .combined import Resized, Weighted, is_sum, resized_of, terms_of
from .comparison import Distance, Elementwise, FeatureDistance, HasFeatures, Pairwise
from .errors import InputError, unknown
from .features import Extractor
from .lpips import LPIPS, MIN_SIDE
from .registry import Registry
from .st_lpips import WIDTHS, ShiftTolerantLPIPS
from .user_code import PREFIX


@dataclass(frozen=True)
class DistanceEntry:
    """The facts about a distance that are known before it is made.

    make: returns the distance, given the options of `make_distance` that `options` names.
    space: "any" for samples of any shape, latents included; "image" for decoded images alone.
    extractor: True for a distance on features, of the extractor that follows its name.
    own_extractor: the one extractor whose features it compares; "" where any may follow its name.
    min_side: smallest side of an image that it can take without `upsample`.
    trunk: name of the network in TRUNK_FILES whose weights it reads, if any.
    """

    make: Callable[..., Distance]
    options: tuple[str, ...] = ()
    space: Literal["any", "image"] = "any"
    extractor: bool = False
    own_extractor: str = ""
    min_side: int = 1
    trunk: str | None = None


distances: Registry[DistanceEntry | Callable[..., Any]] = Registry(
    "distance",
    ("feature:EXTRACTOR", "python:FILE.py:NAME", "resized:PIXELS:DISTANCE", "l2+0.1*feature"),
)

distances.register("l1", DistanceEntry(partial(Elementwise, 1)))
distances.register("l2", DistanceEntry(partial(Elementwise, 2)))
distances.register(
    "feature", DistanceEntry(FeatureDistance, ("extractor",), "image", extractor=True)
)
for _net, _side in MIN_SIDE.items():
    distances.register(
        f"lpips-{_net}",
        DistanceEntry(
            partial(LPIPS, _net),
            ("trunk", "random_trunk", "upsample"),
            "image",
            min_side=_side,
            trunk=_net,
        ),
    )
distances.register("lpips", distances.get("lpips-vgg"))
for _net in WIDTHS:
    distances.register(
        f"st-lpips-{_net}", DistanceEntry(partial(ShiftTolerantLPIPS, _net), space="image")
    )
distances.register(
    "efficientnet-lite0",
    DistanceEntry(
        FeatureDistance,
        ("extractor",),
        "image",
        extractor=True,
        own_extractor="efficientnet-lite0",
    ),
)


def distance_entry(name: str) -> DistanceEntry:
    """The entry of a name; a user's function or factory is wrapped in one.

    Raises InputError for an unknown name, and for `NAME:EXTRACTOR` where NAME has no extractor.
    """
    terms = terms_of(name)
    if is_sum(name):
        return _of_all([distance_entry(term) for _, term in terms])
    side, inner = resized_of(name)
    if side is not None:
        return replace(_of_all([distance_entry(inner)]), space="image", min_side=1)
    base, argument = _split(name)
    found = distances.get(base)
    if not isinstance(found, DistanceEntry):
        found = DistanceEntry(partial(_of_user, base, found))
    if argument and (found.own_extractor or not found.extractor):
        raise InputError(f"distance {name!r}: nothing follows {base}; write {base!r}")
    return found


def extractor_of_distance(name: str) -> str | None:
    """The name of the extractor whose features a distance compares; None if it needs none.

    `feature` alone means `feature:auto`, the extractor that the model brings. Of several terms that
    need one it is the first's.
    """
    entry, side = distance_entry(name), resized_of(name)
    if is_sum(name) or side[0] is not None:
        inner = [term for _, term in terms_of(name)] if is_sum(name) else [side[1]]
        return next((one for one in map(extractor_of_distance, inner) if one), None)
    return (entry.own_extractor or _split(name)[1] or "auto") if entry.extractor else None


def _of_all(entries: Sequence[DistanceEntry]) -> DistanceEntry:
    """The facts about a distance that is made of others."""
    return DistanceEntry(
        entries[0].make,
        tuple(dict.fromkeys(option for entry in entries for option in entry.options)),
        "image" if any(entry.space == "image" for entry in entries) else "any",
        extractor=any(entry.extractor for entry in entries),
        min_side=max(entry.min_side for entry in entries),
        trunk=next((entry.trunk for entry in entries if entry.trunk), None),
    )


def make_distance(
    name: str,
    extractor: Extractor | HasFeatures | Callable[[Tensor], Any] | None = None,
    trunk: Path | str | None = None,
    random_trunk: bool = False,
    upsample: bool = False,
) -> Distance:
    """The distance of a name.

    Args:
        extractor: makes the features that `feature` compares; see `extractor_of_distance`.
        trunk, random_trunk, upsample: see `LPIPS`.

    Raises InputError for an unknown name, an extractor that is missing or has no gradient, and a
    trunk file that is missing or is none.
    """
    given: dict[str, Any] = {"trunk": trunk, "random_trunk": random_trunk, "upsample": upsample}
    if is_sum(name):
        made = [(w, make_distance(term, extractor, **given)) for w, term in terms_of(name)]
        return Weighted(name, made)
    side, inner = resized_of(name)
    if side is not None:
        return Resized(name, side, make_distance(inner, extractor, **given))
    entry = distance_entry(name)
    if entry.extractor and extractor is None:
        raise InputError(
            f"distance {name!r} needs a feature extractor, and there is none for this model; "
            "name one (feature:EXTRACTOR), or use l2 or lpips"
        )
    if isinstance(extractor, Extractor):
        if entry.extractor and not extractor.differentiable:
            raise InputError(
                f"distance {name!r}: features of {extractor.name} have no gradient with respect "
                "to the images, so nothing can be learned from it; use l2 or lpips"
            )
        extractor = one_layer(extractor, _layer(name)[1], name)
    given |= {"extractor": extractor}
    made = entry.make(**{key: given[key] for key in entry.options})
    if entry.extractor:
        made.name = name
    return made


def check_distance(
    distance: Distance, shape: Sequence[int], device: torch.device | str = "cpu"
) -> None:
    """Try a distance on two samples of a shape, before any work depends on it.

    Raises InputError if the call fails, if the result is not [B] finite numbers, or if it has no
    gradient with respect to the samples.
    """
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(2, *shape, generator=generator) * 2 - 1 for _ in range(2))
    a = a.to(device).requires_grad_()
    try:
        found = distance(a, b.to(device))
    except InputError:
        raise
    except Exception as error:  # a user's code may raise anything
        raise InputError(
            f"distance {distance.name}: fails on samples {tuple(a.shape)} "
            f"({type(error).__name__}: {error})"
        ) from error
    if not isinstance(found, Tensor) or found.shape != (2,):
        got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise InputError(
            f"distance {distance.name}: made {got} of 2 samples; it must return one number for "
            "each, [B]"
        )
    if not torch.isfinite(found).all():
        raise InputError(f"distance {distance.name}: returned {found.tolist()}, not finite numbers")
    gradient = (
        torch.autograd.grad(found.sum(), a, allow_unused=True)[0] if found.requires_grad else None
    )
    if gradient is None:
        raise InputError(
            f"distance {distance.name}: has no gradient with respect to the samples, so nothing "
            "can be learned from it; compute it with differentiable torch operations"
        )


def _of_user(name: str, found: Callable[..., Any]) -> Distance:
    """A Distance from a plain function of two samples, or from a factory without arguments."""
    needed = [
        p
        for p in inspect.signature(found).parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if len(needed) == 2 and not isinstance(found, type):
        return Pairwise(name, found)
    if needed:
        raise InputError(
            f"distance {name!r}: takes {', '.join(p.name for p in needed)}; it must be a function "
            "(a, b) -> [B], or take nothing and return a ld3_dist.core.distance.Distance"
        )
    try:
        made = found()
    except Exception as error:  # it is somebody else's code: anything may come
        raise InputError(
            f"distance {name!r}: cannot be made ({type(error).__name__}: {error})"
        ) from error
    if not isinstance(made, Distance):
        raise InputError(
            f"distance {name!r}: returned {type(made).__name__}; a factory must return a "
            "ld3_dist.core.distance.Distance"
        )
    made.name = name
    return made


def one_layer(
    extractor: Extractor, layer: str | None, name: str
) -> Callable[[Tensor], Sequence[Tensor]]:
    """The function that makes the tensors which are compared: all layers, or one.

    Args:
        layer: a name in `extractor.layers`, or the number of a layer from 0; None for all.
        name: of the distance, for messages.

    Raises InputError for a layer that the extractor does not have.
    """
    if layer is None:
        return extractor.compared
    known = extractor.layers
    if known and layer not in known and not (layer.isdigit() and int(layer) < len(known)):
        raise InputError(f"distance {name!r}: {unknown('layer', layer, known)}")
    if not known and not layer.isdigit():
        raise InputError(
            f"distance {name!r}: {extractor.name} gives its layers no names; give a number from 0"
        )
    index = known.index(layer) if layer in known else int(layer)

    def compared(x: Tensor) -> Sequence[Tensor]:
        made = extractor.compared(x)
        if index >= len(made):
            raise InputError(
                f"distance {name!r}: {extractor.name} has {len(made)} layers, numbered from 0"
            )
        return made[index : index + 1]

    return compared


def _layer(name: str) -> tuple[str, str | None]:
    """`feature:EXTRACTOR@LAYER` -> ("feature:EXTRACTOR", "LAYER"); None without a layer."""
    found = re.fullmatch(r"(feature(?::.+)?)@([\w.-]+)", name)
    return (found[1], found[2]) if found else (name, None)


def _split(name: str) -> tuple[str, str]:
    """`feature:EXTRACTOR` -> ("feature", "EXTRACTOR"); a user's name stays whole."""
    name = _layer(name)[0]
    if name.startswith(PREFIX):
        return name, ""
    base, _, argument = name.partition(":")
    return base, argument
