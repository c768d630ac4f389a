"""Learning of one cell: a model, a solver, an NFE and teacher pairs give a schedule.

`ld3-dist learn`, a trial of a sweep, the benchmarks and Python all call these functions.

    learning   a generator over epochs, of all members (seeds x starts) side by side
    learn      the best member as a Schedule, compared with the hand-made grids
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..core.comparison import Distance
from ..core.errors import InputError
from ..core.learning.config import LearnConfig
from ..core.learning.family import FamilyProgress
from ..core.learning.learn import learn as learn_members
from ..core.learning.pairs import Pairs
from ..core.learning.problem import Problem, Progress
from ..core.learning.procedure import make_config, procedures
from ..core.noise import NoiseSchedule
from ..core.solver import Solver, make_solver
from ..models import Model
from ..models.loaded import check_model
from .baselines import BASELINES, Baseline, baselines_of
from .budget import Cell, fit
from .curves import check_nfe, curve_body
from .distances import open_distance
from .file import Schedule
from .making import make_schedule
from .noise import check_writable
from .ranges import HELD, PAIRS, learning_indices
from .sampling import device_of, in_loss_space
from .several import several
from .starts import (
    begins_later,
    check_members,
    grid_name,
    looks_at_pairs,
    own_starts,
    schedule_knots,
    start_knots,
)
from .teaching import Diverged, Teacher, split, teach
from .trying import try_procedure, try_start

log = logging.getLogger("ld3_dist")

SEEDS = 1000
"""Member seed s of a sweep with seed S draws its batches with seed SEEDS * S + s."""

ROUNDING = 1e-4
"""Relative difference of two losses that comes from splitting samples into other parts."""

Start = str | Schedule
"""A start by name, or another schedule of the same model."""


# Most lines are the arguments and what each of them means.
def learning(
    model: Model,
    solver: str,
    nfe: int | Sequence[int],
    pairs: Pairs,
    valid: Pairs | None = None,
    *,
    starts: Start | Sequence[Start] = (),
    distance: str | Mapping[str, float] | Distance = "l2",
    config: LearnConfig | None = None,
    seeds: Sequence[int] = (0,),
    subsets: Sequence[Sequence[int]] | None = None,
    members: Sequence[tuple[int, int]] | None = None,
    start_pairs: Pairs | None = None,
    resume: tuple[int, dict[str, Tensor]] | None = None,
    **settings: Any,
) -> Iterator[Progress]:
    """Learn a schedule, epoch by epoch; the first Progress is the start itself.

    Members share every network call. If not chosen by `members`, they are all seeds with all
    starts, starts varying fastest.

    Args:
        solver: name of the student, e.g. "dpmpp-3".
        nfe: network evaluations of a sample; several, such as range(4, 11), with
            procedure="curve", which then yields a `FamilyProgress`.
        pairs: teacher pairs to train on, on the model's device.
        valid: pairs held out for the selection; if not given, the first half of `pairs` is held
            out and the rest is trained on.
        starts: names of start grids, or schedules of this model with any number of evaluations; the
            procedure's own if not given. With `later:log_snr` the time at which sampling begins is
            learned too, from that grid.
        distance: name of a distance, or one that is open.
        config: settings from `make_config`; or name them here: procedure="paper", gamma=0.
        seeds: numbers of the members' seeds.
        subsets: for each seed the indices of `pairs` to train on; all of them if not given.
        members: (position in `seeds`, position in `starts`) of each member.
        start_pairs: pairs that starts follow trajectories of; `pairs` if not given.
        resume: as for `core.learning.learn`.

    Raises InputError for anything that cannot be used, before the learning starts.

    >>> import ld3_dist as ld3
    >>> model = ld3.load_model("analytic:mixture-2d")
    >>> pairs = ld3.teach(model, n=12, teacher="unipc-3/10/karras")
    >>> for progress in ld3.learning(model, "ddim", 3, pairs, starts=["karras"], epochs=2):
    ...     print(progress.epoch, len(progress.best_valid))
    0 1
    1 1
    2 1
    """
    check_model(model)
    config = reachable(model, config or make_config(**settings))
    nfes = nfes_of(nfe, solver, config)
    student = make_solver(solver)
    train, valid = split(pairs, valid, model)
    names = several(starts) or own_starts(model.noise, config)
    check_members(names, config)
    if not isinstance(distance, Distance):
        distance = open_distance(distance, model, str(device_of(model)))
    grid = lambda start, one: knots_of(start, model, student, one, start_pairs or train)
    knots = {one: torch.stack([grid(start, one) for start in names]) for one in nfes}
    packed = members or [(seed, start) for seed in range(len(seeds)) for start in range(len(names))]
    chosen = None
    if subsets is not None:
        chosen = torch.tensor([list(subsets[seed]) for seed, _ in packed])
    family = {one: found[[start for _, start in packed]] for one, found in knots.items()}
    problem = Problem(
        model.denoiser,
        student,
        family[nfes[-1]],
        train,
        valid,
        distance,
        nfes[-1],
        [SEEDS * config.seed + seeds[seed] for seed, _ in packed],
        chosen,
        family,
        [begins_later(names[start]) for _, start in packed],
    )
    yield from learn_members(problem, config, resume=resume)


# Most lines are the arguments and what each of them means.
def learn(
    model: Model,
    solver: str = "ipndm-3",
    nfe: int | Sequence[int] = 6,
    pairs: Pairs | None = None,
    valid: Pairs | None = None,
    *,
    starts: Start | Sequence[Start] = (),
    distance: str | Mapping[str, float] | Distance = "l2",
    teacher: str | Teacher = "unipc-3/20/karras",
    space: str = "image",
    baselines: str | Sequence[str] = BASELINES,
    on_progress: Callable[[Progress], None] | None = None,
    budget: int | None = None,
    minutes: float | None = None,
    **settings: Any,
) -> Schedule:
    """Learn one schedule for one model, here and now.

    Several starts are learned side by side and the best result is kept. If a hand-made grid is
    better still, that grid is returned, and a warning says so.

    Args:
        nfe: network evaluations of a sample; several with procedure="curve", whose Schedule gives
            the grid of any NFE, also of others: schedule.at(7).
        pairs, valid: as for `learning`; if not given, 150 pairs of `seed` are made, 50 held out.
        teacher: solver/NFE/grid, written into the schedule's provenance. If no pairs are given,
            they are made with it.
        space: "image" or "latent", the space of the pairs' targets.
        baselines: hand-made grids to compare with.
        on_progress: called after every epoch.
        budget: the most network evaluations, counted per sample, teaching included: pairs, epochs
            and starts that are not given are fitted to it (see `schedule.budget`).
        minutes: the same by the time that evaluations take on the model's device.
        settings: of the procedure, by name: procedure="paper", gamma=0, coefficients=True, seed=1.

    Raises InputError for anything that cannot be used, before any work, and Diverged if the
    model's samples are not finite.

    >>> import ld3_dist as ld3
    >>> model = ld3.load_model("analytic:mixture-2d")
    >>> pairs = ld3.teach(model, n=12, teacher="unipc-3/10/karras")
    >>> schedule = ld3.learn(model, "ddim", nfe=3, pairs=pairs, starts=["karras"], epochs=2)
    >>> schedule.nfe, len(schedule.knots)
    (3, 4)
    """
    check_model(model)
    starts, baselines = several(starts), several(baselines)
    config = reachable(model, make_config(**settings))
    nfes = nfes_of(nfe, solver, config)
    opened = distance
    if not isinstance(opened, Distance):
        opened = open_distance(opened, model, str(device_of(model)))
    viewed = in_loss_space(model, space)
    names = check_before(viewed, solver, nfes, config, starts, opened)
    taught = None if pairs is None else split(pairs, valid, viewed)
    indices, held = learning_indices(PAIRS, HELD), HELD
    if budget is not None or minutes is not None:
        plan = fit(
            Cell(
                viewed, solver, nfes, config, teacher if pairs is None else None, baselines,
                starts=starts, epochs=settings.get("epochs"),
                counts=None if taught is None else (len(taught[0]), len(taught[1])),
            ),
            budget, minutes,
        )  # fmt: skip
        log.info("%s", plan)
        config, names = replace(config, epochs=plan.epochs), plan.starts
        indices, held = plan.indices, plan.valid
    if taught is None:
        made = teach(model, seed=config.seed, teacher=teacher, space=space, indices=indices)
        taught = made[held:], made[:held]
    train, valid = taught
    first = progress = None
    for progress in learning(
        viewed, solver, nfes, train, valid, starts=names, distance=opened, config=config
    ):
        first = first or progress
        if on_progress:
            on_progress(progress)
    assert first is not None
    assert progress is not None
    best = int(progress.best_valid.argmin())
    loss = progress.best_valid[best].item()
    if not math.isfinite(loss):
        listed = ", ".join(map(str, nfes))
        raise Diverged(
            f"the held-out loss was {loss} from the start on: {model.id} does not give finite "
            f"samples in {listed} evaluations of {solver}; nothing is written"
        )
    student = make_solver(solver)
    measured = {
        one: baselines_of(viewed, student, one, valid, opened, baselines, train) for one in nfes
    }
    own = nfes[-1]
    made = make_schedule(
        model, solver, own, progress.at(own), best, config, start=_name(names[best]),
        start_loss=first.at(own).valid[best].item(), baselines=_losses(measured[own]),
    )  # fmt: skip
    if isinstance(progress, FamilyProgress):
        return _with_curve(made, progress, best, measured)
    return _better(made, model.noise, measured[own], loss)


def _losses(measured: Mapping[str, Baseline]) -> dict[str, float | None]:
    return {name: baseline.loss for name, baseline in measured.items()}


def _with_curve(
    schedule: Schedule,
    progress: FamilyProgress,
    member: int,
    measured: Mapping[int, Mapping[str, Baseline]],
) -> Schedule:
    """A schedule with its member's curve, and a warning for NFEs where a hand-made grid is better.

    Args:
        measured: the hand-made grids of every NFE.
    """
    losses = {nfe: _losses(found) for nfe, found in measured.items()}
    made = replace(schedule, curve=curve_body(progress, member, losses))
    assert made.curve is not None
    for nfe, loss in made.curve["losses"].items():
        grids = made.curve["baselines"].get(nfe, {})
        usable = {name: value for name, value in grids.items() if value is not None}
        name = min(usable, key=lambda one: usable[one], default=None)
        if name is not None and usable[name] < loss * (1 - ROUNDING):
            log.warning(
                "at %s evaluations the hand-made grid %s is better than the curve (held-out loss "
                "%.4g, curve %.4g); try it as a start, more epochs, or more points",
                nfe,
                name,
                usable[name],
                loss,
            )
    return made


def check_before(
    model: Model,
    solver: str,
    nfe: int | Sequence[int],
    config: LearnConfig,
    starts: Sequence[Start],
    distance: Distance,
) -> tuple[Start, ...]:
    """The starts of a run, the procedure's own if none are given, after everything was tried once.

    Args:
        model: with losses in the space that is asked for (`in_loss_space`).

    Raises InputError for a noise schedule that no file can hold, a start that is no grid of the
    model's, a solver that fails, and a procedure of a user's own that fails.
    """
    check_writable(model.noise)
    nfes, student = nfes_of(nfe, solver, config), make_solver(solver)
    names = tuple(starts) or own_starts(model.noise, config)
    check_members(names, config)
    for name in names:  # starts that need no pairs are made now, so that a bad one costs no work
        if isinstance(name, Schedule) or not looks_at_pairs(name):
            for one in nfes:
                knots_of(name, model, student, one, None)
    try_start("uniform", model, solver, nfes[-1])
    try_procedure(config, model, solver, nfes[-1], distance)
    return names


def reachable(model: Model, config: LearnConfig) -> LearnConfig:
    """The settings, with network times fixed for a network without a gradient in its time."""
    if model.time_gradient or not config.offset_window:
        return config
    log.warning(
        "%s has no gradient with respect to time: network times are not learned (offset_window 0)",
        model.id,
    )
    return replace(config, offset_window=0.0)


def _better(
    learned: Schedule, noise: NoiseSchedule, baselines: dict[str, Baseline], loss: float
) -> Schedule:
    """The learned schedule, or the hand-made grid that beats it, with a warning."""
    usable = {name: b for name, b in baselines.items() if b.loss is not None}
    if not usable:
        return learned
    name, base = min(usable.items(), key=lambda item: item[1].loss or math.inf)
    if base.loss is None or base.loss >= loss * (1 - ROUNDING):
        return learned
    log.warning(
        "learning did not beat the hand-made grid %s (held-out loss %.4g, learned %.4g): the grid "
        "is kept; try other starts (%s among them), more epochs, a smaller lr or more pairs",
        name,
        base.loss,
        loss,
        name,
    )
    return base.as_schedule(learned, noise, name)


def knots_of(start: Start, model: Model, student: Solver, nfe: int, pairs: Pairs | None) -> Tensor:
    """Knots [N+1] of a start by name or of another schedule."""
    if isinstance(start, Schedule):
        return schedule_knots(start, model, student.steps(nfe), "the start")
    return start_knots(grid_name(start), model, student, nfe, pairs)


def check_student(solver: str, nfe: int) -> Solver:
    """The solver, if it can spend so many evaluations. Raises InputError otherwise."""
    student = make_solver(solver)
    check_nfe(student, solver, nfe)
    return student


def nfes_of(nfe: int | Sequence[int], solver: str, config: LearnConfig) -> tuple[int, ...]:
    """The NFEs that are learned on, increasing.

    Raises InputError for one that the solver cannot spend, one that is there twice, and several
    with a procedure that learns one at a time.
    """
    if not isinstance(nfe, Sequence):
        check_student(solver, nfe)
        return (nfe,)
    for one in nfe:
        check_student(solver, one)
    if not nfe or len(set(nfe)) < len(nfe):
        raise InputError(f"nfe = {list(nfe)}: name at least one NFE, and each once")
    if len(nfe) > 1 and not procedures.get(config.procedure).family:
        raise InputError(
            f"nfe = {list(nfe)}: procedure {config.procedure} learns one NFE at a time; "
            "name one, or learn one curve for all of them with procedure: curve"
        )
    return tuple(sorted(nfe))


def _name(start: Start) -> str:
    return start if isinstance(start, str) else f"schedule of {start.solver}, {start.nfe}"
