"""Names and axes that an experiment may hold, and what each accepts."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Annotated, Any

from pydantic import BeforeValidator

from ..core.distance import distance_entry
from ..core.errors import unknown
from ..core.learning.procedure import make_config, no_such_setting, procedures
from ..core.solver import make_solver
from ..core.user_code import PREFIX
from ..schedule.starts import check_start

Value = bool | int | float | str

OTHER_AXES = ("start", "distance")
"""What can be searched beside the settings of learning."""


known_procedures: ContextVar[tuple[str, ...]] = ContextVar("known_procedures", default=())
"""Procedures whose settings the file that is being read may name; () are the registered ones."""


def procedures_in(data: Mapping[str, Any]) -> tuple[str, ...]:
    """The registered procedures, and those of a user's own that an experiment names.

    Raises InputError for a file that cannot be imported.
    """
    search = data.get("search")
    sections = (
        [search.get(key) for key in ("grid", "optuna")] if isinstance(search, Mapping) else []
    )
    found: list[Any] = []
    for section in (data.get("learn"), *sections):
        named = section.get("procedure") if isinstance(section, Mapping) else None
        found += named if isinstance(named, list | tuple) else [named]
    own = [name for name in found if isinstance(name, str) and name.startswith(PREFIX)]
    for name in own:
        procedures.get(name)
    return (*procedures.names(), *own)


def _solver_name(name: str) -> str:
    make_solver(name)
    return name


def _distance_name(name: str) -> str:
    distance_entry(name)
    return name


SolverName = Annotated[str, BeforeValidator(_solver_name)]
StartName = Annotated[str, BeforeValidator(check_start)]
DistanceName = Annotated[str, BeforeValidator(_distance_name)]


def settings_of(names: tuple[str, ...]) -> tuple[str, ...]:
    """The settings of learning that some of these procedures have, each once."""
    found = [name for p in names for name in procedures.get(p).Config.searchable()]
    return tuple(dict.fromkeys(found))


def check_value(procedure: str, key: str, value: Value) -> Value:
    """A value of an axis or a setting, in the type its owner has it in.

    Raises ValueError or InputError for a name or a value that its owner refuses.
    """
    if key == "start":
        return check_start(str(value))
    if key == "distance":
        return _distance_name(str(value))
    if key == "procedure":
        procedures.get(str(value))
        return value
    config = procedures.get(procedure).Config
    if key not in config.searchable():
        if key in settings_of(procedures.names()):
            raise no_such_setting(procedure, key)
        raise unknown("setting of learning", key, (*config.searchable(), *OTHER_AXES))
    return getattr(make_config(procedure, **{key: value}), key)


def is_setting(procedure: str, key: str) -> bool:
    """True for a setting that a procedure has."""
    return key in procedures.get(procedure).Config.searchable()


def is_number(procedure: str, key: str) -> bool:
    """True for a setting that a continuous axis can hold."""
    value = getattr(make_config(procedure), key, None)
    return isinstance(value, int | float) and not isinstance(value, bool)


def unique(key: str, values: tuple[Any, ...]) -> tuple[Any, ...]:
    """The values, if none is there twice; ValueError otherwise."""
    for i, value in enumerate(values):
        if value in values[:i]:
            raise ValueError(f"{key}: {value!r} stands there twice; remove one (duplicate cells)")
    return values
