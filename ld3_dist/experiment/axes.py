"""The axes of a search and the names an experiment may hold: what each accepts, asked of those who
know it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any

from pydantic import BeforeValidator

from ..core.distance import distance_entry
from ..core.errors import InputError, unknown
from ..core.grid import DISCRETIZATIONS
from ..core.learning.learn import LearnConfig
from ..core.solver import make_solver
from ..training_free import TRAINING_FREE

Value = bool | int | float | str
LEARN_FIELDS = tuple(f.name for f in fields(LearnConfig) if f.name != "seed")
SEARCHABLE = (*LEARN_FIELDS, "start", "distance")


def _solver_name(name: str) -> str:
    make_solver(name)
    return name


def start_name(name: str) -> str:
    """A start's name as it is. Raises InputError for an unknown one."""
    known = (*DISCRETIZATIONS, *TRAINING_FREE)
    if name not in known and not re.fullmatch(r"poly-\d+(\.\d+)?", name):
        raise unknown("discretization", name, known)
    return name


def _distance_name(name: str) -> str:
    distance_entry(name)
    return name


SolverName = Annotated[str, BeforeValidator(_solver_name)]
StartName = Annotated[str, BeforeValidator(start_name)]
DistanceName = Annotated[str, BeforeValidator(_distance_name)]


def switches(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with `checkpointing: on` and `off` as words again, which YAML reads as true and
    false.
    """
    word = lambda value: ("on" if value else "off") if isinstance(value, bool) else value
    words = lambda value: tuple(map(word, value)) if isinstance(value, tuple) else word(value)
    return {
        key: words(value) if key == "checkpointing" else value for key, value in settings.items()
    }


def check_axis_value(key: str, value: Value) -> None:
    """A single value of a searchable setting, checked by those who know it. Raises ValueError or
    InputError.
    """
    if key == "start":
        start_name(str(value))
    elif key == "distance":
        _distance_name(str(value))
    else:
        kind = type(getattr(LearnConfig(), key))
        number = isinstance(value, int | float) and not isinstance(value, bool)
        fits = (
            isinstance(value, kind)
            if kind in (str, bool)
            else number and (kind is float or float(value).is_integer())
        )
        if not fits:
            raise ValueError(
                f"{key} = {value!r}: must be {'a whole number' if kind is int else kind.__name__}"
            )
        setting: dict[str, Any] = {key: kind(value)}
        LearnConfig.of(**setting)


def check_combinations(
    fixed: Mapping[str, Value], searched: Mapping[str, tuple[Value, ...]]
) -> None:
    """Every preset with every value it may meet: one that is fine alone may not be fine with each
    of them.

    fixed: settings of LearnConfig.  searched: listed values of an axis by its full name,
                                     "search.grid.preset". Raises ValueError naming the axes and
                                     values."""
    axes = {name.rpartition(".")[2]: (name, values) for name, values in searched.items()}
    alone = {key: ("", (value,)) for key, value in ({"preset": "default"} | dict(fixed)).items()}
    choices = {key: place for key, place in (alone | axes).items() if key in LEARN_FIELDS}
    for preset, (key, (_, values)) in itertools.product(choices["preset"][1], choices.items()):
        for value in values if key != "preset" else (preset,):
            settings: dict[str, Any] = {**fixed, key: value, "preset": preset}
            try:
                LearnConfig.of(**settings)
            except InputError as error:
                met = {axes[name][0]: settings[name] for name in ("preset", key) if name in axes}
                names = " and ".join(f"{name} = {value!r}" for name, value in met.items())
                raise ValueError(f"with {names}, {error}" if names else str(error)) from None


def unique(key: str, values: tuple[Any, ...]) -> tuple[Any, ...]:
    """The values, if none is there twice; ValueError otherwise."""
    for i, value in enumerate(values):
        if value in values[:i]:
            raise ValueError(f"{key}: {value!r} stands there twice; remove one (duplicate cells)")
    return values
