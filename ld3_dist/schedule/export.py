"""A schedule as plain lists for other tools, and in words what such a list cannot carry.

    sigmas       N + 1 noise levels at the knots: sigma(t) / alpha(t), for a flow model sigma(t) =
                 t; from noise to data
    timesteps    E network times in the network's own steps: n t - 1 for a table of n entries, n t
                 for a flow model
    comfyui      the sigmas as one line of text for a custom or manual sigmas node, ending at 0 as
                 its samplers expect

Three things were learned: step times, network times and the solver's coefficients. A list holds the
step times or the network times alone. A tool that takes the sigmas asks the network at the step
times and uses coefficients of its own. `integrations.export` writes these lists to files, and
formats that lose nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch

from ..core.errors import InputError, unknown
from ..core.noise import FlowMatching, VPDiscrete
from ..core.solver import make_solver
from ..models.diffusers.network_outputs import network_times
from .file import Schedule
from .noise import LEVELS

FORMATS = ("sigmas", "timesteps", "comfyui")

RELATIVES = {
    "ddim": "euler",
    "dpmpp-1": "euler",
    "unipc-1": "euler",
    "dpmpp-2": "dpmpp_2m",
    "dpmpp-3": "dpmpp_3m (or dpmpp_2m)",
    "unipc-2": "uni_pc_bh2",
    "unipc-3": "uni_pc_bh2",
    "unipc-2-bh1": "uni_pc",
    "unipc-3-bh1": "uni_pc",
    "ipndm-2": "ipndm, order 2",
    "ipndm-3": "ipndm, order 3",
    "ipndm-4": "ipndm, order 4",
    "deis-2": "deis, order 2",
    "deis-3": "deis, order 3",
    "heun": "heun",
    "dpm-2": "dpm_2",
}
"""The samplers of other tools, by their usual names, that come nearest to ours."""


LEVEL_MATTERS = 0.01
"""A relative difference of noise levels that a user is told of."""


def export_sigmas(schedule: Schedule) -> list[float]:
    """N + 1 decreasing noise levels at the knots.

    Raises InputError if the first knot is pure noise, where the level is infinite.
    """
    alpha, sigma = _levels(schedule)
    if schedule.noise["name"] == "flow":
        return sigma
    if alpha[0] < 1e-6:
        raise InputError(
            f"knots[0] = {schedule.knots[0]:g} is pure noise ({schedule.noise['name']}), where "
            "sigma / alpha is infinite; export --format timesteps or diffusers instead"
        )
    return [s / a for a, s in zip(alpha, sigma, strict=True)]


def _levels(schedule: Schedule) -> tuple[list[float], list[float]]:
    """alpha and sigma at the knots, from the file if it holds them."""
    if all(key in schedule.noise for key in LEVELS):
        return list(schedule.noise["alpha"]), list(schedule.noise["sigma"])
    noise, t = schedule.noise_schedule, torch.tensor(schedule.knots, dtype=torch.float64)
    return noise.alpha(t).tolist(), noise.sigma(t).tolist()


def export_timesteps(schedule: Schedule, steps: int = 1000) -> list[float]:
    """E fractional network times, at which the schedule asks the network.

    Args:
        steps: number n of steps that a flow network counts (num_train_timesteps).

    Raises InputError for noise schedules whose networks have no steps.
    """
    try:
        return network_times(
            schedule.noise_schedule, torch.tensor(schedule.evals, dtype=torch.float64), steps
        )
    except InputError as error:
        raise InputError(f"{error}; export --format sigmas instead") from error


def export_comfyui(schedule: Schedule) -> str:
    """The sigmas as "14.6146, 6.4746, …, 0"."""
    return ", ".join([*(f"{sigma:.6g}" for sigma in export_sigmas(schedule)[:-1]), "0"])


def lost(schedule: Schedule, form: str) -> list[str]:
    """Sentences that say how a tool that takes only this list will differ from the schedule."""
    solver = make_solver(schedule.solver)
    found = [*_lost_level(schedule), *_lost_times(schedule, form), *_lost_end(schedule, form)]
    if schedule.coefficients:
        found.append("learned coefficients are dropped: the tool uses those of its own sampler")
    relative = RELATIVES.get(schedule.solver)
    advice = f"the nearest is {relative}" if relative else "there is no close relative of it"
    found.append(
        f"the solver is not in the list: it was learned for {schedule.solver}, {schedule.nfe} "
        f"network evaluations; "
        f"choose the tool's sampler ({advice}), whose coefficients and lower orders at the ends "
        f"may differ"
    )
    if solver.stages > 1 and schedule.nfe % 2:
        found.append("the last step spends one evaluation here, two in a tool's two-stage sampler")
    if schedule.guidance is not None and schedule.guidance != 1:
        found.append(f"guidance is not in the list: it was learned with {schedule.guidance:g}")
    if schedule.noise["name"] == "flow":
        found.append(
            "shift is contained in the numbers: set the tool's shift to 1, or it is applied again"
        )
    return found


def _lost_level(schedule: Schedule) -> list[str]:
    """A sentence where sampling begins from another level of noise than the first sigma.

    That is the case with a learned start time far below t_max (`core.learning.learnable`).
    """
    ratio = schedule.prior_scale / _levels(schedule)[1][0]
    if abs(ratio - 1) < LEVEL_MATTERS:
        return []
    return [
        f"the level of the first noise is dropped: the schedule begins with {ratio:.3g} times the "
        "first sigma; scale the noise by that where the tool allows it"
    ]


def _lost_times(schedule: Schedule, form: str) -> list[str]:
    """Sentences on the distance between network times and step times, in the network's steps.

    The nominal times of solvers with two evaluations per step follow from the noise schedule. If
    that
    is a class that is not imported, a sentence says so instead.
    """
    solver, noise = make_solver(schedule.solver), None
    if solver.steps(schedule.nfe) != len(schedule.knots) - 1:
        return ["network times are dropped: the schedule has a table of its own, of no solver here"]
    evals = torch.tensor(schedule.evals, dtype=torch.float64)
    knots = torch.tensor(schedule.knots, dtype=torch.float64)
    try:
        noise = schedule.noise_schedule
    except InputError as error:
        if solver.stages > 1:
            return [f"network times may be dropped, which cannot be told here: {error}"]
        nominal = knots[:-1]
    else:
        nominal = solver.nominal(noise, knots, schedule.nfe)
    apart = (evals - nominal).abs()
    j = int(apart.argmax())
    if float(apart[j]) <= 1e-9 * schedule.knots[0]:
        return []
    in_steps = isinstance(noise, VPDiscrete | FlowMatching)
    n = noise.steps if isinstance(noise, VPDiscrete) else 1000
    far = (
        f"up to {float(apart[j]) * n:.3g} steps"
        if in_steps
        else f"up to {float(apart[j]):.3g} in time"
    )
    where = f"{far} (evaluation {j} of 0 … {schedule.nfe - 1})"
    if form == "timesteps":
        return [
            f"step times are dropped: the tool steps at the network times, which are {where} "
            f"from where it should"
        ]
    return [
        f"network times are dropped: the tool asks the network at the step times, {where} from "
        f"where it should"
    ]


def _lost_end(schedule: Schedule, form: str) -> list[str]:
    if form == "timesteps":
        return [
            f"the last knot, t = {schedule.knots[-1]:.4g}, is not in the list: the tool ends "
            f"where it always does",
            "these times are fractions: many tools round them to integers",
        ]
    if form == "comfyui":
        return [f"the last step goes to 0 instead of sigma = {export_sigmas(schedule)[-1]:.4g}"]
    return []


@dataclass(frozen=True)
class Exported:
    """A schedule in a format, and sentences about what the format cannot carry."""

    text: str
    lost: tuple[str, ...] = ()


def export_text(schedule: Schedule, form: str, steps: int = 1000) -> Exported:
    """A schedule as text in a format of FORMATS, without writing anything.

    Raises InputError for an unknown format and for what the format cannot express.
    """
    if form not in FORMATS:
        raise unknown("--format", form, FORMATS)
    if form == "comfyui":
        text = export_comfyui(schedule)
    elif form == "timesteps":
        text = json.dumps(export_timesteps(schedule, steps))
    else:
        text = json.dumps(export_sigmas(schedule))
    return Exported(text, tuple(lost(schedule, form)))
