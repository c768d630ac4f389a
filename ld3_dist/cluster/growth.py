"""The work that an experiment finds to do in an output folder, counted before anything runs.

    shards         of teacher pairs
    baselines      rows of hand-made grids
    trials         points of cells, round by round; their members are the rows
    members        learned rows
    evaluations    of the grids, the teachers, and the learned rows that `evaluate.rows` asks for

Files are counted by their names and rows by their keys; nothing is verified, so that the answer
comes at once. Proposals of a sampler follow from earlier results: where a trial is missing, the
later rounds of its study count as work to do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ..experiment.plan import Plan, TrialSpec
from ..experiment.sections import BestPer
from ..store.frames import column, where
from ..store.storage import Storage
from ..store.tables import read_table
from ..tasks.index import RowIndex
from ..tasks.scored import evaluations_of
from ..tasks.teach import survey
from .search.proposals import Proposals, Study


@dataclass(frozen=True)
class Count:
    """One kind of work: how much the experiment asks for, and how much of it is there."""

    name: str
    asked: int
    there: int

    @property
    def missing(self) -> int:
        """Work that is still to be done, by stage."""
        return self.asked - self.there


@dataclass(frozen=True)
class Growth:
    """The work of an experiment in a folder.

    counts: by kind of work, in the order of the stages.
    left_out: rows in the folder that this experiment does not ask for; they stay.
    """

    counts: tuple[Count, ...]
    left_out: int


def growth_of(plan: Plan, storage: Storage) -> Growth:
    """Count the work of a plan in an output folder, which need not exist yet."""
    rows = RowIndex(plan, storage, verify=False)
    grids = [key for cell in plan.cells for key, *_ in plan.baselines(cell)]
    seen = {key for key in grids if key in rows}
    there = len(seen)
    trials, members = _search(plan, rows, seen)
    counts = (
        _shards(plan, storage),
        Count("baselines", len(grids), there),
        trials,
        members,
        _evaluations(plan, storage, seen),
    )
    return Growth(counts, sum(key not in seen for key in rows.places))


def _shards(plan: Plan, storage: Storage) -> Count:
    good = missing = 0
    for model in plan.models:
        for teacher in plan.teachers:
            found, gaps, _ = survey(plan, model, storage, teacher, verify=False)
            good, missing = good + len(found), missing + len(gaps)
    return Count("shards", good + missing, good)


def _search(plan: Plan, rows: RowIndex, seen: set[str]) -> tuple[Count, Count]:
    """Trials and members, and into `seen` the keys of the rows that are there."""
    trials, members = [0, 0], [0, 0]
    for asked, missing in _trials(plan, rows):
        trials[0] += 1
        trials[1] += missing == 0
        members[0] += len(asked.keys)
        members[1] += len(asked.keys) - missing
        seen |= {key for key in asked.keys if key in rows}
    return Count("trials", *trials), Count("members", *members)


def _trials(plan: Plan, rows: RowIndex) -> Iterator[tuple[TrialSpec, int]]:
    """Every trial as far as it is known, with the number of its missing members."""
    proposals = Proposals(plan, rows.outcome)
    for cell in plan.cells:
        for point in plan.points_of(cell):
            study = Study(cell, point)
            more = True
            while more:
                found = proposals.ask(study)
                known = found.outcome is not None
                yield found.spec, 0 if known else len(found.missing.keys)
                if not known:  # what is proposed next is not known yet
                    for _ in range(study.round, proposals.rounds):
                        yield found.spec, len(found.spec.keys)
                more = known and proposals.tell(found)


def _evaluations(plan: Plan, storage: Storage, seen: set[str]) -> Count:
    """Evaluations that are asked for; those that are there belong to rows that are asked for."""
    e = plan.experiment
    if not e.evaluate.samples:
        return Count("evaluations", 0, 0)
    found: Iterable[str] = ()
    if storage.exists("evaluations"):  # of these settings; others are another evaluation
        table = read_table(storage, "evaluations", ["key", "evaluation"])
        found = where(table, column(table, "evaluation").isin(evaluations_of(plan)))["key"]
    teachers = {f"teacher:{plan.teacher_key(model)}" for model in plan.models}
    there = len(set(found) & (seen | teachers))
    asked = len(teachers) + len(plan.cells) * len(e.baselines)
    for cell in plan.cells:
        points = plan.points_of(cell)
        members = [len(plan.trial(cell, point).keys) for point in points]
        if e.evaluated_rows == "all":
            asked += sum(members) * e.search.rounds
        elif isinstance(e.evaluated_rows, BestPer):
            axes = e.evaluated_rows.best_per
            levels = {tuple(str(point.get(axis)) for axis in axes) for point in points}
            asked += max(members) * len(levels)
        else:
            asked += max(members)
    return Count("evaluations", asked, min(there, asked))
