"""A noise schedule as a schedule file keeps it: its name, its parameters, its levels.

    {"name": "vp-linear", "beta_0": 0.1, …}                     a registered one
    {"name": "python:FILE.py:NAME", …, "alpha": […], "sigma": […]}   one of a user's own file

alpha and sigma are the levels at the knots. They are written for every noise schedule that is not
of this package, so that such a schedule can be exported and compared without its class. Reading a
file never imports the class: a schedule file is data, and data must not choose code to run.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any, cast

import torch

from ..core.errors import InputError, unknown
from ..core.noise import NoiseSchedule, noise_schedules
from ..core.user_code import PREFIX

if TYPE_CHECKING:
    from .file import Schedule

LEVELS = ("alpha", "sigma")
"""Keys of the levels at the knots."""

TOLERANCE = 1e-9
"""Relative difference between two levels that only rounding has made different."""

BUILT_IN = ("edm", "flow", "vp-linear", "vp-cosine", "vp-discrete")


def noise_to_dict(noise: NoiseSchedule, knots: Sequence[float] | None = None) -> dict[str, Any]:
    """Name and parameters of a noise schedule.

    Args:
        knots: times at which the levels of a noise schedule of a user's own are kept.

    Raises InputError for one that a file cannot hold, saying why.
    """
    kind = type(noise)
    if not is_dataclass(noise):
        raise InputError(
            f"noise schedule {kind.__name__} cannot be written to a schedule file: it is no "
            "dataclass; decorate the class with @dataclass(frozen=True)"
        )
    name = name_of(kind)
    described = {"name": name}
    for field in fields(noise):
        if field.name in LEVELS:
            raise InputError(
                f"noise schedule {kind.__name__}: its field {field.name!r} has the name of a "
                "method; rename the field"
            )
        if field.name != "name" and field.init:
            described[field.name] = _plain(getattr(noise, field.name), kind, field.name)
    if knots is not None and name not in BUILT_IN:
        described |= _levels(noise, knots)
    return described


def noise_from_dict(described: Mapping[str, Any]) -> NoiseSchedule:
    """The noise schedule of a description.

    Raises InputError for an unknown name or parameter, and for a class of a user's file that this
    process has not imported (open the model first).
    """
    kind = _kind(described)
    given = {key: value for key, value in described.items() if key not in ("name", *LEVELS)}
    wanted = {field.name for field in fields(cast(Any, kind)) if field.init} - {"name"}
    for key in given:
        if key not in wanted:
            raise unknown(f"parameter of noise schedule {described['name']!r}:", key, (*wanted,))
    try:
        return kind(**given)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InputError(f"noise schedule {described['name']!r}: {error}") from error


def name_of(kind: type[NoiseSchedule]) -> str:
    """The name under which a file keeps a kind of noise schedule.

    Raises InputError for a class that nobody could find again.
    """
    for name in noise_schedules:
        if noise_schedules.get(name) is kind:
            return name
    module = sys.modules.get(kind.__module__)
    reachable = getattr(module, kind.__name__, None) is kind
    if not reachable or module is None or module.__name__ == "__main__":
        raise InputError(
            f"noise schedule {kind.__name__} cannot be written to a schedule file: it is defined "
            "in the running program or inside a function; move the class to a file of its own, or "
            f'decorate it with @noise_schedules.register("{kind.__name__.lower()}")'
        )
    file = getattr(module, "__file__", None)
    own = module.__name__.startswith("ld3_dist_user_") and file
    return f"{PREFIX}{file if own else module.__name__}:{kind.__name__}"


def check_writable(noise: NoiseSchedule) -> None:
    """Refuse an object that is no noise schedule, or that a schedule file cannot hold.

    It is written and read back, and its formulas are compared with one another: lam decreases, and
    `inverse` is its inverse. Call it when a model is opened, before any work.

    Raises InputError naming the class and what is wrong with it.
    """
    what = f"noise schedule {type(noise).__name__}"
    again = noise_from_dict(json.loads(json.dumps(noise_to_dict(noise))))
    t = torch.linspace(noise.t_min, noise.t_max, 9, dtype=torch.float64)
    lam = noise.lam(t)
    if lam.shape != t.shape or not bool(torch.isfinite(lam).all()):
        raise InputError(f"{what}: lam is not finite between t_min and t_max; correct it")
    if not bool((lam.diff() < 0).all()):
        raise InputError(f"{what}: lam must decrease with time between t_min and t_max; correct it")
    if not torch.equal(again.lam(t), lam):
        raise InputError(
            f"{what}: read back from its fields it gives other values; keep everything that "
            "determines it in fields of the dataclass"
        )
    inner, span = t[1:-1], noise.t_max - noise.t_min
    off = (noise.inverse(noise.lam(inner)) - inner).abs().max()
    if not float(off) <= 1e-4 * span:
        raise InputError(
            f"{what}: inverse(lam(t)) differs from t by up to {float(off):.3g}; correct inverse"
        )


def same_noise(schedule: Schedule, noise: NoiseSchedule) -> bool:
    """True if the times of a schedule mean the same on a model of this noise schedule.

    Names and parameters are compared. For a user's own class, parameters and levels at the knots
    are
    compared instead, because one class can be reached by several names, and its file can change.
    """
    ours = noise_to_dict(noise, schedule.knots)
    theirs = dict(schedule.noise)
    # in an imported table the scale of the noise is one of the coefficients
    imported = schedule.versions.get("imported_from") is not None
    if not imported and not fits_start(noise, schedule.knots[0], schedule.prior_scale):
        return False
    if theirs["name"] in BUILT_IN and ours["name"] in BUILT_IN:
        return theirs == ours
    for key in {*ours, *theirs} - {"name", *LEVELS}:
        if ours.get(key) != theirs.get(key):
            return False
    try:
        kept = {key: theirs[key] for key in LEVELS}
    except KeyError:
        return theirs["name"] == ours["name"]
    levels = _levels(noise, schedule.knots)
    return all(
        math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
        for key in LEVELS
        for a, b in zip(kept[key], levels[key], strict=True)
    )


def fits_start(noise: NoiseSchedule, t: float, scale: float) -> bool:
    """True if sampling may start at time t from noise of this standard deviation.

    At t_max it must be the schedule's own prior_scale. At a learned start time it is the standard
    deviation of noisy data of variance 0 … 1, between sigma and sqrt(alpha^2 + sigma^2).
    """
    if math.isclose(t, noise.t_max, rel_tol=1e-9):
        return math.isclose(scale, noise.prior_scale, rel_tol=TOLERANCE)
    at = torch.tensor(t, dtype=torch.float64)
    alpha, sigma = float(noise.alpha(at)), float(noise.sigma(at))
    return sigma * (1 - TOLERANCE) <= scale <= math.hypot(alpha, sigma) * (1 + TOLERANCE)


def check_same_noise(schedule: Schedule, noise: NoiseSchedule, model: str) -> None:
    """Refuse a schedule on a model of another noise schedule.

    Raises InputError naming the parameters of both.
    """
    if not same_noise(schedule, noise):
        theirs, ours = (_short(one) for one in (schedule.noise, noise_to_dict(noise)))
        raise InputError(
            f"the times of the schedule are those of another noise schedule ({theirs}) than that "
            f"of {model} ({ours}); give a schedule of the same model"
        )


def _short(described: Mapping[str, Any]) -> str:
    """A description without its tables."""
    return ", ".join(f"{k} {v}" for k, v in described.items() if not isinstance(v, list | tuple))


def _kind(described: Mapping[str, Any]) -> type[NoiseSchedule]:
    name = described.get("name")
    if not isinstance(name, str):
        raise InputError(f"noise.name must be a name, got {name!r}")
    if not name.startswith(PREFIX):
        return noise_schedules.get(name)
    for kind in _all_kinds(NoiseSchedule):
        if not is_dataclass(kind) or kind.__name__ != name.rpartition(":")[2]:
            continue
        with contextlib.suppress(InputError):  # left over from a file that was imported again
            if name_of(kind) == name:
                return kind
    raise InputError(
        f"noise schedule {name!r} is code of a user's own that is not loaded here: open the model "
        "that it belongs to first, or import it; sampling and exporting do not need it"
    )


def _all_kinds(kind: type[NoiseSchedule]) -> list[type[NoiseSchedule]]:
    """All imported classes that derive from one, those defined last first."""
    below = kind.__subclasses__()[::-1]
    return [*below, *(inner for one in below for inner in _all_kinds(one))]


def _levels(noise: NoiseSchedule, knots: Sequence[float]) -> dict[str, Any]:
    t = torch.tensor(list(knots), dtype=torch.float64)
    return {"alpha": noise.alpha(t).tolist(), "sigma": noise.sigma(t).tolist()}


def _plain(value: Any, kind: type, field: str) -> Any:
    """A parameter as JSON has it."""
    if isinstance(value, torch.Tensor):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(item, kind, field) for item in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise InputError(
        f"noise schedule {kind.__name__} cannot be written to a schedule file: its field "
        f"{field} = {value!r} is neither a finite number nor a word, nor a list of them"
    )
