"""The cells of one model, grouped as figures need them.

A family is all the cells that differ in NFE alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import pandas as pd

from ...store.frames import best_only, column, groups, of_kind, varies, where
from ..formats import missing
from ..summary import best_row

MOST_PANELS = 12
"""Panels of one figure; more would be too small to read."""

Named = list[tuple[str, pd.DataFrame]]
"""(label, rows) of each cell or family."""

Item = TypeVar("Item")


def families(frame: pd.DataFrame) -> Named:
    """(label, rows) of each family, in order of its solver.

    The label is the solver, with conditioning and guidance where the model has several of them.
    """
    several = {name: varies(frame, name) for name in ("conditioning", "guidance")}
    found = []
    for values, rows in groups(frame, ("solver", "conditioning", "guidance"), nulls=True):
        solver, conditioning, guidance = values
        parts = [str(solver)]
        if several["conditioning"]:
            parts.append("unconditional" if missing(conditioning) else str(conditioning))
        if several["guidance"]:
            parts.append("no guidance" if missing(guidance) else f"guidance {guidance:g}")
        found.append((" · ".join(parts), rows))
    return found


def cells(frame: pd.DataFrame) -> Named:
    """(label, rows) of each cell: family and NFE, in order."""
    return [
        (f"{label} · {nfe} NFE", inside)
        for label, rows in families(frame)
        for nfe, inside in groups(rows, "nfe")
    ]


def legible(
    items: Sequence[Item], noun: str, most: int = MOST_PANELS, order: str = "evenly spaced"
) -> tuple[list[Item], str]:
    """At most `most` items, evenly spaced with both ends kept, and a sentence about the rest.

    Args:
        noun: what the items are, for the sentence.
        order: how they were chosen, for the sentence.
    """
    if len(items) <= most:
        return list(items), ""
    chosen = np.linspace(0, len(items) - 1, most).round().astype(int)
    note = f" Shown are {most} of {len(items)} {noun}, {order}; the table has all."
    return [items[i] for i in chosen], note


def chosen_cells(named: Named, most: int = MOST_PANELS) -> tuple[Named, str]:
    """The cells with a learned schedule, in order, and a sentence about those left out.

    Of too many, evenly spaced ranks of gain are kept, the largest and the smallest among them.
    """
    learned = [(label, rows) for label, rows in named if len(best_only(rows))]
    ranked = sorted(range(len(learned)), key=lambda i: _gain(learned[i][1]), reverse=True)
    kept, note = legible(ranked, "cells", most, "from the largest gain to the smallest")
    return [learned[i] for i in sorted(kept)], note


def _gain(rows: pd.DataFrame) -> float:
    best = best_row(rows)
    if best is None:
        return -1.0
    known = [best[name] for name in ("eval_gain", "gain") if not missing(best[name])]
    return float(known[0]) if known else -1.0


def baselines(rows: pd.DataFrame) -> pd.DataFrame:
    """The hand-made grids that worked, in order of their loss and name."""
    found = of_kind(rows, "baseline", "ok")
    measured = where(found, column(found, "valid_loss").notna())
    return measured.sort_values(["valid_loss", "start"], kind="stable")
