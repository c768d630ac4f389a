"""The largest gain so far, kept up to date from each trial's own losses: no table is read again."""

from __future__ import annotations

from collections.abc import Iterable
from math import isfinite

from ..store.results import load_results
from ..store.storage import Storage


class BestGain:
    """Largest gain over the best hand-made grid of the cell, as `load_results` defines it."""

    def __init__(self, storage: Storage) -> None:
        """Read what is there, once: the baselines of every cell and the trials of earlier runs."""
        frame = load_results(storage).query("status == 'ok'")
        cells, losses = frame["cell"].tolist(), frame["best_baseline"].tolist()
        self.baselines = {cell: loss for cell, loss in zip(cells, losses, strict=True) if isfinite(loss)}
        known = frame.query("kind == 'learned' and gain.notna()")["gain"].tolist()
        self.value: float | None = max(known, default=None)

    def add(self, cell: str, losses: Iterable[float]) -> float | None:
        """A trial finished with these held-out losses; the largest gain so far."""
        best = min((loss for loss in losses if isfinite(loss) and loss > 0), default=None)
        if best is not None and cell in self.baselines:
            self.value = max(self.value or 0.0, self.baselines[cell] / best)
        return self.value
