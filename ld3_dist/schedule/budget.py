"""The best learning for a budget: how many pairs, epochs and starts so many evaluations buy.

A budget is the number of network evaluations of one sample, teaching included. A backward pass
counts as two evaluations; one that is repeated to save memory counts once, and so does one with
guidance. With T pairs to train, V held out and one member per start, learning costs at most

    teaching     teacher's NFE (T + V)
    starts       what each start spends on trajectories
    learning     members x NFE x (epochs (3 T + V) + V)          (`LearnConfig.samples`)
    baselines    NFE V per hand-made grid

`RECIPES` is the one place that says what is best. From it the dearest recipe that fits is taken,
and what is left buys more pairs. What a user fixes stays as it is, and the rest is fitted.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from ..core.denoiser import map_condition
from ..core.errors import InputError
from ..core.learning.config import LearnConfig
from ..core.learning.learnable import LATER
from ..core.learning.procedure import procedures
from ..core.sample import initial_state
from ..core.solver import make_solver
from ..models import Model
from ..training_free import TRAINING_FREE
from .file import Schedule
from .ranges import SEED_STRIDE, learning_indices
from .sampling import device_of, draw_inputs
from .starts import begins_later, grid_name, looks_at_pairs, own_starts, search_evals
from .teaching import Teacher
from .trying import FEW, built_in

Start = str | Schedule


@dataclass(frozen=True)
class Recipe:
    """Pairs to train, pairs held out, epochs, and the number of the procedure's starts."""

    train: int
    valid: int
    epochs: int
    starts: int


RECIPES = (
    Recipe(10, 10, 10, 1),
    Recipe(25, 25, 15, 1),
    Recipe(50, 50, 20, 1),
    Recipe(50, 50, 20, 2),
    Recipe(100, 50, 20, 2),
)
"""From cheap to dear; the last is what `ld3-dist learn` does without a budget.

Epochs are those of the default procedure; another one has the same fraction of its own. What is
left buys more pairs, up to GROWTH times as many, and any number after the last recipe. The source
of this: in eight cells of digits, in batches of 10, 200 pairs in 10 epochs had 0.93 of the mean
loss of 50 pairs in 40 epochs on 2,000 fresh pairs and 1.04 of its median, for 0.77 of the
evaluations: neither better nor worse. Batches of 5 are as good after half of the epochs. On 25
pairs, one start that begins later has 0.86 of the mean loss from log_snr and 0.85 of its median, in
four cells and two seeds. More pairs than the default's gain little: 340 have 0.97 of the mean loss
of 100 and 0.98 of the median, in four cells and one seed.
(experiments/benchmarks/generalisation.py)
"""

GROWTH = 4
"""How many times the pairs of a recipe may grow where a dearer one does not fit."""

LEAST = Recipe(10, 10, 1, 1)
"""The least that learns anything: one batch of the default procedure, once."""

CHECKS = 3
"""Evaluations of the check whether activations fit into memory."""

ROWS, RUNS, ENOUGH = 10, 6, 1.0
"""Samples of a measurement of time; the most calls, of which the first does not count; and seconds
after which there is no further call."""

MEASURING = RUNS * ROWS * (1 + 3)
"""Evaluations that measuring the pace takes at most; every plan counts them."""

SAFE = 0.9
"""The fraction of the minutes that is planned for: measured times vary."""


Cost = Callable[[Recipe], float]
"""A recipe -> what it takes of the budget, in evaluations or seconds."""


@dataclass(frozen=True)
class Pace:
    """Seconds of one evaluation of one sample: forward alone, and forward and backward."""

    forward: float
    visit: float


@dataclass(frozen=True)
class Plan:
    """Pairs, epochs and starts for a budget, with their cost.

    parts: network evaluations of each part, at most.
    seconds: estimated; NaN where the pace was not measured.
    """

    train: int
    valid: int
    epochs: int
    starts: tuple[Start, ...]
    parts: Mapping[str, int]
    seconds: float

    @property
    def evaluations(self) -> int:
        """Network evaluations of all parts, at most."""
        return sum(self.parts.values())

    @property
    def indices(self) -> list[int]:
        """Samples to teach: those held out, then those to train on."""
        return learning_indices(self.train, self.valid)

    def __str__(self) -> str:
        names = ", ".join(
            start if isinstance(start, str) else "a schedule" for start in self.starts
        )
        parts = ", ".join(f"{name} {count:,}" for name, count in self.parts.items() if count)
        about = "" if math.isnan(self.seconds) else f", about {_duration(self.seconds)}"
        return (
            f"{self.train} + {self.valid} pairs, {self.epochs} epochs from {names}: at most "
            f"{self.evaluations:,} network evaluations ({parts}){about}"
        )


