"""The cells of one model, grouped as figures need them: a family is all the cells that differ in
NFE alone.
"""

from __future__ import annotations

# A selection from a frame is a union of types to pandas' own annotations:
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false
from typing import Any

import numpy as np
import pandas as pd

from ..summary import best_row

MOST_PANELS = 12
"""Panels of one figure; more would be too small to read."""


def families(frame: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """(label, rows) of each solver, in order; the label names conditioning and guidance where a
    model has several.
    """
    keys = ["solver", "conditioning", "guidance"]
    varied = [name for name in keys[1:] if frame[name].nunique(dropna=False) > 1]
    found = []
    for values, rows in frame.groupby(keys, dropna=False, sort=True):
        named = dict(zip(keys, values, strict=True))
        parts = [str(named["solver"])]
        if "conditioning" in varied:
            parts.append(
                "unconditional" if pd.isna(named["conditioning"]) else str(named["conditioning"])
            )
        if "guidance" in varied:
            parts.append(
                "no guidance" if pd.isna(named["guidance"]) else f"guidance {named['guidance']:g}"
            )
        found.append((" · ".join(parts), rows))
    return found


def cells(frame: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """(label, rows) of each cell: family and NFE, in order."""
    found = []
    for label, rows in families(frame):
        for nfe, inside in rows.groupby("nfe", sort=True):
            found.append((f"{label} · {nfe} NFE", inside))
    return found


def legible(items: list[Any], noun: str, most: int = MOST_PANELS) -> tuple[list[Any], str]:
    """At most `most` items, evenly spaced with both ends kept, and a sentence that says so where
    some were left out.
    """
    if len(items) <= most:
        return items, ""
    chosen = np.linspace(0, len(items) - 1, most).round().astype(int)
    return [
        items[i] for i in chosen
    ], f" Shown are {most} of {len(items)} {noun}, evenly spaced; the table has all."


Named = list[tuple[str, pd.DataFrame]]


def chosen_cells(named: Named, most: int = MOST_PANELS) -> tuple[Named, str]:
    """The cells with a learned schedule, in order; of too many, evenly spaced ranks of gain, both
    ends kept.
    """
    learned = [(label, rows) for label, rows in named if rows["best"].any()]
    ranked = sorted(range(len(learned)), key=lambda i: _gain(learned[i][1]), reverse=True)
    kept, note = legible(ranked, "cells", most)
    return [learned[i] for i in sorted(kept)], note.replace(
        "evenly spaced;", "from the largest gain to the smallest;"
    )


def _gain(rows: pd.DataFrame) -> float:
    best = best_row(rows)
    return -1.0 if best is None or pd.isna(best["gain"]) else float(best["gain"])


def baselines(rows: pd.DataFrame) -> pd.DataFrame:
    """The hand-made grids that worked, best first, one row a name."""
    found = rows[
        (rows["kind"] == "baseline") & (rows["status"] == "ok") & rows["valid_loss"].notna()
    ]
    return found.sort_values(["valid_loss", "start"], kind="stable")
