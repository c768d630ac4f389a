"""The points of an experiment: the combinations of axis values that every cell is tried with.

    search.grid     the product of all axes
    ablate          the base, and the base with one factor changed to each of its levels;
                    the product of all levels with `full: true`. A level of `procedure` leaves out
                    the factors that its procedure does not have

A point maps names of axes to values. Its cell, distance, teacher and settings of learning follow
from it in `plan`. The order of the axes in the file changes nothing.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

from ..core.learning.procedure import make_config
from .axes import OTHER_AXES, check_value, is_setting, lacks
from .sections import ModelSettings
from .settings import Experiment

Point = dict[str, Any]


def points_of(e: Experiment) -> list[Point]:
    """Every point of an experiment, each once."""
    if e.ablate is None:
        return _product(e.search.grid)
    levels = levels_of(e)
    if e.ablate.full:
        return _product(levels)
    base = {axis: values[0] for axis, values in levels.items()}
    varied = [base | {axis: value} for axis, found in levels.items() for value in found[1:]]
    return [base, *(_known_to_its_procedure(point) for point in varied)]


def count_points(e: Experiment) -> int:
    """The number of points, without listing them."""
    if e.ablate is None:
        return math.prod(len(values) for values in e.search.grid.values())
    counts = [len(values) for values in levels_of(e).values()]
    return math.prod(counts) if e.ablate.full else 1 + sum(count - 1 for count in counts)


def levels_of(e: Experiment) -> dict[str, list[Any]]:
    """The levels of each factor of an ablation, the base's level first, sorted by name.

    A factor that the base does not name has the value that the rest of the experiment gives it;
    one without such a value (start, guidance) begins with None, which leaves it as it is.
    """
    assert e.ablate is not None
    procedure = e.base_procedure
    found: dict[str, list[Any]] = {}
    for axis in sorted({*e.ablate.base, *e.ablate.vary}):
        given = e.ablate.base.get(axis)
        first = _value_now(e, axis, procedure) if given is None else _typed(procedure, axis, given)
        values = [first]
        for level in e.ablate.vary.get(axis, ()):
            value = _typed(procedure, axis, level)
            if value not in values:
                values.append(value)
        found[axis] = values
    return found


def model_at(model: ModelSettings, point: Point) -> ModelSettings:
    """The model of a point: another guidance makes another model, with a label of its own."""
    guidance = point.get("guidance")
    if guidance is None or model.guidance == guidance:
        return model
    suffix = f"-w{guidance:g}"
    if model.name:
        return model.model_copy(update={"guidance": float(guidance), "name": model.name + suffix})
    other = model.model_copy(update={"guidance": float(guidance)})
    if other.label == model.label:  # guidance 1 has no suffix of its own
        other = other.model_copy(update={"name": model.label + suffix})
    return other


def _known_to_its_procedure(point: Point) -> Point:
    """The point with None for settings that its procedure does not have."""
    procedure = point.get("procedure")
    if procedure is None:
        return point
    return {axis: None if lacks(procedure, axis) else value for axis, value in point.items()}


def _product(axes: Any) -> list[Point]:
    ordered = dict(sorted(axes.items()))
    combinations = itertools.product(*ordered.values())
    return [dict(zip(ordered, values, strict=True)) for values in combinations]


def _typed(procedure: str, axis: str, value: Any) -> Any:
    """A value in the type of its owner, where this procedure has such a setting."""
    if axis not in OTHER_AXES and (axis == "procedure" or not is_setting(procedure, axis)):
        return value
    return check_value(procedure, axis, value)


def _value_now(e: Experiment, axis: str, procedure: str) -> Any:
    """The value of an axis where a point does not say otherwise; None where there is not one."""
    fixed = {
        "distance": e.distance,
        "pairs.train": e.pairs.train,
        "teacher.solver": e.teacher.solver,
        "teacher.nfe": e.teacher.nfe,
        "teacher.start": e.teacher.start,
    }
    if axis in fixed:
        return fixed[axis]
    if axis == "procedure":
        return procedure
    if axis in e.learn:
        return e.learn[axis]
    if is_setting(procedure, axis):
        return getattr(make_config(procedure), axis)
    return None
