"""The largest held-out gain so far, kept up to date from each trial's own losses: tables are read
when baselines may be new.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import isfinite
from typing import Any

from ..core.user_code import label
from ..store.frames import column, of_kind, where
from ..store.results import load_results
from ..store.storage import Storage

Place = tuple[str, ...]
"""Cell, label of the distance, and solver, evaluations and grid of the teacher."""

COLUMNS = ["cell", "distance", "teacher_solver", "teacher_nfe", "teacher_start"]


def place_of(cell: str, settings: dict[str, Any]) -> Place:
    """The place of a trial, from its settings."""
    teacher = settings["teacher"]
    solver, start = label(teacher["solver"]), label(teacher["start"])
    return cell, label(settings["distance"]), solver, str(teacher["nfe"]), start


class BestGain:
    """Largest gain over the best hand-made grid of the cell, as `load_results` defines it.

    Losses are kept by place: those in two distances, or to two teachers, are not comparable.
    """

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.baselines: dict[Place, float] = {}
        self.losses: dict[Place, float] = {}

    def read(self) -> None:
        """Take in what is on disk: the baselines of every cell and the trials of earlier runs."""
        frame = load_results(self.storage)
        frame = where(frame, column(frame, "status") == "ok")
        self.baselines = {
            place: loss
            for place, loss in zip(_places(frame), frame["best_baseline"], strict=True)
            if isfinite(loss)
        }
        learned = of_kind(frame, "learned")  # a loss that is null counts as none
        for place, loss in zip(_places(learned), learned["valid_loss"], strict=True):
            self.add(place, [loss])

    def add(self, place: Place, losses: Iterable[float]) -> None:
        """A trial finished with these held-out losses."""
        best = min((loss for loss in losses if isfinite(loss) and loss > 0), default=None)
        if best is not None:
            self.losses[place] = min(best, self.losses.get(place, best))

    @property
    def value(self) -> float | None:
        """The largest gain; None before there is any."""
        gains = [
            self.baselines[place] / loss
            for place, loss in self.losses.items()
            if place in self.baselines
        ]
        return max(gains, default=None)


def _places(frame: Any) -> list[Place]:
    """The place of every row of a results frame."""
    columns = [frame[name].astype(str) for name in COLUMNS]  # nfe is a nullable integer
    return list(zip(*columns, strict=True))
