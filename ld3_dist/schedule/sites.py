"""Sites: the models, with their options, at which schedules are scored that were learned elsewhere.

A site is a model as it is used: its weights, its guidance, the size of its images, its dtype.
`make_sites` makes every combination of those that are asked for. What is not asked for stays as it
was where the schedules were learned, or is the model's own.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..core.errors import InputError
from ..core.user_code import label
from ..models import Model, load_model
from .file import Schedule

BASE = "base"
"""The name of the models that the schedules were learned for."""

Size = tuple[int, int]

_NAMED = re.compile(r"(?P<name>[A-Za-z0-9_.-]+)=(?P<model>.+)")


@dataclass(frozen=True)
class Site:
    """A model as it is used.

    name: of the model, for tables.
    model: its name for `load_model`, or the model itself.
    options: of the model, by name.
    inherited: options that come from the schedules and were not asked for.
    """

    name: str
    model: str | Model
    options: Mapping[str, Any]
    inherited: tuple[str, ...] = ()

    def open(self) -> Model:
        """The model. Raises InputError that names it, as `load_model` does."""
        if isinstance(self.model, Model):
            return self.model
        try:
            return load_model(self.model, **self.options)
        except InputError as error:
            own = [f"{name} {self.options[name]:g}" for name in self.inherited]
            hint = f" ({' and '.join(own)} as the schedule was learned; give your own)"
            raise InputError(f"{error}{hint if own else ''}") from error

    @property
    def guidance(self) -> float | None:
        """The guidance that was asked for, or that of an open model."""
        if isinstance(self.model, Model):
            return self.model.guidance
        return self.options.get("guidance")

    @property
    def size(self) -> str | None:
        """Height and width as text; None for the model's own."""
        size = self.options.get("size")
        return None if size is None else f"{size[0]}x{size[1]}"

    @property
    def dtype(self) -> str | None:
        """The dtype that was asked for."""
        return self.options.get("dtype")

    def __str__(self) -> str:
        guided = self.guidance not in (None, 1)
        parts = [self.name, f"guidance {self.guidance:g}" if guided else "", self.size, self.dtype]
        return ", ".join(part for part in parts if part)


def make_sites(
    schedules: Sequence[Schedule],
    models: Sequence[str | Model] = (),
    guidance: Sequence[float] = (),
    sizes: Sequence[Size] = (),
    dtypes: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
) -> list[Site]:
    """Every combination of models and options.

    Args:
        models: names of models (base stands for those of the schedules, NAME=MODEL gives one a name
            of its own), or models that are open; base if not given.
        guidance: scales; those of the schedules if not given.
        sizes: heights and widths of images; the models' own if not given.
        dtypes: of the networks; their own if not given.
        options: other options of all models.

    Raises InputError for a model that is given twice, and for options of a model that is open.
    """
    given = dict(options or {})
    own = list(dict.fromkeys(s.guidance for s in schedules)) or [None]
    for size in sizes:
        whole = isinstance(size, tuple | list) and len(size) == 2
        if not whole or not all(isinstance(side, int) for side in size):
            raise InputError(f"size {size!r}: give (height, width) in pixels, such as (512, 768)")
    for scale in guidance:
        if isinstance(scale, bool) or not isinstance(scale, int | float):
            raise InputError(f"guidance {scale!r}: must be a number")
    axes: dict[str, list[Any]] = {
        "guidance": [float(scale) for scale in guidance] or own,
        "size": list(sizes) or [None],
        "dtype": list(dtypes) or [None],
    }
    for name, values in axes.items():
        repeated(name, values)
        if name in given and values != [None] and (name != "guidance" or guidance):
            raise InputError(f"{name} is given twice, as a list and as an option; give it once")
    found = []
    for name, model in _named(models or (BASE,), schedules):
        if isinstance(model, Model):
            if guidance or sizes or dtypes or given:
                raise InputError(
                    f"model {name!r} is open already, and guidance, sizes, dtypes and options are "
                    "set when a model is opened: give its name, or a model for each of them"
                )
            found.append(Site(name, model, {}))
            continue
        for values in itertools.product(*axes.values()):
            asked = zip(axes, values, strict=True)
            chosen = {key: value for key, value in asked if value is not None} | given
            inherited = () if guidance or "guidance" not in chosen else ("guidance",)
            found.append(Site(name, model, chosen, inherited))
    return found


def repeated(what: str, values: Iterable[Any]) -> None:
    """Raise InputError for a value that is there twice."""
    seen: list[Any] = []
    for value in values:
        if value in seen:
            raise InputError(f"{what}: {value} is given twice; give it once")
        seen.append(value)


def _named(
    models: Sequence[str | Model], schedules: Sequence[Schedule]
) -> list[tuple[str, str | Model]]:
    """(name for tables, model) of each model that is asked for."""
    found: list[tuple[str, str | Model]] = []
    for model in models:
        if isinstance(model, Model):
            found.append((label(model.id), model))
        elif model == BASE:
            found += [(label(name), name) for name in dict.fromkeys(s.model for s in schedules)]
        elif named := _NAMED.fullmatch(model):
            found.append((named["name"], named["model"]))
        elif not model.strip():
            raise InputError("a model's name is empty; name a model, or base")
        else:
            found.append((label(model), model))
    repeated("models", (name for name, _ in found))
    return found
