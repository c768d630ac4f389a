"""Two ways in which learning fails while its status is ok: collapsed modes and instability.

    mode collapse   samples of the schedule miss modes of the distribution (metric `modes`), and
                    those of some hand-made grid of the same cell miss fewer
    lost modes      they miss modes, and no hand-made grid of the cell does better: too few
                    evaluations, not the learning
    unstable        learning ended with a held-out loss more than EXCESS times its best, or one was
                    not finite on the way: steps too long, though the best epoch is kept

A row may have several. The rows' `status` stays what the trial wrote, since modes are known after
the evaluation alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from .frames import of_kind, records, where

RECALL = "metric.modes.recall"
EXCESS = 3.0
"""A last held-out loss this many times the best makes a run unstable."""

SIGNS = ("mode collapse", "lost modes", "unstable")


@dataclass(frozen=True)
class Symptom:
    """One sign of failure of one learned row, and the numbers that show it, in words."""

    key: str
    cell: str
    sign: str
    detail: str


def symptoms(results: pd.DataFrame) -> list[Symptom]:
    """The symptoms of the learned rows that are ok, in the order of the rows."""
    grids = _best_recall(results)
    found = []
    for row in records(of_kind(results, "learned", "ok")):
        key, cell = str(row["key"]), str(row["cell"])
        recall = row.get(RECALL)
        if isinstance(recall, float) and recall < 1:
            best = grids.get(cell, 0.0)
            sign = "mode collapse" if best > recall else "lost modes"
            detail = f"{recall:.0%} of the modes, hand-made grids {best:.0%}"
            found.append(Symptom(key, cell, sign, detail))
        over = excess(row.get("valid_curve"))
        if over > EXCESS:
            ended = f"ended at {over:.3g} times the best" if over < math.inf else "was not finite"
            found.append(Symptom(key, cell, "unstable", f"held-out loss {ended}"))
    return found


def counted_signs(found: Sequence[Symptom]) -> dict[str, int]:
    """The number of rows with each sign that occurs, in the order of SIGNS."""
    counts = {sign: sum(one.sign == sign for one in found) for sign in SIGNS}
    return {sign: count for sign, count in counts.items() if count}


def excess(curve: Any) -> float:
    """The last held-out loss over the best; infinite if one was not finite after one that was."""
    if curve is None or not hasattr(curve, "__len__"):
        return 1.0
    best = last = math.inf
    for value in curve:
        last = math.inf if value is None or math.isnan(value) else float(value)  # null: not finite
        if last == math.inf and best < math.inf:
            return math.inf
        best = min(best, last)
    if best == math.inf or last <= best:
        return 1.0
    return last / best if best > 0 else math.inf


def _best_recall(results: pd.DataFrame) -> dict[str, float]:
    """The best recall of any hand-made grid, by cell."""
    if RECALL not in results.columns:
        return {}
    grids = of_kind(results, "baseline", "ok")
    grids = where(grids, grids[RECALL].notna())
    found: dict[str, float] = {}
    for row in records(grids):
        cell = str(row["cell"])
        found[cell] = max(found.get(cell, 0.0), float(row[RECALL]))
    return found
