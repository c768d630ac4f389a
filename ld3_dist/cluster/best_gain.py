"""The largest gain so far, kept up to date from each trial's own losses: tables are read when
baselines may be new.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import isfinite

from ..store.results import load_results
from ..store.storage import Storage

Place = tuple[str, str]
"""Cell, and label of the distance."""


class BestGain:
    """Largest gain over the best hand-made grid of the cell, as `load_results` defines it.

    Losses are kept by cell and distance, as losses in two distances are not comparable.
    """

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.baselines: dict[Place, float] = {}
        self.losses: dict[Place, float] = {}

    def read(self) -> None:
        """Take in what is on disk: the baselines of every cell and the trials of earlier runs."""
        frame = load_results(self.storage).query("status == 'ok'")
        places = list(zip(frame["cell"], frame["distance"], strict=True))
        self.baselines = {
            place: loss
            for place, loss in zip(places, frame["best_baseline"], strict=True)
            if isfinite(loss)
        }
        learned = frame.query("kind == 'learned' and valid_loss.notna()")
        columns = (learned[name] for name in ("cell", "distance", "valid_loss"))
        for cell, distance, loss in zip(*columns, strict=True):
            self.add(cell, distance, [loss])

    def add(self, cell: str, distance: str, losses: Iterable[float]) -> None:
        """A trial finished with these held-out losses."""
        best = min((loss for loss in losses if isfinite(loss) and loss > 0), default=None)
        if best is not None:
            place = (cell, distance)
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
