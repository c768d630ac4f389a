"""Lists of noise levels from elsewhere: sigma / alpha at the knots, for a flow model sigma = t.

    sigmas     JSON (a list, or a list under "sigmas"), or text: one per line, or comma separated
    comfyui    the line of a custom sigmas node: comma separated, its last number is 0
    ays        a list of Align Your Steps (arXiv 2404.14507): 11 numbers, for ten steps

Such a list is often given in another parametrisation. What it probably is follows from its range
and direction, and is said in the message that refuses it.
"""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Sequence

import numpy
import torch
from torch import Tensor

from ...core.errors import InputError
from ...core.noise import NoiseSchedule
from ...core.text import parse_json, read_text, split_lines

LISTS = ("sigmas", "comfyui", "ays")
ROUNDING = 0.01
"""Published levels are rounded: an end this near to the model's, relative, is the model's."""


def read_levels(file: str | os.PathLike[str], form: str = "sigmas") -> list[float]:
    """The numbers of a list file.

    Raises InputError naming the file and the place, for text that is no list of numbers.
    """
    text = read_text(file, "a list of sigmas").strip()
    name = os.fspath(file)
    try:
        found = _of_json(text) if text[:1] in ("[", "{") else _of_text(text)
        if form == "ays" and len(found) != 11:
            raise InputError(
                f"holds {len(found)} numbers; a list of Align Your Steps has 11, for ten steps. "
                "Read another list with --as sigmas"
            )
        if len(found) < 2:
            raise InputError(f"holds {len(found)} numbers; at least two are needed, for one step")
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    return found


def is_schedule(text: str) -> bool:
    """True for a text that looks like a schedule file: a JSON object without a key "sigmas"."""
    return text.lstrip()[:1] == "{" and '"sigmas"' not in text


def _of_json(text: str) -> list[float]:
    found = parse_json(text)
    if isinstance(found, dict):
        if "sigmas" not in found:
            keys = ", ".join(map(repr, list(found)[:5])) or "none"
            raise InputError(f"has no key 'sigmas' (its keys: {keys}); write the list under it")
        found = found["sigmas"]
    if not isinstance(found, list):
        raise InputError("sigmas must be a list of numbers")
    for i, value in enumerate(found):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(f"sigmas[{i}] = {value!r} is no number; correct it")
    return [float(value) for value in found]


def _of_text(text: str) -> list[float]:
    found = []
    for number, line in enumerate(split_lines(text), 1):
        for word in filter(None, re.split(r"[\s,;]+", line.partition("#")[0])):
            try:
                value = float(word)
            except ValueError:
                raise InputError(f"line {number}: {word[:40]!r} is no number; correct it") from None
            if not math.isfinite(value):
                raise InputError(f"line {number}: {word[:40]!r} is not finite; correct it")
            found.append(value)
    return found


def levels_at(noise: NoiseSchedule, t: Tensor) -> Tensor:
    """The levels of a list at times t: sigma / alpha, for a flow sigma."""
    return noise.sigma(t) / (1.0 if noise.name == "flow" else noise.alpha(t))


def times_at(noise: NoiseSchedule, levels: Tensor) -> Tensor:
    """The times at levels of a list, above 0; the inverse of `levels_at`."""
    return levels if noise.name == "flow" else noise.inverse(-levels.log())


def level_range(noise: NoiseSchedule) -> tuple[float, float]:
    """The levels at t_min and at t_max.

    Raises InputError for a schedule that starts at pure noise, where sigma / alpha is infinite.
    """
    if noise.name != "flow" and noise.starts_at_pure_noise:
        raise InputError(
            f"the noise schedule {noise.name} starts at pure noise, where sigma / alpha is "
            "infinite: no list of sigmas describes it"
        )
    ends = torch.tensor([noise.t_min, noise.t_max], dtype=torch.float64)
    low, high = levels_at(noise, ends).tolist()
    return low, high


