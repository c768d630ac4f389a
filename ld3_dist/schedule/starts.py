"""Start grids by name: hand-made ones, computed ones, and the knots of schedule files.

    uniform quadratic poly-<rho> log_snr karras cosine beta ays-{sd15,sdxl,svd}     from the noise
                                                     schedule alone (`core.grid.discretize`)
    dmn hso gits optimal-steps tors sharp-euler      computed (`training_free`)
    FILE.json                                        the knots of a schedule file, for any NFE
    file:FILE                                        the same, or the knots of a list of sigmas
    python:FILE.py:NAME                              a function of your own

A start is a function of a `StartProblem` that returns knots [N+1] from t_max to t_min. Learning
begins with a start. Starts are also baselines, and the teacher's grid.

Learning may also begin with `later:NAME`: the grid of that name, from a time t_0 after t_max that
is learned as well (`core.learning.learnable`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..core.denoiser import Condition, Denoiser
from ..core.errors import InputError
from ..core.grid import DISCRETIZATIONS, Grid, discretize, resample
from ..core.learning.config import LearnConfig
from ..core.learning.learnable import LATER
from ..core.learning.pairs import Pairs
from ..core.learning.procedure import procedures
from ..core.noise import FlowMatching, NoiseSchedule
from ..core.registry import Registry
from ..core.sample import initial_state
from ..core.solver import Solver, make_solver
from ..core.text import read_text
from ..core.user_code import FILE, PREFIX
from ..models import Model
from ..training_free import ALONE, TRAINING_FREE, Findings, evaluations, find_knots
from .file import LIMIT, Schedule, check_same_noise, load_schedule
from .followed import remembered
from .imports.lists import is_schedule, knots_of, read_levels


@dataclass(frozen=True)
class StartProblem:
    """The information that a start may use.

    noise: the model's noise schedule.
    solver, nfe: of the schedule that the grid is for; it has `solver.steps(nfe)` steps.
    denoiser: the network, for starts that follow its trajectories.
    x_T: starting noise [B, *shape] of such trajectories; if None, the start draws its own.
    condition: of the trajectories, B rows.
    findings: of methods of `training_free` along them, for other numbers of steps.
    """

    noise: NoiseSchedule
    solver: Solver
    nfe: int
    denoiser: Denoiser
    x_T: Tensor | None = None
    condition: Condition = None
    findings: Findings | None = None

    @property
    def steps(self) -> int:
        """Number N of steps of the grid."""
        return self.solver.steps(self.nfe)


Start = Callable[[StartProblem], Tensor]
"""A StartProblem -> knots [N+1] in float64, from exactly t_max to exactly t_min."""

starts: Registry[Start] = Registry("start", pattern=("poly-<rho>", "FILE.json", "file:FILE"))


def _hand_made(name: str) -> Start:
    return lambda problem: discretize(problem.noise, problem.steps, name)


def _computed(name: str) -> Start:
    return lambda problem: find_knots(
        name,
        problem.denoiser,
        problem.solver,
        problem.nfe,
        x_T=problem.x_T,
        condition=problem.condition,
        findings=problem.findings,
    )


for _name in DISCRETIZATIONS:
    if "<" not in _name:
        starts.register(_name, _hand_made(_name))
for _name in TRAINING_FREE:
    starts.register(_name, _computed(_name))


def check_start(name: str) -> str:
    """The name itself. Raises InputError if no start has it; files are not read."""
    if name == FILE:
        raise InputError("start 'file:': names no file; write file:their.json")
    if not _is_polynomial(name) and not _is_file(name):
        starts.get(name)
    return name


def check_member(name: str) -> str:
    """As `check_start`, for a start of learning, which may begin later."""
    grid = grid_name(name)
    if grid != name and (not grid or _is_file(grid)):
        raise InputError(
            f"start {name!r}: write later:NAME with the name of a grid that is in no file, "
            "or give the file itself and start_time: true"
        )
    check_start(grid)
    return name


def may_begin_later(noise: NoiseSchedule) -> bool:
    """False for flow matching, where sampling begins at t_max unless somebody asks for another.

    Its pipelines begin from unit noise, whatever the level is at t_0.
    """
    return not isinstance(noise, FlowMatching)


def own_starts(noise: NoiseSchedule, config: LearnConfig) -> tuple[str, ...]:
    """The starts of a procedure for a model of a noise schedule, where none are asked for."""
    return procedures.get(config.procedure).starts_for(config, may_begin_later(noise))


def begins_later(start: object) -> bool:
    """True for a start of learning whose time t_0 is learned as well."""
    return isinstance(start, str) and start.startswith(LATER)


def check_members(starts: Iterable[object], config: LearnConfig) -> None:
    """Check the names among the starts of a run; schedules are left alone.

    Raises InputError for a name that no start has, and for one that begins later with a procedure
    that learns no start time.
    """
    for name in starts:
        if isinstance(name, str):
            check_member(name)
        if begins_later(name) and "start_time" not in vars(config):
            raise InputError(
                f"start {name}: procedure {config.procedure} learns no start time; give "
                f"{grid_name(str(name))}, or procedure: default"
            )


def grid_name(start: str) -> str:
    """The name of the grid that a start of learning begins with, there or later."""
    return start.removeprefix(LATER)


def start_version(name: str) -> str | None:
    """The version of a registered start, for keys; None of a name that has none."""
    grid = grid_name(name)
    return starts.version(grid) if grid in starts else None


def looks_at_pairs(name: str) -> bool:
    """True for a start that may follow the network's trajectories from the noise of pairs."""
    name = grid_name(name)
    alone = (*DISCRETIZATIONS, *ALONE)
    return name not in alone and not _is_polynomial(name) and not _is_file(name)


