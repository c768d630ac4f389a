"""The rows that an output folder holds, by key: what a sweep need not do again.

The tables are read once. Afterwards the driver adds the file of every task that ends, so that it
never reads the folder again while it runs.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..experiment.families import siblings
from ..experiment.plan import Plan, TrialSpec
from ..store.storage import Storage
from ..store.tables import read_records, read_table
from .curves import curve_is_there
from .opened import model_of
from .rungs import log_loss, mean_log
from .schedules import complaint, follows_from_row, write_schedule
from .trial import Outcome

Row = dict[str, Any]


class RowIndex:
    """Rows by key. Of several rows with the same key the latest counts that did not fail.

    Args:
        verify: whether a row counts only with its schedule file, which is read for that.
    """

    def __init__(self, plan: Plan, storage: Storage, verify: bool = True) -> None:
        self.plan, self.storage, self.verify = plan, storage, verify
        self.frame = read_table(storage, "rows")
        order = self.frame.assign(bad=self.frame["status"] == "failed")
        order = order.sort_values(["bad", "started"], ascending=[False, True], kind="stable")
        self.places = dict(zip(order["key"], order.index, strict=True))
        self.new: dict[str, tuple[str, float | None]] = {}
        """Status and held-out loss of the rows that this run has added."""

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles what its searcher holds for a restore that never happens."""
        return {}

    def __contains__(self, key: str) -> bool:
        """True for a row that is there and did not fail."""
        if key in self.new:
            return self.new[key][0] != "failed"
        return key in self.places and self.frame.at[self.places[key], "status"] != "failed"

    def add(self, task: str) -> None:
        """Take in the rows file that a task has just written, if it is there."""
        for row in read_records(self.storage, "rows", task) or ():
            self.new[row["key"]] = (row["status"], row["valid_loss"])

    def learned(self, spec: TrialSpec, outcome: Outcome) -> None:
        """Take in the members of a task as the worker that wrote their rows tells of them."""
        for key, loss in zip(spec.keys, outcome.valid, strict=True):
            self.new[key] = ("ok", loss) if math.isfinite(loss) else ("diverged", None)
        for one in siblings(self.plan, spec) if spec.family else ():
            self.add(one.task)

    def outcome(self, spec: TrialSpec, task: str | None = None) -> Outcome | TrialSpec:
        """The outcome of a trial, or the trial with the members that are still to be learned.

        A member of a family is missing if it is at any of its NFEs. Schedule files that are lost
        or damaged are made again from their rows where that takes no learning; otherwise their
        members are learned again.

        Args:
            task: name of a task that has just ended; its rows are read first.
        """
        if task is not None:
            self.add(task)
        family = siblings(self.plan, spec)
        valid = [self._losses(one) for one in family]
        missing = {i for found in valid for i, loss in enumerate(found) if loss is None}
        if missing:
            return spec.only(sorted(missing))
        known = [[math.inf if loss is None else loss for loss in found] for found in valid]
        objective = mean_log([log_loss([seed for seed, _ in spec.members], one) for one in known])
        status = "ok" if math.isfinite(objective) else "diverged"
        own = known[[one.cell.nfe for one in family].index(spec.cell.nfe)]
        return Outcome(spec.task, objective, tuple(own), status)

    def _losses(self, spec: TrialSpec) -> list[float | None]:
        """The held-out losses of a trial's members, as `_loss` has them."""
        return [self._loss(spec, i, key) for i, key in enumerate(spec.keys)]

    def _loss(self, spec: TrialSpec, member: int, key: str) -> float | None:
        """The held-out loss of a member, infinite if it came to nothing; None if it is missing."""
        if key not in self:
            return None
        if key in self.new:
            status, loss = self.new[key]
        else:
            row = self.row(key)
            status, loss = row["status"], row["valid_loss"]
            verify = status == "ok" and self.verify
            if verify and spec.curves and not curve_is_there(self.storage, spec.curves[member]):
                return None
            if verify and complaint(self.storage, row):
                if not follows_from_row(spec):
                    return None
                model = model_of(spec.cell.model, "cpu")
                write_schedule(self.plan, spec.only([member]), self.storage, model, row)
        return loss if status == "ok" and loss is not None else math.inf

    def row(self, key: str) -> Row:
        """A row that was there at the start, as plain values; None for what is missing."""
        found = self.frame.loc[self.places[key]].astype(object)
        return {str(k): _plain(value) for k, value in found.where(found.notna(), None).items()}


def _plain(value: Any) -> Any:
    """A value of a frame without numpy's types."""
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value
