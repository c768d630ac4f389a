"""The cost of an experiment in network evaluations of one sample; a backward pass counts as two.

No member is assumed to stop early.
"""

from __future__ import annotations

from ..schedule.starts import search_evals
from .cells import Cell, TrialSpec
from .plan import Plan
from .points import Point


def cost_of(plan: Plan) -> dict[str, int]:
    """The cost of a sweep in an empty folder, by stage: teach, search and evaluate.

    The best trial of each cell is evaluated, or every one where `evaluate.rows` asks for that. It
    is an upper bound: a process remembers the grids that it found along trajectories, and here each
    is found anew.
    """
    e = plan.experiment
    teach = 0
    for teacher in plan.teachers:
        samples = sum(stop - start for start, stop in plan.sample_ranges(teacher))
        teach += len(plan.models) * teacher.nfe * samples
    search = evaluate = 0
    grids = len(e.baselines)
    fresh = e.evaluate.samples * e.evaluate.repeats
    for model in plan.models:
        cells = [cell for cell in plan.cells if cell.model == model]
        nfe = sum(cell.nfe for cell in cells)
        trials = [plan.trial(cells[0], point) for point in plan.points_of(cells[0])]
        learned = e.search.rounds * sum(passes(plan, trial) for trial in trials)
        search += nfe * (learned + grids * len(plan.teachers) * e.pairs.valid)
        begun = [(start, trial.train) for trial in trials for _, start in trial.members]
        follow = begun * e.search.rounds
        follow += [(name, e.pairs.train) for name in e.baselines] * len(plan.teachers)
        search += sum(search_evals(name, cell.steps, n) for cell in cells for name, n in follow)
        members = [len(trial.members) for trial in trials]
        every = sum(members) * e.search.rounds
        evaluated = every if e.evaluated_rows == "all" else max(members)
        evaluate += nfe * (grids + evaluated) * fresh
    return {"teach": teach, "search": search, "evaluate": evaluate}


def passes(plan: Plan, trial: TrialSpec) -> int:
    """Samples that a trial brings through its solver, its members together."""
    samples = trial.config.samples(trial.train, plan.experiment.pairs.valid)
    return len(trial.members) * samples


class Efforts:
    """The cost of the trials of a plan, quickly: a sweep asks for every one of them."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.known: dict[str, int] = {}

    def of(self, cell: Cell, point: Point) -> int:
        """The cost of a trial of a point in a cell."""
        name = repr(point)  # cells differ by NFE alone
        if name not in self.known:
            self.known[name] = passes(self.plan, self.plan.trial(cell, point))
        return cell.nfe * self.known[name]
