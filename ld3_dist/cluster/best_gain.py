"""The largest gain so far, kept up to date from each trial's own losses: tables are read when
baselines may be new.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import isfinite

from ..store.results import load_results
from ..store.storage import Storage


class BestGain:
    """Largest gain over the best hand-made grid of the cell, as `load_results` defines it."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.baselines: dict[str, float] = {}
        self.losses: dict[str, float] = {}

    def read(self) -> None:
        """Take in what is on disk: the baselines of every cell and the trials of earlier runs."""
        frame = load_results(self.storage).query("status == 'ok'")
        cells, grids = frame["cell"].tolist(), frame["best_baseline"].tolist()
        self.baselines = {
            cell: loss for cell, loss in zip(cells, grids, strict=True) if isfinite(loss)
        }
        learned = frame.query("kind == 'learned' and valid_loss.notna()")
        for cell, loss in zip(
            learned["cell"].tolist(), learned["valid_loss"].tolist(), strict=True
        ):
            self.add(cell, [loss])

    def add(self, cell: str, losses: Iterable[float]) -> None:
        """A trial finished with these held-out losses."""
        best = min((loss for loss in losses if isfinite(loss) and loss > 0), default=None)
        if best is not None:
            self.losses[cell] = min(best, self.losses.get(cell, best))

    @property
    def value(self) -> float | None:
        """The largest gain; None before there is any."""
        gains = [
            self.baselines[cell] / loss
            for cell, loss in self.losses.items()
            if cell in self.baselines
        ]
        return max(gains, default=None)
