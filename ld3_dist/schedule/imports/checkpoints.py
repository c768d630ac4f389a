"""Checkpoint files of DyWeight (arXiv 2603.11607) and EPD (arXiv 2507.14797), without running them.

Both are small: a few numbers per step, and the settings of the grid they were learned on.

    dyweight   a pickle with a `predictor` of the class DyWeight_predictor and a `loss_fn`, or a
               torch file with `dyweight_weights_raw` and `dyweight_t_scales` (flow matching)
    epd        a pickle with a `model` of the class EPD_predictor

The pickles hold the source text of their classes, to be executed on loading. The restricted reader
of `models.edm.unpickle` keeps names, settings and tensors alone.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...core.errors import InputError, unknown
from ...models.edm.unpickle import Remembered, read_objects
from ...models.torch_files import read_content

GRIDS = ("polynomial", "logsnr", "time_uniform", "discrete", "flowmatch")
MOST_STEPS = 300
"""More steps than any few-step schedule has."""
INERT = ("solvers.", "solver_tea.")


@dataclass(frozen=True)
class Settings:
    """The grid and the conditions that a checkpoint was learned for, as it names them.

    grid: one of GRIDS.
    rho: its exponent.
    steps: N, the number of steps.
    analytic: True if the first step asks no network ("analytical first step").
    data: name of the data set.
    guidance: scale of classifier-free guidance.
    flow: settings of a flow-matching grid.
    """

    grid: str
    rho: float
    steps: int
    analytic: bool = False
    data: str | None = None
    guidance: float | None = None
    flow: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class DyWeight:
    """The learned numbers of DyWeight.

    weights: of the derivatives of steps 0 … i in step i, [N, N], lower triangular.
    scales: factors of the network's times, one per step [N].
    """

    settings: Settings
    weights: Tensor
    scales: Tensor


@dataclass(frozen=True)
class EPD:
    """The learned numbers of EPD: P points per step, whose derivatives are averaged.

    places: of the points between a step's ends, in log(sigma), in (0, 1) [N, P].
    weights: of their derivatives [N, P].
    lengths: factors of their derivatives [N, P].
    scales: factors of the network's times [N, P].
    """

    settings: Settings
    places: Tensor
    weights: Tensor
    lengths: Tensor
    scales: Tensor


def read_dyweight(file: Path) -> DyWeight:
    """The learned numbers of a DyWeight checkpoint.

    Raises InputError naming the file and the key, for a file that is missing, damaged, no such
    checkpoint, or of other shapes.
    """
    if _is_archive(file):
        return _flow_dyweight(file, read_content(file))
    predictor, loss = _predictor(file, "DyWeight", "predictor"), None
    content = predictor[1]
    if isinstance(content.get("loss_fn"), Remembered):
        loss = content["loss_fn"].state
    state = predictor[0].state
    steps = _steps(file, state)
    analytic = _flag(file, state, "afs")
    table = state.get("_parameters")
    weights = _tensor(file, table, "hybrid_weights", (steps, steps))
    asked = steps - analytic
    scales = torch.ones(asked, dtype=torch.float64)
    if isinstance(table, dict) and table.get("t_scale") is not None:
        scales = _tensor(file, table, "t_scale", (asked,))
    mask = state.get("_buffers")
    if isinstance(mask, dict) and mask.get("mask") is not None:
        weights = weights * _tensor(file, mask, "mask", (steps, steps))
    if analytic:
        scales = torch.cat([scales.new_ones(1), scales])
    return DyWeight(_settings(file, {**(loss or {}), **state}, steps), weights.tril(), scales)


def _flow_dyweight(file: Path, content: Any) -> DyWeight:
    keys = ("dyweight_weights_raw", "dyweight_t_scales")
    if not isinstance(content, dict) or not all(key in content for key in keys):
        raise InputError(
            f"{file}: no DyWeight checkpoint (found: {_names(content)}; need "
            f"{' and '.join(map(repr, keys))}); give one that its authors published"
        )
    shape = getattr(content[keys[0]], "shape", ())
    steps = shape[0] if len(shape) == 2 else 0
    if not 1 <= steps <= MOST_STEPS:
        raise InputError(f"{file}: {keys[0]} has shape {tuple(shape)}, need [N, N] of N steps")
    weights = _tensor(file, content, keys[0], (steps, steps))
    scales = _tensor(file, content, keys[1], (steps,))
    settings = Settings("flowmatch", 1.0, steps, flow={"first": 1.0, "last": 0.0})
    return DyWeight(settings, weights.tril(), scales)


def read_epd(file: Path) -> EPD:
    """The learned numbers of an EPD checkpoint; raises InputError as `read_dyweight` does."""
    state = _predictor(file, "EPD", "model")[0].state
    steps = _steps(file, state)
    if _flag(file, state, "fcn"):
        raise InputError(f"{file}: fcn = {state['fcn']!r}: this form of EPD is not read")
    points = state.get("num_points")
    if not isinstance(points, int) or isinstance(points, bool) or not 1 <= points <= 16:
        raise InputError(
            f"{file}: num_points = {_short(points)}: must be a whole number from 1 to 16"
        )
    table, shape = state.get("_parameters"), (steps, points)

    def factor(name: str, range_name: str) -> Tensor:
        width = _number(file, state, range_name, 0.0)
        raw = _tensor(file, table, name, shape) if width else torch.zeros(shape).double()
        return 2 * torch.sigmoid(0.5 * raw) * width + (1 - width)

    return EPD(
        _settings(file, state, steps),
        torch.sigmoid(_tensor(file, table, "r_params", shape)),
        torch.softmax(_tensor(file, table, "weight_s", shape), -1),
        factor("scale_dir_params", "scale_dir"),
        factor("scale_time_params", "scale_time"),
    )


def _is_archive(file: Path) -> bool:
    if not file.is_file():
        raise InputError(f"{file}: file not found; give the checkpoint that its authors published")
    return zipfile.is_zipfile(file)


def _predictor(file: Path, kind: str, key: str) -> tuple[Remembered, dict[str, Any]]:
    """The predictor of a checkpoint and the table it lies in."""
    if _is_archive(file):
        raise InputError(f"{file}: no {kind} pickle, but an archive; give the .pkl file")
    content = read_objects(file, kind, INERT)
    found = content.get(key) if isinstance(content, dict) else None
    if not isinstance(found, Remembered) or found.origin != f"{kind}_predictor":
        origin = f", a {found.origin or 'thing'}" if isinstance(found, Remembered) else ""
        others = {"DyWeight_predictor": "dyweight", "EPD_predictor": "epd"}
        values = content.values() if isinstance(content, dict) else ()
        other = [others[v.origin] for v in values if getattr(v, "origin", "") in others]
        remedy = f"read it with --as {other[0]}" if other else f"give a checkpoint of {kind}"
        raise InputError(
            f"{file}: holds no {kind}_predictor under {key!r} (found: {_names(content)}{origin}); "
            f"{remedy}"
        )
    return found, content


def _names(content: Any) -> str:
    if not isinstance(content, dict):
        return type(content).__name__
    return ", ".join(repr(str(key)[:40]) for key in list(content)[:6]) or "an empty table"


def _steps(file: Path, state: Mapping[str, Any]) -> int:
    given = state.get("num_steps")
    if not isinstance(given, int) or isinstance(given, bool) or not 2 <= given <= MOST_STEPS:
        raise InputError(
            f"{file}: num_steps = {_short(given)}: must be a whole number of times from 2 to "
            f"{MOST_STEPS}"
        )
    return given - 1


def _number(file: Path, state: Mapping[str, Any], key: str, default: float) -> float:
    value = state.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= 1e6:
        raise InputError(f"{file}: {key} = {_short(value)}: must be a number")
    return float(value)


def _flag(file: Path, state: Mapping[str, Any], key: str) -> bool:
    value = state.get(key)
    if value is not None and not isinstance(value, bool):
        raise InputError(f"{file}: {key} = {_short(value)}: must be true or false")
    return bool(value)


def _word(file: Path, state: Mapping[str, Any], key: str) -> str | None:
    value = state.get(key)
    if value is not None and not isinstance(value, str):
        raise InputError(f"{file}: {key} = {_short(value)}: must be a word")
    return value or None


def _short(value: Any) -> str:
    """A value as a message shows it."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _tensor(file: Path, table: Any, key: str, shape: tuple[int, ...]) -> Tensor:
    found = table.get(key) if isinstance(table, dict) else None
    if not isinstance(found, Tensor):
        raise InputError(f"{file}: has no tensor {key!r}; give the whole checkpoint")
    if tuple(found.shape) != shape or found.is_complex():
        raise InputError(
            f"{file}: {key} has shape {list(found.shape)}, its settings need {list(shape)}; the "
            "file is damaged or of another version"
        )
    found = found.detach().double()
    if not bool(torch.isfinite(found).all()):
        raise InputError(f"{file}: {key} holds numbers that are not finite; download it again")
    return found


def _settings(file: Path, state: Mapping[str, Any], steps: int) -> Settings:
    grid = _word(file, state, "schedule_type") or "polynomial"
    if grid not in GRIDS:
        raise InputError(f"{file}: {unknown('schedule_type', grid, GRIDS)}")
    rho = _number(file, state, "schedule_rho", 7.0)
    if not rho > 0:
        raise InputError(f"{file}: schedule_rho = {rho}: must be above 0")
    flow: dict[str, float] = {}
    if grid == "flowmatch":
        given = state.get("backend_config") or {}
        if not isinstance(given, dict):
            raise InputError(f"{file}: backend_config = {_short(given)}: must be a table")
        flow = {"first": 1.0, "last": _number(file, given, "sigma_min", 0.001)}
        if given.get("flowmatch_mu") is not None:
            flow["mu"] = _number(file, given, "flowmatch_mu", 0.0)
    data = _word(file, state, "dataset_name")
    guided = _word(file, state, "guidance_type") not in (None, "uncond")
    return Settings(
        grid,
        rho,
        steps,
        _flag(file, state, "afs"),
        data[:100] if data else None,
        _number(file, state, "guidance_rate", 1.0) if guided else None,
        flow,
    )
