"""The trials that a search asks for: a study of its own for every point of every cell.

Losses of two cells do not compare, and a point that is added must not change the proposals of the
others. So each (cell, point) has an Optuna study of its own, seeded by the experiment's seed, the
cell and the point. A study proposes one trial at a time, round after round, and is told each
outcome before its next proposal. Which trial ends first therefore changes no proposal; while one
study waits, others go on.

A trial whose rows are already there is answered from them on the spot: a resumed sweep, or one
whose YAML has grown, rebuilds its studies and hands out only what is missing. Studies are made when
they are first asked and forgotten when they end, and a point without proposed axes needs none.
"""

from __future__ import annotations

import json
import math
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState

from ...core.learning.procedure import make_config
from ...experiment.contents import plain_numbers
from ...experiment.families import family_cells, is_family
from ...experiment.plan import Cell, Plan, TrialSpec, digest
from ...experiment.points import Point
from ...experiment.sections import Range
from ...store.part import Part
from ...tasks.trial import Outcome

Look = Callable[[TrialSpec, str | None], Outcome | TrialSpec]
"""The outcome of a trial, or the trial with the members that are missing.

The second argument names a task that has just ended, whose rows are to be read first.
"""


@dataclass(eq=False)
class Study:
    """The study of one point of a cell. round: how many proposals it has made."""

    cell: Cell
    point: Point
    optuna: optuna.Study | None = None
    round: int = 0


@dataclass(eq=False)
class Proposal:
    """A trial of a study.

    spec: with all of its members.
    missing: with the members that are still to be learned.
    round: number of the proposal in its study.
    asked: Optuna's view of it; None of a point without proposed axes.
    """

    study: Study
    spec: TrialSpec
    missing: TrialSpec
    round: int
    asked: optuna.Trial | None
    params: dict[str, Any]
    distributions: dict[str, BaseDistribution]
    outcome: Outcome | None = None

    def config(self) -> dict[str, Any]:
        """The plain values that a worker needs to learn the missing members."""
        return {
            "cell": self.spec.cell.id,
            "key": self.missing.task,
            "settings": json.dumps(self.spec.settings),
            "members": json.dumps(self.missing.members),
            "round": self.round,
        }


class CellStudies:
    """The studies of one cell; those that can be asked now are taken in turn."""

    def __init__(self, plan: Plan, cell: Cell, points: Iterable[Point]) -> None:
        self.plan, self.cell, self.points = plan, cell, tuple(points)
        self.fresh: Iterator[Point] = iter(self.points)
        self.open: deque[Study] = deque()
        self.out = 0
        """Studies that wait for a trial."""
        self.held: deque[Proposal] = deque()
        """Trials that wait for a sibling, which learns their family."""

    def take(self) -> Study | None:
        """The next study that can be asked; None if there is none now."""
        point = next(self.fresh, None)
        if point is not None:
            return Study(self.cell, point)
        return self.open.popleft() if self.open else None


def points_by_cell(plan: Plan, part: Part | None) -> list[tuple[Cell, list[Point]]]:
    """The points of every cell; those of a part of the sweep, if one is given."""
    made, position = [], 0
    first: dict[Any, int] = {}
    for cell in plan.cells:
        points = plan.points_of(cell)
        # a family is one piece of learning: all of its cells are in the part of the first of them
        together = first.setdefault((cell.model.label, cell.solver), position)
        places = [(together if is_family(plan, p) else position) + i for i, p in enumerate(points)]
        mine = zip(places, points, strict=True)
        made.append((cell, [p for i, p in mine if part is None or part.has(i)]))
        position += len(points)
    return made


class Proposals:
    """All trials of a plan, as they are asked for.

    Args:
        look: finds the outcome of a trial among the rows.
    """

    def __init__(self, plan: Plan, look: Look) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        self.plan, self.look = plan, look
        self.rounds = plan.experiment.search.rounds
        self.axes = distributions(plan)
        self.levels = _levels(plan)

    def ask(self, study: Study) -> Proposal:
        """The next trial of a study, with its outcome if all of its rows are there."""
        asked = None
        params = {key: value for key, value in study.point.items() if value is not None}
        found = {key: self.levels[key] for key in params}
        if self.axes:
            if study.optuna is None:
                study.optuna = self._made(study)
            asked = study.optuna.ask(self.axes)
            params, found = params | asked.params, found | self.axes
        spec = self.plan.trial(study.cell, study.point | (asked.params if asked else {}))
        proposal = Proposal(study, spec, spec, study.round, asked, params, found)
        study.round += 1
        self.answer(proposal)
        return proposal

    def answer(self, proposal: Proposal, task: str | None = None) -> None:
        """Look for the outcome of a trial among the rows."""
        known = self.look(proposal.spec, task)
        if isinstance(known, TrialSpec):
            proposal.missing = known
        else:
            proposal.outcome = known

    def tell(self, proposal: Proposal) -> bool:
        """Tell a study how its trial ended; False if it has no more rounds."""
        study, outcome = proposal.study, proposal.outcome
        assert outcome is not None
        if study.optuna is not None and proposal.asked is not None:
            good = math.isfinite(outcome.objective)
            study.optuna.tell(
                proposal.asked,
                outcome.objective if good else None,
                TrialState.COMPLETE if good else TrialState.FAIL,
            )
        if study.round < self.rounds:
            return True
        study.optuna = None
        return False

    def _made(self, study: Study) -> optuna.Study:
        point = plain_numbers(self.plan.portable(study.point))
        where: Any = study.cell.id
        if is_family(self.plan, study.point):  # siblings are proposed the same
            where = [cell.id for cell in family_cells(self.plan, study.cell)]
        name = [self.plan.experiment.seed, where, point]
        seed = int(digest(name), 16) % 2**31
        sampler = make_sampler(self.plan.experiment.search.sampler, seed)
        return optuna.create_study(direction="minimize", sampler=sampler)


def distributions(plan: Plan) -> dict[str, BaseDistribution]:
    """Optuna's view of the proposed axes, in the order in which the sampler draws."""
    defaults, made = make_config(plan.experiment.procedures[0]), {}
    for key, axis in sorted(plan.experiment.search.optuna.items()):
        if not isinstance(axis, Range):
            made[key] = CategoricalDistribution(axis)
        elif isinstance(getattr(defaults, key, 0.0), int):
            made[key] = IntDistribution(int(axis.low), int(axis.high), log=axis.log)
        else:
            made[key] = FloatDistribution(axis.low, axis.high, log=axis.log)
    return made


def make_sampler(kind: str, seed: int) -> optuna.samplers.BaseSampler:
    """The sampler of a study, seeded."""
    if kind == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    if kind == "qmc":
        return optuna.samplers.QMCSampler(seed=seed, scramble=True)
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=8, multivariate=True)


def _levels(plan: Plan) -> dict[str, BaseDistribution]:
    """The values of each axis among the points, as Optuna's dashboard shows them."""
    found: dict[str, dict[Any, None]] = {}
    for point in plan.points():
        for key, value in point.items():
            if value is not None:
                found.setdefault(key, {})[value] = None
    return {key: CategoricalDistribution(tuple(values)) for key, values in found.items()}