@dataclass(frozen=True)
class Cell:
    """The cell that a plan is for, and what is fixed.

    nfe: several where one procedure learns for all of them at once.
    teacher: None where the pairs are there already.
    starts: those that a user names; the procedure's own if there are none.
    baselines: hand-made grids that are measured.
    counts: (train, valid) where the pairs are fixed.  epochs: where these are.
    shown: samples that are drawn in a picture, in `nfe` evaluations each.
    """

    model: Model
    solver: str
    nfe: int | Sequence[int]
    config: LearnConfig
    teacher: Teacher | str | None
    baselines: Sequence[str]
    starts: Sequence[Start] = ()
    counts: tuple[int, int] | None = None
    epochs: int | None = None
    shown: int = 0

    @property
    def nfes(self) -> tuple[int, ...]:
        """The numbers of evaluations, at least one."""
        return (self.nfe,) if isinstance(self.nfe, int) else tuple(self.nfe)

    def chosen(self, recipe: Recipe) -> tuple[Start, ...]:
        """The starts of a recipe; a single one begins later where one of the procedure's does."""
        own = own_starts(self.model.noise, self.config)
        if recipe.starts == 1 and any(map(begins_later, own)):
            own = (LATER + grid_name(own[0]),)
        return tuple(self.starts) or own[: recipe.starts]

    def fixed(self, recipe: Recipe) -> Recipe:
        """A recipe with all that a user fixed, and epochs of the procedure."""
        made = recipe
        if self.config.procedure != "default":
            whole = procedures.get(self.config.procedure).Config().epochs
            made = replace(made, epochs=max(1, round(recipe.epochs / RECIPES[-1].epochs * whole)))
        if self.counts is not None:
            made = replace(made, train=self.counts[0], valid=self.counts[1])
        return made if self.epochs is None else replace(made, epochs=self.epochs)

    def parts(self, recipe: Recipe) -> dict[str, int]:
        """Network evaluations of every part of a recipe, at most."""
        config, starts = replace(self.config, epochs=recipe.epochs), self.chosen(recipe)
        all_of_them, solver = sum(self.nfes), make_solver(self.solver)
        checks = CHECKS * len(self.nfes) if config.checkpointing == "auto" else 0
        learning = config.samples(recipe.train, recipe.valid) * all_of_them * len(starts) + checks
        tried = 0
        if not built_in(procedures.get(config.procedure)):
            tried = replace(config, epochs=1).samples(FEW, FEW) * all_of_them + checks
        teacher = Teacher.parse(self.teacher) if isinstance(self.teacher, str) else self.teacher
        each = 0 if teacher is None else teacher.nfe
        searches = (
            search_evals(name, solver.steps(nfe), recipe.train)
            for nfe in self.nfes
            for name in (*starts, *self.baselines)
            if isinstance(name, str)
        )
        return {
            "teaching": each * (recipe.train + recipe.valid),
            "starts": sum(searches),
            "learning": learning + tried,
            "baselines": len(self.baselines) * recipe.valid * all_of_them,
            "picture": self.shown * max(self.nfes),
        }


def fit(cell: Cell, budget: int | None = None, minutes: float | None = None) -> Plan:
    """The best plan that a budget allows, in evaluations or in minutes, with its estimated time.

    Measuring the model's pace counts. Raises as `plan_learning` does.
    """
    _check(cell, budget, minutes)
    if budget is not None:
        plan_learning(cell, budget)  # one that is too small is refused before anything runs
    return plan_learning(cell, budget, minutes, measure_pace(cell.model))


def plan_learning(
    cell: Cell, budget: int | None = None, minutes: float | None = None, pace: Pace | None = None
) -> Plan:
    """The best plan that a budget allows, in evaluations or in minutes.

    Args:
        pace: of the model, if it was measured; minutes need one.

    Raises InputError for a budget that is too small for one epoch, with the least that would do.
    """
    _check(cell, budget, minutes)

    def total(recipe: Recipe) -> float:
        parts = cell.parts(recipe)
        if minutes is not None:
            assert pace is not None
            return _seconds(parts, cell, recipe, pace)
        return sum(parts.values()) + MEASURING

    most = float(budget) if budget is not None else 60 * SAFE * float(minutes or 0)
    found = next((r for r in _candidates(cell, most, total) if total(r) <= most), None)
    if found is None:
        raise _too_small(cell, budget, minutes, total)
    parts = cell.parts(found) | {"measuring": MEASURING}
    seconds = math.nan if pace is None else _seconds(cell.parts(found), cell, found, pace)
    return Plan(found.train, found.valid, found.epochs, cell.chosen(found), parts, seconds)


