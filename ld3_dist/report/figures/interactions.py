"""The effect of each level at each level of another factor: a table of ratios."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ...store.frames import column, groups, records, where
from ..ablation import LOSS, level_text, verdict
from ..formats import missing, number
from . import FigureData, Plot
from .ablation import FARTHEST, GROUP, ordered, place_of
from .squares import squares
from .style import WIDTH, plain


def interaction_plots(data: FigureData) -> list[Plot]:
    """A figure for two factors, in the loss on fresh samples; none without a full ablation."""
    table = data.interactions
    if table.empty:
        return []
    fresh = where(table, column(table, "score") == LOSS)
    return [
        _plot(data, str(name), str(other), rows)
        for (name, other), rows in groups(fresh, ["factor", "other"])
    ]


def _plot(data: FigureData, name: str, other: str, rows: pd.DataFrame) -> Plot:
    """A row per level, a column per level of the other factor."""
    base = column(rows, "base").iloc[0]
    levels = ordered(list(column(rows, "level")))
    others = ordered(list(column(rows, "other_level")))
    worse = np.full((len(levels), len(others)), np.nan)
    decided = np.zeros(worse.shape, dtype=bool)
    texts = [["–"] * len(others) for _ in levels]
    for row in records(rows):
        y, x = place_of(levels, row["level"]), place_of(others, row["other_level"])
        worse[y, x] = math.log(row["ratio"])
        decided[y, x] = verdict(row) in ("better", "worse")
        ends = "" if missing(row["low"]) else f"\n{number(row['low'])}–{number(row['high'])}"
        texts[y][x] = f"{number(row['ratio'])}{ends}"
    size = (min(WIDTH, 2 + 1.05 * len(others)), 1.2 + 0.5 * len(levels))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    squares(axes, worse, texts, decided, FARTHEST)
    axes.set_xticks(range(len(others)), [plain(level_text(level)) for level in others])
    axes.set_yticks(range(len(levels)), [plain(level_text(level)) for level in levels])
    axes.set_xlabel(plain(other))
    axes.set_ylabel(plain(name))
    told = ", ".join(
        f"{level_text(row['level'])} where {other} is {level_text(row['other_level'])} "
        f"{number(row['ratio'])}"
        for row in records(rows)
    )
    caption = (
        f"Loss on fresh samples over that of the base {level_text(base)}, where {other} has the "
        "level of the column; 95 % intervals. Orange: better than the base, blue: worse. Pale, "
        "with grey text: no difference seen."
    )
    alt = f"Table of ratios to the base {level_text(base)} of {name}: {told}"
    place = data.name(f"ablation-{name}-by-{other}")
    return Plot(place, f"Factor {name} by {other}", caption, alt, figure, GROUP)
