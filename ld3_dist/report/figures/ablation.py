"""The effect of each level of a factor against the base, and the importance of each axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from ...store.frames import column, groups, numbers, records, where
from ..ablation import LOSS, level_text, verdict
from ..formats import missing, number
from ..scores import label_of
from . import FigureData, Plot, PlotGroup
from .squares import squares
from .style import BASELINE, INK, LEARNED, MUTED, WIDTH, panels, plain, stacked

GROUP = PlotGroup(
    "Ablation",
    "Ratios to the base, everything else equal: below the line a level is better. Bars are 95 % "
    "intervals, paired over seeds; those of the loss hold the spread of seeds and samples.",
)
LOOK = {LOSS: (LEARNED, "o", -0.1), "fid": (BASELINE, "s", 0.1)}
"""Colour, marker and place beside the level, of each score."""


FARTHEST = math.log(1.5)
"""The ratio of the full colours of `ratio_squares`, and its inverse."""


def ablation_plots(data: FigureData) -> list[Plot]:
    """One or two figures per factor; none where the sweep has no ablation."""
    plots = []
    for name, rows in groups(data.ablation, "factor") if len(data.ablation) else []:
        known = column(rows, "score").isin(list(LOOK))
        if known.any():
            plots.append(_factor(data, str(name), where(rows, known)))
        if not known.all():
            plots.append(_all_scores(data, str(name), rows))
    return plots


def _factor(data: FigureData, name: str, rows: pd.DataFrame) -> Plot:
    figure, (axis,) = panels(1, height=2.9)
    base = column(rows, "base").iloc[0]
    levels = ordered([base, *column(rows, "level")])
    texts = []
    for score, inside in groups(rows, "score", sort=False):
        colour, marker, shift = LOOK[str(score)]
        places = [place_of(levels, row["level"]) + shift for row in records(inside)]
        ratios = numbers(inside, "ratio").to_numpy()
        ends = np.array(
            [numbers(inside, end).fillna(numbers(inside, "ratio")) for end in ("low", "high")]
        )
        axis.errorbar(
            places, ratios, np.abs(ends - ratios), fmt=marker, color=colour, capsize=2.5, lw=1.3,
            label=label_of(str(score)),
        )  # fmt: skip
        told = ", ".join(
            f"{number(r['ratio'])} at {level_text(r['level'])}" for r in records(inside)
        )
        texts.append(f"{label_of(str(score))}: {told}")
    axis.axhline(1, color=MUTED, lw=1)
    axis.plot([place_of(levels, base)], [1], "D", color=INK, ms=5)
    axis.set_xticks(range(len(levels)), [stacked(level_text(level)) for level in levels])
    axis.set_xlim(-0.5, len(levels) - 0.5)
    axis.set_yscale("log")
    _ratio_ticks(axis)
    axis.set_xlabel(plain(name))
    axis.set_ylabel("ratio to the base")
    axis.legend(frameon=False, fontsize=8)
    alt = f"Ratios to the base {level_text(base)} of {name}. " + "; ".join(texts)
    caption = f"Diamond: the base, {level_text(base)}."
    return Plot(data.name(f"ablation-{name}"), f"Factor {name}", caption, alt, figure, GROUP)


def _all_scores(data: FigureData, name: str, rows: pd.DataFrame) -> Plot:
    """A row per level, a column per score: which level is better in what."""
    base = column(rows, "base").iloc[0]
    levels = ordered(list(column(rows, "level")))
    scores = [str(score) for score in dict.fromkeys(column(rows, "score"))]
    size = (min(WIDTH, 2 + 1.05 * len(scores)), 1 + 0.5 * len(levels))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    columns = [scores.index(row["score"]) for row in records(rows)]
    ratio_squares(axes, rows, levels, columns)
    axes.set_xticks(range(len(scores)), [stacked(label_of(score)) for score in scores])
    axes.set_ylabel(plain(name))
    told = ", ".join(
        f"{level_text(row['level'])} {label_of(row['score'])} {number(row['ratio'])}"
        for row in records(rows)
    )
    caption = (
        f"Ratios to the base, {level_text(base)}, with 95 % intervals. Orange: the level is better "
        "than the base, blue: worse (precision, recall, density, coverage and scores of classes "
        "are better where they are higher). Pale, with grey text: no difference seen."
    )
    alt = f"Table of ratios to the base {level_text(base)} of {name}: {told}"
    place = data.name(f"ablation-{name}-scores")
    return Plot(place, f"Factor {name}, all scores", caption, alt, figure, GROUP)


def ratio_squares(
    axes: Axes, rows: pd.DataFrame, levels: list[Any], columns: Sequence[int]
) -> None:
    """Fill axes with the ratios of an ablation, a row per level, named at its left.

    Args:
        levels: those of all rows, from the top.
        columns: the column of the square of each row.
    """
    worse = np.full((len(levels), max(columns) + 1), np.nan)
    decided = np.zeros(worse.shape, dtype=bool)
    texts = [["–"] * worse.shape[1] for _ in levels]
    for row, x in zip(records(rows), columns, strict=True):
        y = place_of(levels, row["level"])
        worse[y, x] = math.log(row["ratio"]) * (1 if row["better"] == "lower" else -1)
        decided[y, x] = verdict(row) in ("better", "worse")
        ends = "" if missing(row["low"]) else f"\n{number(row['low'])}–{number(row['high'])}"
        texts[y][x] = f"{number(row['ratio'])}{ends}"
    squares(axes, worse, texts, decided, FARTHEST)
    axes.set_yticks(range(len(levels)), [plain(level_text(level)) for level in levels])


def _ratio_ticks(axis: Axes) -> None:
    low, high = axis.get_ylim()
    axis.set_ylim(min(low, 0.9), max(high, 1.1))
    axis.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))  # a log axis shows 1 alone
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())


def place_of(levels: list[Any], level: Any) -> int:
    """The place of a level in a list; a null is equal to another."""
    same = [i for i, other in enumerate(levels) if _same(other, level)]
    return same[0]


def _same(a: Any, b: Any) -> bool:
    return a == b if not (missing(a) or missing(b)) else missing(a) and missing(b)


def ordered(levels: list[Any]) -> list[Any]:
    """Different levels: numbers in their order, else in the order given."""
    found: list[Any] = []
    for level in levels:
        if not any(_same(level, other) for other in found):
            found.append(level)
    if all(isinstance(level, int | float) and not missing(level) for level in found):
        return sorted(found)
    return found


def importance_plot(data: FigureData) -> Plot | None:
    """The importance of each axis of the search, as the mean over the cells of the model.

    None where fewer than two axes were searched: a single one has all of it.
    """
    table = data.importance
    if table.empty:
        return None
    table = where(table, column(table, "cell").isin(set(column(data.frame, "cell"))))
    if table.empty:
        return None
    means = {str(axis): numbers(rows, "importance") for axis, rows in groups(table, "axis")}
    if len(means) < 2:
        return None
    order = sorted(means, key=lambda axis: float(means[axis].mean()))
    figure, (axis,) = panels(1, height=0.8 + 0.3 * len(order))
    values = [float(means[name].mean()) for name in order]
    axis.barh([plain(name) for name in order], values, color=LEARNED, height=0.55)
    for i, name in enumerate(order):
        axis.plot(means[name], [i] * len(means[name]), "|", color=INK, ms=7)
    axis.set_xlim(0, 1)
    axis.grid(True, axis="x")
    axis.grid(False, axis="y")
    axis.set_xlabel("share of the variance of the log loss (fANOVA)")
    told = ", ".join(f"{name} {value:.2f}" for name, value in zip(order, values, strict=True))
    caption = "Bars: mean over the cells; ticks: each cell. From Optuna's fANOVA over all trials."
    return Plot(
        data.name("importance"), "Importance of the axes", caption, f"Bar chart: {told}", figure
    )
