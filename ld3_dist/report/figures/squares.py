"""Tables of ratios as coloured squares: orange is better, blue is worse, white is the same."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap

from .style import BASELINE, INK, LEARNED, MUTED, RULE, plain


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
        texts: what stands in the squares.
        decided: bool [rows, columns]; the text of the others is grey.
        farthest: the log ratio of the full colours.
    """
    colours = LinearSegmentedColormap.from_list("ratio", [LEARNED, "#ffffff", BASELINE])
    colours = colours.with_extremes(bad=RULE)
    axes.imshow(worse, colours, vmin=-farthest, vmax=farthest, aspect="auto")
    axes.grid(False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for (row, place), value in np.ndenumerate(worse):
        dark = np.isfinite(value) and abs(value) > 0.75 * farthest
        colour = (INK if decided[row, place] else MUTED) if not dark else "#ffffff"
        axes.text(
            place, row, plain(texts[row][place]), ha="center", va="center", color=colour, fontsize=8
        )