def measure_pace(model: Model) -> Pace:
    """Measure the seconds of one evaluation on the model's device, without and with gradients.

    The batch is as small as those of learning. Decoding a latent is timed with it. The pace is the
    median of some calls: other programs can delay a single one many times over.
    """
    denoiser, home = model.denoiser, device_of(model)
    z, condition = draw_inputs(model, 0, range(ROWS))
    x = initial_state(denoiser, z.to(home))
    given = map_condition(lambda c: c.to(home), condition)
    t = torch.full((ROWS,), math.sqrt(denoiser.noise.t_max * max(denoiser.noise.t_min, 1e-4)))
    t = t.to(home)

    def visit() -> None:
        y, at = x.clone().requires_grad_(), t.clone().requires_grad_()
        denoiser.decode(denoiser(y, at, given)).sum().backward()

    def forward() -> None:
        with torch.no_grad():
            denoiser.decode(denoiser(x, t, given))

    return Pace(*(_median_time(run, home) / ROWS for run in (forward, visit)))


def _median_time(run: Callable[[], object], home: torch.device) -> float:
    """The median seconds of a call, after one that does not count."""
    run()
    taken: list[float] = []
    while not taken or (len(taken) < RUNS - 1 and sum(taken) < ENOUGH):
        taken.append(_timed(run, home))
    return statistics.median(taken)


def _timed(run: Callable[[], object], home: torch.device) -> float:
    waits = torch.cuda.synchronize if home.type == "cuda" else lambda: None
    waits()
    began = time.perf_counter()
    run()
    waits()
    return time.perf_counter() - began


def _candidates(cell: Cell, most: float, total: Cost) -> Iterator[Recipe]:
    """Recipes from dear to cheap: with more pairs, as they are, and with fewer epochs."""
    fixed = [cell.fixed(recipe) for recipe in RECIPES]
    fitting = [recipe for recipe in fixed if total(recipe) <= most]
    if cell.counts is None and fitting:
        last = fitting[-1] == fixed[-1]
        limit = SEED_STRIDE if last else GROWTH * fitting[-1].train
        yield _largest(fitting[-1], "pairs", limit, most, total)
    yield from reversed(fixed)
    if cell.epochs is None and total(replace(fixed[0], epochs=1)) <= most:
        yield _largest(replace(fixed[0], epochs=1), "epochs", fixed[0].epochs, most, total)
    least = cell.fixed(LEAST)
    if cell.epochs is None and total(replace(least, epochs=1)) <= most:
        yield replace(least, epochs=1)
    yield least


def _largest(recipe: Recipe, what: str, limit: int, most: float, total: Cost) -> Recipe:
    """A recipe that fits with as many epochs, or pairs, up to a limit, as fit."""

    def made(count: int) -> Recipe:
        if what == "epochs":
            return replace(recipe, epochs=count)
        valid = round(count * recipe.valid / recipe.train)
        return replace(recipe, train=count, valid=min(valid, SEED_STRIDE))

    low, high = recipe.epochs if what == "epochs" else recipe.train, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if total(made(middle)) <= most else (low, middle - 1)
    return made(low)


def _check(cell: Cell, budget: int | None, minutes: float | None) -> None:
    if budget is not None and minutes is not None:
        raise InputError(f"budget = {budget} and minutes = {minutes:g}: give one of the two")
    whole = isinstance(budget, int) and not isinstance(budget, bool)
    if budget is not None and not (whole and 0 < budget < 10**15):
        raise InputError(f"budget = {budget!r}: give a number of network evaluations, e.g. 30000")
    if minutes is not None and not 0 < minutes < 10**6:
        raise InputError(f"minutes = {minutes!r}: give a positive number of minutes, e.g. 5")
    for name in (*cell.starts, *cell.baselines):
        if isinstance(name, Schedule):
            continue
        if grid_name(name) not in TRAINING_FREE and looks_at_pairs(name):
            raise InputError(
                f"start {name}: nothing says how many evaluations it takes, so that it fits into "
                "no budget; leave out the budget, or name another start"
            )


def _too_small(cell: Cell, budget: int | None, minutes: float | None, total: Cost) -> InputError:
    least = cell.fixed(LEAST)
    needed = total(least if cell.epochs is not None else replace(least, epochs=1))
    if budget is not None:
        given, wanted = f"budget = {budget:,}", f"{needed:,.0f} network evaluations"
    else:
        given, wanted = f"minutes = {minutes:g}", f"{needed / 60 / SAFE:.3g} minutes"
    epochs = "one epoch" if least.epochs == 1 or cell.epochs is None else f"{least.epochs} epochs"
    nfes = ", ".join(map(str, cell.nfes))
    return InputError(
        f"{given}: too small for {epochs} of {cell.solver} in {nfes} evaluations; with "
        f"{least.train} + {least.valid} pairs the least is {wanted}"
    )


def _seconds(parts: Mapping[str, int], cell: Cell, recipe: Recipe, pace: Pace) -> float:
    """The estimated time of a recipe: of a visit of NFE evaluations two thirds are backward."""
    members = len(cell.chosen(recipe))
    visits = recipe.epochs * recipe.train * sum(cell.nfes) * members
    return pace.visit * visits + pace.forward * (sum(parts.values()) - 3 * visits)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} minutes"
