"""The axes of a search and the names an experiment may hold: what each accepts, asked of those who know it."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Annotated, Any

from pydantic import BeforeValidator

from ..core.distance import DISTANCES
from ..core.errors import unknown
from ..core.grid import DISCRETIZATIONS
from ..core.learn import LearnConfig
from ..core.solver import make_solver
from ..training_free import TRAINING_FREE

Value = bool | int | float | str
LEARN_FIELDS = tuple(f.name for f in fields(LearnConfig) if f.name != "seed")
SEARCHABLE = (*LEARN_FIELDS, "start", "distance")


def _solver_name(name: str) -> str:
    make_solver(name)
    return name


def _start_name(name: str) -> str:
    known = (*DISCRETIZATIONS, *TRAINING_FREE)
    if name not in known and not re.fullmatch(r"poly-\d+(\.\d+)?", name):
        raise unknown("discretization", name, known)
    return name


def _distance_name(name: str) -> str:
    if name not in (*DISTANCES, "lpips"):
        raise unknown("distance", name, DISTANCES)
    return name


SolverName = Annotated[str, BeforeValidator(_solver_name)]
StartName = Annotated[str, BeforeValidator(_start_name)]
DistanceName = Annotated[str, BeforeValidator(_distance_name)]


def check_axis_value(key: str, value: Value) -> None:
    """A single value of a searchable setting, checked by those who know it. Raises ValueError or InputError."""
    if key == "start":
        _start_name(str(value))
    elif key == "distance":
        _distance_name(str(value))
    else:
        kind = type(getattr(LearnConfig(), key))
        number = isinstance(value, int | float) and not isinstance(value, bool)
        fits = (
            isinstance(value, kind) if kind in (str, bool) else number and (kind is float or float(value).is_integer())
        )
        if not fits:
            raise ValueError(f"{key} = {value!r}: must be {'a whole number' if kind is int else kind.__name__}")
        setting: dict[str, Any] = {key: kind(value)}
        LearnConfig(**setting)