def search_evals(name: str, steps: int, pairs: int) -> int:
    """Network evaluations, counted per sample, that finding a start's knots takes.

    None for a grid by formula and for a file; what a function of your own does is not known.

    Args:
        pairs: teacher pairs whose noise the trajectories begin from.
    """
    grid = grid_name(name)
    return evaluations(grid, steps, pairs) if grid in TRAINING_FREE else 0


def start_knots(
    name: str, model: Model, solver: Solver, nfe: int, pairs: Pairs | None = None
) -> Tensor:
    """The knots [N+1] of a start for a model, float64.

    Args:
        pairs: trajectories start from their noise and conditions; if not given, the start draws
            its own.

    Raises InputError for an unknown name, for a file that is no schedule or of another noise
    schedule, and for knots of a user's own start that are no grid of the model's noise schedule.
    """
    noise = model.denoiser.noise
    if name.startswith(FILE):
        return file_knots(name.removeprefix(FILE), model, solver.steps(nfe))
    if _is_file(name):
        return schedule_knots(load_schedule(name), model, solver.steps(nfe), name)
    if _is_polynomial(name):
        return discretize(noise, solver.steps(nfe), name)
    x_T = None if pairs is None else initial_state(model.denoiser, pairs.noise)
    condition = None if pairs is None else pairs.condition
    problem = StartProblem(noise, solver, nfe, model.denoiser, x_T, condition)
    start = starts.get(name)
    find = lambda findings: start(replace(problem, findings=findings))
    try:
        found = remembered(name, model, problem.steps, x_T, condition, find)
    except InputError:
        raise
    except Exception as error:  # it may be somebody else's code: anything may come
        if not name.startswith(PREFIX):
            raise
        raise InputError(f"start {name!r}: fails ({type(error).__name__}: {error})") from error
    return _checked(name, found, problem)


def schedule_knots(schedule: Schedule, model: Model, steps: int, name: str) -> Tensor:
    """Knots [steps + 1] like the knots of a schedule, which may have another number of steps.

    Args:
        name: the schedule's name in messages.

    Raises InputError for a schedule of another noise schedule than the model's.
    """
    noise = model.denoiser.noise
    try:
        check_same_noise(schedule, noise, model.id)
        if schedule.curve is not None:  # read where its own solver takes so many steps
            schedule = schedule.at(make_solver(schedule.solver).stages * steps)
        knots = resample(noise, torch.tensor(schedule.knots, dtype=torch.float64), steps)
        return torch.cat([knots.new_tensor([noise.t_max]), knots[1:]])  # a start begins there
    except InputError as error:
        raise InputError(f"{name}: {error}; or a hand-made grid") from error


def file_knots(place: str, model: Model, steps: int) -> Tensor:
    """Knots [steps + 1] of a file: a schedule file, or a list of noise levels.

    A list with another number of steps is interpolated linearly in log(level).

    Raises InputError for a file that is neither, and for one of another noise schedule.
    """
    schedule = schedule_in(place)
    if schedule is not None:
        return schedule_knots(schedule, model, steps, place)
    levels = read_levels(place)
    try:
        return knots_of(levels, model.denoiser.noise, steps)
    except InputError as error:
        raise InputError(f"{place}: {error}") from error


def schedule_in(place: str) -> Schedule | None:
    """The schedule of a file; None for a local file that is a list of numbers."""
    if "://" not in place and not is_schedule(
        read_text(place, "a schedule or a list of sigmas", LIMIT)
    ):
        return None
    return load_schedule(place)


def _is_file(name: str) -> bool:
    """True for a name that stands for a file of a schedule or a list."""
    return name.startswith(FILE) or (name.endswith(".json") and not name.startswith(PREFIX))


def _checked(name: str, knots: Tensor, problem: StartProblem) -> Tensor:
    """The knots in float64 on the CPU, if they are a grid of so many steps."""
    if not isinstance(knots, Tensor) or knots.shape != (problem.steps + 1,):
        found = list(knots.shape) if isinstance(knots, Tensor) else type(knots).__name__
        raise InputError(f"start {name}: made {found}, need knots [{problem.steps + 1}]")
    noise = problem.noise
    try:
        knots = knots.detach().cpu().double()
        for end, wanted, word in (
            (knots[0], noise.t_max, "t_max"),
            (knots[-1], noise.t_min, "t_min"),
        ):
            if not math.isclose(end.item(), wanted, rel_tol=1e-6, abs_tol=1e-9):
                raise InputError(f"a knot at an end is {end.item():g}, need {word} = {wanted:g}")
        return Grid(knots, knots[:1]).within(problem.noise).knots
    except InputError as error:
        raise InputError(f"start {name}: {error}") from error


def _is_polynomial(name: str) -> bool:
    return re.fullmatch(r"poly-\d+(\.\d+)?", name) is not None
