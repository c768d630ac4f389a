"""A critical-difference diagram: mean ranks on a line; a bar joins those that do not differ.

Two rows differ if their mean ranks over the cells are further apart than the critical difference of
Nemenyi's test (Demsar 2006).
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np

from ..ranks import Differences
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

    order = [int(i) for i in np.argsort(found.ranks, kind="stable")]
    better, worse = order[: (len(order) + 1) // 2], order[(len(order) + 1) // 2 :]
    bars = cliques(list(found.ranks), found.critical)
    low, high, base = 1.0, float(len(order)), -0.45 - 0.2 * len(bars)
    height = 0.9 + 0.24 * len(better) + 0.16 * len(bars)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8, height), layout="constrained")
        axes = figure.add_subplot()
        axes.set_axis_off()
        axes.plot([low, high], [0, 0], color=INK, lw=1)
        for tick in range(1, len(order) + 1):
            axes.plot([tick, tick], [0, 0.12], color=INK, lw=1)
            axes.text(tick, 0.2, str(tick), ha="center", va="bottom", color=MUTED)
        for i, (a, b) in enumerate(bars):
            y = -0.25 - 0.2 * i
            axes.plot([a, b], [y, y], color=LEARNED, lw=3, solid_capstyle="round")
        # the better half is named on the left, the worse on the right, the ends at the top, so that
        # no line crosses a name
        room = 0.02 * (high - low)
        for side, end, rows in (("right", low - room, better), ("left", high + room, worse[::-1])):
            for i, index in enumerate(rows):
                rank, y = found.ranks[index], base - 0.3 * i
                axes.plot([rank, rank, end], [0, y, y], color=MUTED, lw=0.7)
                text = f" {found.names[index]}  {rank:.2f} "
                axes.text(end, y, text, ha=side, va="center")
        axes.set_ylim(base - 0.3 * len(better), 0.7)
        figure.suptitle(f"{title}: mean rank over {found.blocks} cells, 1 is best", fontsize=10)
        axes.set_title(_meaning(found), fontsize=8, color=MUTED, fontweight="normal")
        target = Path(path)
        figure.savefig(target, dpi=200, metadata=_undated(target.suffix), bbox_inches="tight")
    return target


def _meaning(found: Differences) -> str:
    """What the bars join, in words."""
    p = found.p_value
    less = "" if math.isnan(p) else "p < 0.001" if p < 0.001 else f"p = {p:.2g}"
    return (
        f"a bar joins ranks that differ by no more than {found.critical:.2f} (Nemenyi, 95 %)"
        f"{less and f'; test that all are equal: {less} (Friedman)'}"
    )


def _undated(ending: str) -> dict[str, None]:
    """Metadata without a date, so that the same tables give the same bytes."""
    return {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}.get(ending, {})