def knots_of(levels: Sequence[float], noise: NoiseSchedule, steps: int | None = None) -> Tensor:
    """Knots [N+1] at the levels of a list, float64.

    A last level of 0 stands for the model's smallest.

    Args:
        steps: N, if not as many as the list has; the list is then interpolated linearly in
            log(level), as the authors of Align Your Steps recommend.

    Raises InputError for levels that are negative, do not decrease, lie outside the model's range,
    or are another parametrisation.
    """
    low, high = level_range(noise)
    check_levels(levels, low, high)
    found = list(levels)
    if found[-1] == 0:
        found[-1] = low
        if found[-2] <= low * (1 + ROUNDING):
            del found[-1]  # the list ends on the model's smallest level and then on 0
    if steps is not None and steps != len(found) - 1:
        places = numpy.linspace(0, len(found) - 1, steps + 1)
        found = numpy.exp(numpy.interp(places, range(len(found)), numpy.log(found))).tolist()
    found[0] = high if found[0] > high * (1 - ROUNDING) else found[0]
    found[-1] = low if found[-1] < low * (1 + ROUNDING) else found[-1]
    knots = times_at(noise, torch.tensor(found, dtype=torch.float64))
    ends = {high: noise.t_max, low: noise.t_min}  # exactly, where a level is the model's own
    for i in (0, -1):
        knots[i] = ends.get(found[i], knots[i])
    return knots


def check_levels(levels: Sequence[float], low: float, high: float) -> None:
    """Refuse levels that are no decreasing noise levels between those of a model.

    Args:
        low, high: the model's levels at t_min and at t_max.

    Raises InputError that names the index and the value, and says what the list seems to be.
    """
    seen = _parametrisation(levels, high)
    for i, value in enumerate(levels):
        if value < 0:
            raise InputError(f"sigmas[{i}] = {value:g} is negative{seen}")
        if i and not value < levels[i - 1]:
            raise InputError(
                f"sigmas must decrease, but sigmas[{i}] = {value:g} comes after "
                f"{levels[i - 1]:g}{seen}"
            )
    given = f"the model's levels go from {high:g} to {low:.3g}"
    if levels[0] > high * (1 + ROUNDING):
        raise InputError(f"sigmas[0] = {levels[0]:g} is above the model's range: {given}{seen}")
    for i, value in enumerate(levels):
        if 0 < value < low * (1 - ROUNDING):
            raise InputError(f"sigmas[{i}] = {value:g} is below the model's range: {given}{seen}")
        if value == 0 and i < len(levels) - 1:
            raise InputError(f"sigmas[{i}] = 0 must be the last number")
    noisy = 0.5 if high <= 1 else 1.0 + 1e-9
    if levels[0] < min(noisy, high * (1 - ROUNDING)):
        raise InputError(
            f"sigmas[0] = {levels[0]:g} is too little noise to start from ({given}){seen}"
        )


def _parametrisation(levels: Sequence[float], high: float) -> str:
    """Words on what a list is, if it seems to be something other than noise levels."""
    first, last = levels[0], levels[-1]
    up = all(b > a for a, b in itertools.pairwise(levels))
    top, bottom = max(levels), min(levels)
    remedy = "give sigma / alpha (for a flow model sigma) at the knots, from noise to data"
    if bottom < 0 < top:
        kind = "log-SNR" if up else "log(sigma)"
        return f"; these seem to be values of {kind}: {remedy}"
    if bottom < 0:
        return f"; {remedy}"
    if top > high * (1 + ROUNDING) and top <= 1000 and (high <= 1 or _whole(levels)):
        if high <= 1 and top < 160 and not _whole(levels):
            return f"; these seem to be sigma / alpha of a diffusion model: {remedy}"
        return f"; these seem to be times in 0..1000: {remedy}"
    if up and first < last:
        return "; the list goes from data to noise: reverse it"
    if high > 1 and top <= 1:
        return f"; these seem to be timesteps in 0..1: {remedy}"
    return f"; {remedy}"


def _whole(levels: Sequence[float]) -> bool:
    return all(float(value).is_integer() for value in levels)
