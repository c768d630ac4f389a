"""Asynchronous successive halving (ASHA, arXiv 1810.05934, its stopping variant).

Bad trials end early, with rows. At the rungs, after e = grace, grace * reduction,
grace * reduction^2 … epochs, a trial notes its log gain

    g = log(best hand-made loss of the cell, in the trial's distance) - mean over seeds of log(best
    loss so far),

looks at the g of all n trials of its cell that have come to this rung, and goes on if fewer than n
/ reduction of them are better. Cells have rungs of their own, because a gain that is large in one
is small in another.

The trial itself decides, so that it ends like any other: its rows hold the best schedules it found.
A note is an empty file, OUT/rungs/<cell>/<epoch>/<task>~<g>: listing a folder reads them all,
on any storage and without a process that would have to survive. A trial that is killed and comes
back makes the same note again, and counts once.

The trials that are there when another comes to a rung depend on timing. Therefore so do the trials
that stop, the results that their studies hear, and the next proposals: with ASHA two runs of a
sweep, or a run and a resumed one, may differ. Finished trials are never done again, stopped or not.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence

from ..core.learning.learn import Progress
from ..experiment.families import siblings
from ..experiment.plan import Plan, TrialSpec, digest
from ..store.storage import Storage
from .baselines import losses_for

WORST = -1e6
"""Log gain of a trial without a finite loss."""


class Rungs:
    """The questions that a trial asks after each of its epochs."""

    def __init__(self, plan: Plan, spec: TrialSpec, storage: Storage) -> None:
        self.plan, self.spec, self.storage = plan, spec, storage
        self.asha = plan.experiment.search.asha
        self.baseline: float | None = None

    def stops(self, progress: Progress) -> bool:
        """True if the trial must end here; never before its cell's baselines are measured."""
        if self.asha is None or not self._is_rung(progress.epoch):
            return False
        self.baseline = self.baseline or self._best_baseline()
        if self.baseline is None:
            return False
        loss = log_loss([seed for seed, _ in self.spec.members], progress.best_valid.tolist())
        mine = round(max(math.log(self.baseline) - loss, WORST), 9)
        cells = [one.cell.id for one in siblings(self.plan, self.spec)]
        place = digest(cells[0] if len(cells) == 1 else cells)
        folder = f"rungs/{place}/{progress.epoch:05d}"
        self.storage.write_bytes(f"{folder}/{self.spec.task}~{mine:.9f}", b"")
        here = {self.spec.task: mine}
        for name in self.storage.list(folder):
            key, _, gain = name.rpartition("/")[2].partition("~")
            with contextlib.suppress(ValueError):  # a file of somebody else's
                here.setdefault(key, float(gain))
        return sum(other > mine for other in here.values()) >= len(here) / self.asha.reduction

    def _is_rung(self, epoch: int) -> bool:
        """True for an epoch that is grace times a power of the reduction, before the last."""
        assert self.asha is not None
        if not 0 < epoch < self.spec.config.epochs or epoch % self.asha.grace:
            return False
        left = epoch // self.asha.grace
        while left % self.asha.reduction == 0:
            left //= self.asha.reduction
        return left == 1

    def _best_baseline(self) -> float | None:
        """The least loss of a hand-made grid; of a family the geometric mean over its NFEs."""
        best = []
        for one in siblings(self.plan, self.spec):
            found = losses_for(self.storage, self.plan, one)
            best.append(min((loss for loss in found.values() if loss), default=None))
        known = [loss for loss in best if loss is not None]
        return math.exp(mean_log(list(map(math.log, known)))) if len(known) == len(best) else None


def mean_log(logs: Sequence[float]) -> float:
    """The mean of the logarithms of the losses at several NFEs; infinite if one of them is."""
    return sum(logs) / len(logs)


def log_loss(seeds: Sequence[int], losses: Sequence[float]) -> float:
    """Log geometric mean over seeds of the best member's loss, of those that have a finite one; inf
    if none has.
    """
    best: dict[int, float] = {}
    for seed, loss in zip(seeds, losses, strict=True):
        best[seed] = min(loss, best.get(seed, math.inf))
    finite = [loss for loss in best.values() if math.isfinite(loss)]
    return sum(math.log(max(loss, 1e-300)) for loss in finite) / len(finite) if finite else math.inf
