"""Names and axes that an experiment may hold, and what each accepts."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError, WithJsonSchema

from ..core.combined import written
from ..core.distance import distance_entry
from ..core.errors import unknown
from ..core.learning.procedure import make_config, no_such_setting, procedures
from ..core.solver import make_solver
from ..core.user_code import PREFIX
from ..schedule.starts import check_member, check_start
from .limits import Nfe, NotNegative, PairCount

Value = bool | int | float | str

OTHER_AXES = (
    "start",
    "distance",
    "pairs.train",
    "teacher.solver",
    "teacher.nfe",
    "teacher.start",
    "guidance",
)
"""Axes beside the settings of learning."""

GRID_ONLY = ("guidance",)
"""Axes that make cells of their own, so that no sampler can propose them."""

INCOMPARABLE = ("distance", "teacher.solver", "teacher.nfe", "teacher.start")
"""Axes whose levels have losses that do not compare."""


known_procedures: ContextVar[tuple[str, ...]] = ContextVar("known_procedures", default=())
"""Procedures whose settings the file that is being read may name; () are the registered ones."""


def procedures_in(data: Mapping[str, Any]) -> tuple[str, ...]:
    """The registered procedures, and those of a user's own that an experiment names.

    Raises InputError for a file that cannot be imported.
    """
    sections = [data.get("learn")]
    for name, keys in (("search", ("grid", "optuna")), ("ablate", ("base", "vary"))):
        outer = data.get(name)
        sections += [outer.get(key) for key in keys] if isinstance(outer, Mapping) else []
    found: list[Any] = []
    for section in sections:
        named = section.get("procedure") if isinstance(section, Mapping) else None
        found += named if isinstance(named, list | tuple) else [named]
    own = [name for name in found if isinstance(name, str) and name.startswith(PREFIX)]
    for name in own:
        procedures.get(name)
    return (*procedures.names(), *own)


def _solver_name(name: str) -> str:
    make_solver(name)
    return name


def _distance_name(name: str | Mapping[str, float]) -> str:
    name = written(name) if isinstance(name, Mapping) else name
    distance_entry(name)
    return name


def _named(kind: str) -> WithJsonSchema:
    """A mark that `schema` replaces by the names of this kind that are registered."""
    return WithJsonSchema({"type": "string", "names": kind})


SolverName = Annotated[str, BeforeValidator(_solver_name), _named("solver")]
StartName = Annotated[str, BeforeValidator(check_start), _named("start")]
MemberStart = Annotated[str, BeforeValidator(check_member), _named("member_start")]
"""A start of learning."""
DistanceName = Annotated[str, BeforeValidator(_distance_name), _named("distance")]
ModelName = Annotated[str, _named("model")]
ExtractorName = Annotated[str, _named("extractor")]
MetricName = Annotated[str, _named("metric")]


def settings_of(names: tuple[str, ...]) -> tuple[str, ...]:
    """The settings of learning that some of these procedures have, each once."""
    found = [name for p in names for name in procedures.get(p).Config.searchable()]
    return tuple(dict.fromkeys(found))


_OWNERS: dict[str, TypeAdapter[Any]] = {
    "start": TypeAdapter(MemberStart),
    "distance": TypeAdapter(DistanceName),
    "pairs.train": TypeAdapter(Annotated[PairCount, Field(ge=2)]),
    "teacher.solver": TypeAdapter(SolverName),
    "teacher.nfe": TypeAdapter(Nfe),
    "teacher.start": TypeAdapter(StartName),
    "guidance": TypeAdapter(NotNegative),
}
"""What each axis accepts that is no setting of learning."""


_TEXTS = ("start", "distance", "teacher.solver", "teacher.start")


def check_value(procedure: str, key: str, value: Value) -> Value:
    """Return a value of an axis or a setting, in the type that its owner has it in.

    Raises ValueError or InputError for a name or a value that its owner refuses.
    """
    if key in _TEXTS:
        return _owned(key, str(value))
    if key in _OWNERS:
        return _owned(key, value)
    if key == "procedure":
        procedures.get(str(value))
        return value
    config = procedures.get(procedure).Config
    if key not in config.searchable():
        if key in settings_of(procedures.names()):
            raise no_such_setting(procedure, key)
        raise unknown("setting of learning", key, (*config.searchable(), *OTHER_AXES))
    return getattr(make_config(procedure, **{key: value}), key)


def _owned(key: str, value: Value) -> Value:
    try:
        return _OWNERS[key].validate_python(value)
    except ValidationError as error:
        detail = error.errors()[0]
        if detail["type"] == "value_error":
            text = detail["msg"].removeprefix("Value error, ")
            raise ValueError(f" = {value!r}: {text}") from None
        raise ValueError(f" = {value!r}: {_plain_sentence(detail)}") from None


def _plain_sentence(detail: Any) -> str:
    """The fault of a number, in words."""
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "greater_than_equal":
        return f"must be at least {context['ge']:,}"
    if kind == "less_than_equal":
        return f"must be at most {context['le']:,}"
    return "must be a whole number" if kind.startswith("int") else "must be a finite number"


def is_setting(procedure: str, key: str) -> bool:
    """True for a setting that a procedure has."""
    return key in procedures.get(procedure).Config.searchable()


def lacks(procedure: str, axis: str) -> bool:
    """True for an axis that is a setting of learning, but none of this procedure's."""
    return axis not in OTHER_AXES and axis != "procedure" and not is_setting(procedure, axis)


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
