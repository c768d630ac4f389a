"""Families: the cells of one model and solver whose schedules are learned at once, as one curve.

With a procedure of families (`curve`) the cells of a model and a solver over all NFEs of the
experiment are one piece of learning. Each of them still has trials, rows and keys of its own, as
every other cell has; the trials of the cells with the same point are siblings. One of them learns
the curve and writes the rows of all; the others then find theirs. The NFEs are part of every key:
with another list of them there is another family, and nothing of the first is mixed into it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..core.learning.procedure import procedures
from .cells import Cell, TrialSpec
from .points import Point

if TYPE_CHECKING:
    from .plan import Plan

NFES = "nfes"
"""The key of a trial's settings that holds the NFEs of its family."""


def is_family(plan: Plan, point: Point) -> bool:
    """True for a point whose schedules are learned as a family."""
    e = plan.experiment
    named = point.get("procedure") or e.learn.get("procedure", "default")
    return procedures.get(str(named)).family


def nfes_of(settings: dict[str, Any]) -> list[int]:
    """The NFEs of a trial's family, increasing; none for a trial that learns its cell alone."""
    return list(settings.get(NFES, ()))


def family_cells(plan: Plan, cell: Cell) -> list[Cell]:
    """The cells of an experiment that a family of this cell has, by their NFE."""
    found = [one for one in plan.cells if (one.model, one.solver) == (cell.model, cell.solver)]
    return sorted(found, key=lambda one: one.nfe)


def siblings(plan: Plan, spec: TrialSpec) -> list[TrialSpec]:
    """The trials that are learned together with this one, by their NFE; it is among them.

    A trial that learns its cell alone has no other.
    """
    nfes = nfes_of(spec.settings)
    if not nfes:
        return [spec]
    cells = [Cell(spec.cell.model, spec.cell.solver, nfe) for nfe in nfes]
    return [plan.spec(cell, spec.settings, spec.members) for cell in cells]
