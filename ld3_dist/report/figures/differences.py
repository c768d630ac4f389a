"""A critical-difference diagram: mean ranks on a line; a bar joins those that do not differ.

Two rows differ if their mean ranks over the cells are further apart than the critical difference of
Nemenyi's test (Demsar 2006).
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np

from ..crosstab import Differences
from .style import INK, LEARNED, MUTED, STYLE

FORMATS = (".png", ".pdf", ".svg")
"""Endings that a figure's file may have."""


def cliques(ranks: list[float], critical: float) -> list[tuple[float, float]]:
    """The largest intervals of sorted ranks that are no longer than the critical difference."""
    ordered = sorted(ranks)
    found: list[tuple[float, float]] = []
    for i, low in enumerate(ordered):
        high = max(rank for rank in ordered[i:] if rank - low <= critical)
        if high > low and not any(a <= low and high <= b for a, b in found):
            found.append((low, high))
    return found


def draw_differences(found: Differences, path: str | os.PathLike[str], title: str) -> Path:
    """Draw the diagram into a file; its ending says the format. Returns the path."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    order = np.argsort(found.ranks, kind="stable")
    bars = cliques(list(found.ranks), found.critical)
    height = 1.3 + 0.22 * len(order) + 0.12 * len(bars)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.5, height), layout="constrained")
        axes = figure.add_subplot()
        axes.set_axis_off()
        low, high = 1.0, float(len(order))
        axes.plot([low, high], [0, 0], color=INK, lw=1)
        for tick in range(1, len(order) + 1):
            axes.plot([tick, tick], [0, 0.12], color=INK, lw=1)
            axes.text(tick, 0.2, str(tick), ha="center", va="bottom", color=MUTED)
        for i, (a, b) in enumerate(bars):
            y = -0.2 - 0.18 * i
            axes.plot([a - 0.03, b + 0.03], [y, y], color=LEARNED, lw=3, solid_capstyle="round")
        base = -0.35 - 0.18 * len(bars)
        for i, index in enumerate(order):
            rank, y = found.ranks[index], base - 0.3 * i
            axes.plot([rank, rank], [0, y], color=MUTED, lw=0.7)
            text = f" {found.names[index]}  {rank:.2f}"
            axes.text(rank, y, text, ha="left", va="center")
        p = "" if math.isnan(found.p_value) else f", Friedman p = {found.p_value:.2g}"
        axes.set_title(
            f"{title}: mean rank over {found.blocks} cells, critical difference "
            f"{found.critical:.2f}{p}"
        )
        target = Path(path)
        figure.savefig(target, dpi=200, metadata=_undated(target.suffix))
    return target


def _undated(ending: str) -> dict[str, None]:
    """Metadata without a date, so that the same tables give the same bytes."""
    return {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}.get(ending, {})
