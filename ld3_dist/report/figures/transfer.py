"""The matrix of a transfer as a picture: a row per schedule, a column per site."""

from __future__ import annotations

import math

import matplotlib as mpl
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from ..transfers import Matrix, ratio_of
from .style import BASELINE, INK, LEARNED, MUTED, RULE, STYLE, as_png, plain

FARTHEST = math.log(4)
"""Ratios of 1/4 and of 4 have the full colours."""


def draw_matrix(found: Matrix) -> bytes:
    """The picture as PNG: orange where a schedule is nearer to the teacher, blue where the grid is.

    A cell has the ratio of mean losses with its 95 % interval; undecided ones are grey.
    """
    rows, columns = len(found.schedules), len(found.sites)
    ratios = np.full((rows, columns), np.nan)
    for (name, site), row in found.cells.items():
        if (ratio := ratio_of(row)) is not None:
            place = found.schedules.index(name), found.sites.index(site)
            ratios[place] = math.log(ratio[0])
    colours = LinearSegmentedColormap.from_list("ratio", [LEARNED, "#ffffff", BASELINE])
    colours = colours.with_extremes(bad=RULE)
    with mpl.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(2.6 + 1.3 * columns, 1.6 + 0.55 * rows), layout="constrained")
        axes = figure.subplots()
        axes.imshow(ratios, colours, vmin=-FARTHEST, vmax=FARTHEST, aspect="auto")
        axes.set_xticks(range(columns), [_lines(name) for name in found.sites])
        axes.set_yticks(range(rows), [plain(name) for name in found.schedules])
        axes.set_xlabel("scored at")
        axes.set_ylabel("learned schedule")
        axes.set_title("Loss over that of the best hand-made grid there")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        for (name, site), row in found.cells.items():
            ratio = ratio_of(row)
            at = found.sites.index(site), found.schedules.index(name)
            colour = MUTED if row["verdict"] == "undecided" else INK
            text = str(row["status"]) if ratio is None else _ratio(*ratio)
            axes.text(*at, text, ha="center", va="center", color=colour, fontsize=8)
        return as_png(figure)


def _ratio(value: float, low: float, high: float) -> str:
    return f"{value:.2g}×\n({low:.2g}–{high:.2g})"


def _lines(site: str) -> str:
    """A site's name, a line for each of its parts."""
    return plain(site).replace(", ", "\n")
