"""Ray Tune's searcher: hands the trials of all cells to Tune, cells in turn.

Cells of more network evaluations go first: a search should not end with its longest trials, for
which all other workers would have to wait. See `proposals` for what is asked, and why it never
depends on the order in which trials end.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Container, Mapping
from typing import Any, cast

from ray.tune.search import Searcher

from ...experiment.cost import Efforts
from ...experiment.plan import Plan, TrialSpec
from ...store.part import Part
from ...tasks.trial import Outcome
from .proposals import CellStudies, Look, Proposal, Proposals, Study, points_by_cell

Mirror = Callable[[Proposal, bool], None]


class CellSearcher(Searcher):
    """Ray Tune's searcher over all cells of a plan.

    Args:
        look: finds the outcome of a trial among the rows, or the members that are missing.
        ready: labels of the models whose teacher pairs are complete; may grow while the search
            runs.
        limit: how many trials may be out at once.
        mirror: told of every finished trial, and whether it finished in this run.
        note: told of every trial that is asked for, whether or not its rows are there.
        learned: told of members that a worker has learned, so that their rows need not be read.
        part: the part of all points to search; every point if None.
    """

    def __init__(
        self,
        plan: Plan,
        look: Look,
        ready: set[str],
        limit: int,
        mirror: Mirror | None = None,
        note: Callable[[TrialSpec], None] | None = None,
        learned: Callable[[TrialSpec, Outcome], None] | None = None,
        part: Part | None = None,
    ) -> None:
        super().__init__(metric="objective", mode="min")
        self.plan, self.ready, self.limit = plan, ready, limit
        self.mirror = mirror or (lambda proposal, new: None)
        self.note = note or (lambda spec: None)
        self.learned = learned
        self.proposals = Proposals(plan, look)
        shares = points_by_cell(plan, part)
        costly_first = sorted(shares, key=lambda share: -share[0].nfe)
        self.turns = deque(CellStudies(plan, cell, points) for cell, points in costly_first)
        self.cells = {studies.cell.id: studies for studies in self.turns}
        self.live: dict[str, Proposal] = {}
        self.found = 0  # trials answered from rows
        self.failed: list[Proposal] = []
        self.hopeless: set[str] = set()  # models that will never be ready
        rounds = plan.experiment.search.rounds
        self.total = rounds * sum(len(points) for _, points in shares)
        """Trials of the whole search."""
        self.efforts = Efforts(plan)
        once = sum(self.efforts.of(cell, point) for cell, points in shares for point in points)
        self.work, self.work_left = 0, rounds * once
        """Network evaluations of one sample of the trials that ended in this run, and of those that
        neither ended nor were answered from rows."""
        self.foreseen: set[str] = set()  # tasks of trials that are counted as found

    def foresee(self, rows: Container[str]) -> None:
        """Count the trials whose rows are there, before the search comes upon them one by one.

        Proposals of a sampler are not known yet, and are counted as they are answered.
        """
        if self.proposals.axes:
            return
        for studies in self.cells.values():
            for point in studies.points:
                spec = self.plan.trial(studies.cell, point)
                if all(key in rows for key in spec.keys):
                    self.foreseen.add(spec.task)
                    self.found += 1
                    self.work_left -= self.efforts.of(studies.cell, point)

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """Return the next trial, None while there is none to give, FINISHED at the end."""
        if len(self.live) >= self.limit:
            return None
        for _ in range(len(self.turns)):
            studies = self.turns[0]
            label = studies.cell.model.label
            proposal = self._next(studies) if label in self.ready else None
            if proposal is None and self._is_over(studies):
                self.turns.popleft()
                continue
            self.turns.rotate(-1)
            if proposal is not None:
                studies.out += 1
                self.live[trial_id] = proposal
                return proposal.config()
        # FINISHED is a string that Tune expects here, though its annotation leaves it out
        return None if self.turns else cast("dict[str, Any]", Searcher.FINISHED)

    def _is_over(self, studies: CellStudies) -> bool:
        """True for a cell without a trial to come, now that it has none to give."""
        label = studies.cell.model.label
        if label not in self.ready:
            return label in self.hopeless
        return studies.out == 0 and not studies.held

    def _next(self, studies: CellStudies) -> Proposal | None:
        """The next trial of a cell with members to learn; those that have rows are told at once.

        A trial whose sibling is being learned waits for it.
        """
        while (proposal := self._proposal(studies)) is not None:
            if proposal.outcome is None and self._is_learned_elsewhere(proposal):
                studies.held.append(proposal)
            elif proposal.outcome is None:
                self._count(proposal, 0)  # where a row has lost its schedule
                return proposal
            else:
                self._count(proposal, 1)
                self.mirror(proposal, False)
                self._tell(studies, proposal.study, proposal)
        return None

    def _count(self, proposal: Proposal, found: int) -> None:
        """Count a trial as found or not, whatever was foreseen of it."""
        foreseen = proposal.spec.task in self.foreseen
        self.foreseen.discard(proposal.spec.task)
        self.found += found - foreseen
        self.work_left -= (found - foreseen) * self.effort(proposal)

    def _proposal(self, studies: CellStudies) -> Proposal | None:
        """A trial that waited for its sibling, which has ended, or else a new one."""
        for proposal in studies.held:
            if not self._is_learned_elsewhere(proposal):
                studies.held.remove(proposal)
                self.proposals.answer(proposal, proposal.missing.task)
                return proposal
        study = studies.take()
        if study is None:
            return None
        proposal = self.proposals.ask(study)
        self.note(proposal.spec)
        return proposal

    def _is_learned_elsewhere(self, proposal: Proposal) -> bool:
        family = proposal.spec.family
        return family is not None and any(
            other.spec.family == family for other in self.live.values()
        )

    def _tell(self, studies: CellStudies, study: Study, proposal: Proposal) -> None:
        if self.proposals.tell(proposal):
            studies.open.append(study)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Do nothing: intermediate results are for schedulers, not for studies."""

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Record how a trial ended, and tell its study."""
        proposal = self.live.pop(trial_id, None)
        if proposal is None:
            return
        objective = (result or {}).get("objective")
        good = not error and objective is not None and math.isfinite(objective)
        objective = float(objective) if good and objective is not None else math.inf
        told, task = (result or {}).get("outcome"), proposal.missing.task
        if told is not None and self.learned is not None:
            self.learned(proposal.missing, told)
            self.proposals.answer(proposal)
        else:
            self.proposals.answer(proposal, task)  # the rows are the truth
        there = proposal.outcome is not None
        if not there:
            status = "ok" if good else "failed"
            proposal.outcome = Outcome(task, objective, (), status)
            if not good:
                self.failed.append(proposal)
        effort = self.effort(proposal)
        self.work, self.work_left = self.work + effort, self.work_left - effort
        studies = self.cells[proposal.spec.cell.id]
        studies.out -= 1
        self._tell(studies, proposal.study, proposal)
        if error or there:  # not one that was stopped half-way
            self.mirror(proposal, True)

    def effort(self, proposal: Proposal) -> int:
        """Network evaluations of one sample that a trial takes."""
        return self.efforts.of(proposal.study.cell, proposal.study.point)

    def work_inside(self, shares: Mapping[str, float]) -> float:
        """The part of the work inside of trials, by their ids and the shares that are done."""
        live = {trial_id: self.live.get(trial_id) for trial_id in shares}
        return sum(shares[name] * self.effort(found) for name, found in live.items() if found)

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: a study is rebuilt from the rows."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing."""
