"""The effect of each level at each level of another factor: a table of ratios."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from ...store.frames import column, groups, records, where
from ..ablation import LOSS, level_text
from ..formats import number
from . import FigureData, Plot
from .ablation import GROUP, ordered, place_of, ratio_squares
from .style import WIDTH, plain, stacked


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
    size = (min(WIDTH, 2 + 1.05 * len(others)), 1.2 + 0.5 * len(levels))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    columns = [place_of(others, row["other_level"]) for row in records(rows)]
    ratio_squares(axes, rows, levels, columns)
    axes.set_xticks(range(len(others)), [stacked(level_text(level)) for level in others])
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
