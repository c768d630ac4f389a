"""The matrix of a transfer as a picture: a row per schedule, a column per site."""

from __future__ import annotations

import math

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from ..transfers import Matrix, ratio_of
from .squares import squares
from .style import STYLE, as_png, plain

FARTHEST = math.log(4)
"""Ratios of 1/4 and of 4 have the full colours."""


def draw_matrix(found: Matrix) -> bytes:
    """The picture as PNG: orange where a schedule is nearer to the teacher, blue where the grid is.

    A cell has the ratio of mean losses with its 95 % interval; undecided ones are grey.
    """
    rows, columns = len(found.schedules), len(found.sites)
    ratios = np.full((rows, columns), np.nan)
    decided = np.zeros((rows, columns), dtype=bool)
    texts = [[""] * columns for _ in range(rows)]
    for (name, site), row in found.cells.items():
        y, x = found.schedules.index(name), found.sites.index(site)
        ratio = ratio_of(row)
        if ratio is not None:
            ratios[y, x] = math.log(ratio[0])
        decided[y, x] = row["verdict"] != "undecided"
        texts[y][x] = str(row["status"]) if ratio is None else _ratio(*ratio)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(2.6 + 1.3 * columns, 1.6 + 0.55 * rows), layout="constrained")
        axes = figure.subplots()
        squares(axes, ratios, texts, decided, FARTHEST)
        axes.set_xticks(range(columns), [_lines(name) for name in found.sites])
        axes.set_yticks(range(rows), [plain(name) for name in found.schedules])
        axes.set_xlabel("scored at")
        axes.set_ylabel("learned schedule")
        axes.set_title("Loss over that of the best hand-made grid there")
        return as_png(figure)


def _ratio(value: float, low: float, high: float) -> str:
    return f"{value:.2g}×\n({low:.2g}–{high:.2g})"


def _lines(site: str) -> str:
    """A site's name, a line for each of its parts."""
    return plain(site).replace(", ", "\n")
