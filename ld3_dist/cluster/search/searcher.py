"""One Optuna study per cell, asked in generations, so that what is proposed never depends on who
finished first.

A generation is one pass over the cell's grid points; Optuna proposes the other axes. All its trials
are asked before any of them is told, and told in the order of the asks once all are done. A
proposal therefore depends on the seed and on earlier generations' objectives alone. While one
cell's generation drains, other cells' trials run.

A trial whose rows are already there is answered from them on the spot: a resumed sweep rebuilds its
studies and hands out only what is missing."""

from __future__ import annotations

import json
import math
import warnings
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState
from ray.tune.search import Searcher

from ...core.learning.procedure import make_config
from ...experiment.plan import Cell, Plan, TrialSpec, digest
from ...experiment.sections import Range
from ...tasks.trial import Outcome

Finished = Callable[[TrialSpec], Outcome | None]
Mirror = Callable[["Proposal", bool], None]


@dataclass
class Proposal:
    """A trial of a study: where it stands, what it is, and how it ended."""

    spec: TrialSpec
    number: int
    generation: int
    asked: optuna.Trial
    outcome: Outcome | None = None


@dataclass
class CellStudy:
    """The study of one cell and the generation it is working on."""

    cell: Cell
    study: optuna.Study
    generation: int = 0
    current: list[Proposal] = field(default_factory=list)
    queue: deque[Proposal] = field(default_factory=deque)


def distributions(plan: Plan) -> dict[str, BaseDistribution]:
    """Optuna's view of the continuous and categorical axes."""
    defaults, made = make_config(plan.experiment.procedures[0]), {}
    for key, axis in sorted(
        plan.experiment.search.optuna.items()
    ):  # the sampler draws in this order
        if not isinstance(axis, Range):
            made[key] = CategoricalDistribution(axis)
        elif isinstance(getattr(defaults, key, 0.0), int):
            made[key] = IntDistribution(int(axis.low), int(axis.high), log=axis.log)
        else:
            made[key] = FloatDistribution(axis.low, axis.high, log=axis.log)
    return made


def make_sampler(kind: str, seed: int) -> optuna.samplers.BaseSampler:
    """The sampler of a cell, seeded."""
    if kind == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    if kind == "qmc":
        return optuna.samplers.QMCSampler(seed=seed, scramble=True)
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=8, multivariate=True)


class CellSearcher(Searcher):
    """Ray Tune's searcher over all cells of a plan.

    Args:
        finished: a trial's outcome if its rows exist, else None; asked once per proposal.
        ready: labels of the models whose teacher pairs are complete; may grow while the search
            runs.
        limit: how many trials may be out at once.
        mirror: told of every finished trial, and whether it finished in this run.
    """

    def __init__(
        self,
        plan: Plan,
        finished: Finished,
        ready: set[str],
        limit: int,
        mirror: Mirror | None = None,
    ) -> None:
        super().__init__(metric="objective", mode="min")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        self.plan, self.finished, self.ready, self.limit = plan, finished, ready, limit
        self.mirror = mirror or (lambda proposal, new: None)
        self.axes, self.points = distributions(plan), plan.grid_points()
        self.live: dict[str, tuple[CellStudy, Proposal]] = {}
        self.found = 0  # trials answered from rows
        self.studies = [CellStudy(cell, self._new_study(cell)) for cell in plan.cells]
        self.turn = 0
        self.failed: list[Proposal] = []
        self.hopeless: set[str] = set()  # models that will never be ready

    def _new_study(self, cell: Cell) -> optuna.Study:
        seed = int(digest([self.plan.experiment.seed, cell.id]), 16) % 2**31
        sampler = make_sampler(self.plan.experiment.search.sampler, seed)
        return optuna.create_study(direction="minimize", sampler=sampler, study_name=cell.id)

    @property
    def total(self) -> int:
        """Trials of the whole search."""
        return len(self.studies) * self.plan.experiment.search.rounds * len(self.points)

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """Return the next trial, None while there is none to give, FINISHED at the end."""
        if len(self.live) >= self.limit:
            return None
        waiting = False
        for offset in range(len(self.studies)):
            study = self.studies[(self.turn + offset) % len(self.studies)]
            if study.cell.model.label not in self.ready:
                waiting = waiting or study.cell.model.label not in self.hopeless
                continue
            self._advance(study)
            if study.queue:
                proposal = study.queue.popleft()
                self.live[trial_id] = (study, proposal)
                self.turn = (self.turn + offset + 1) % len(self.studies)
                return {
                    "cell": proposal.spec.cell.id, "key": proposal.spec.key,
                    "settings": json.dumps(proposal.spec.settings),
                    "trial": proposal.number, "generation": proposal.generation,
                }  # fmt: skip
            waiting = waiting or bool(study.current)
        # FINISHED is a string that Tune expects here, though its annotation leaves it out
        return None if waiting else cast("dict[str, Any]", Searcher.FINISHED)

    def _advance(self, study: CellStudy) -> None:
        """Tell a finished generation, ask the next; what has rows already is answered at once."""
        while not study.queue:
            if any(p.outcome is None for p in study.current):
                return
            for p in study.current:
                assert p.outcome is not None
                good = math.isfinite(p.outcome.objective)
                study.study.tell(
                    p.asked,
                    p.outcome.objective if good else None,
                    TrialState.COMPLETE if good else TrialState.FAIL,
                )
            study.current = []
            if study.generation == self.plan.experiment.search.rounds:
                return
            self._ask(study)

    def _ask(self, study: CellStudy) -> None:
        for i, point in enumerate(self.points):
            if point:
                study.study.enqueue_trial(
                    dict(point)
                )  # the grid's values are fixed parameters to the sampler
            fixed = {
                key: CategoricalDistribution(self.plan.experiment.search.grid[key]) for key in point
            }
            asked = study.study.ask({**fixed, **self.axes})
            spec = self.plan.trial(study.cell, asked.params)
            number = study.generation * len(self.points) + i
            proposal = Proposal(spec, number, study.generation, asked, self.finished(spec))
            study.current.append(proposal)
            if proposal.outcome is None:
                study.queue.append(proposal)
            else:
                self.found += 1
                self.mirror(proposal, False)
        study.generation += 1

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Intermediate results are for schedulers, not for studies."""

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Record how a trial ended; its study hears of it when its whole generation is done."""
        entry = self.live.pop(trial_id, None)
        if entry is None:
            return
        _, proposal = entry
        objective = (result or {}).get("objective")
        good = not error and objective is not None and math.isfinite(objective)
        objective = float(objective) if good and objective is not None else math.inf
        rows = proposal.outcome = self.finished(proposal.spec)  # the rows are the truth
        if proposal.outcome is None:
            proposal.outcome = Outcome(proposal.spec.key, objective, (), "ok" if good else "failed")
            if not good:
                self.failed.append(proposal)
        if error or rows:  # not one that was stopped half-way
            self.mirror(proposal, True)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: a study is rebuilt from the rows."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""
