"""Tables of ratios as coloured squares: orange is better, blue is worse, white is the same."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap

from .style import BASELINE, INK, LEARNED, MUTED, RULE, plain

PALE = 0.3
"""Strength of the colour of what is not decided."""


def squares(
    axes: Axes,
    worse: np.ndarray,
    texts: Sequence[Sequence[str]],
    decided: np.ndarray,
    farthest: float,
) -> None:
    """Fill axes with a square per entry.

    Args:
        worse: log ratios [rows, columns], below 0 where better; NaN where there is none.
        texts: what stands in the squares, in one line or several.
        decided: bool [rows, columns]; the others are pale, with grey text.
        farthest: the log ratio of the full colours.
    """
    colours = LinearSegmentedColormap.from_list("ratio", [LEARNED, "#ffffff", BASELINE])
    colours = colours.with_extremes(bad=RULE)
    shown = np.where(decided, worse, PALE * worse)
    axes.imshow(shown, colours, vmin=-farthest, vmax=farthest, aspect="auto")
    axes.grid(False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for row, line in enumerate(texts):
        for place, text in enumerate(line):
            value = float(shown[row, place])
            dark = math.isfinite(value) and abs(value) > 0.75 * farthest
            colour = "#ffffff" if dark else INK if decided[row, place] else MUTED
            said = "\n".join(plain(part) for part in text.split("\n"))
            axes.text(place, row, said, ha="center", va="center", color=colour, fontsize=8)
