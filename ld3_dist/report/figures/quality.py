"""Quality against the number of network evaluations, one panel per solver."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter

from ...store.frames import best_only, column, distinct, groups, numbers, of_kind, where
from ..formats import missing, number
from ..summary import Scores, best_row, seed_group
from . import FigureData, Plot
from .cells import Named, baselines, families, legible
from .style import (
    LEARNED,
    MARKERS,
    TEACHER,
    baseline_colours,
    columns_of,
    label_ends,
    panels,
    plain,
)


@dataclass(frozen=True)
class Measure:
    """A column that is drawn against NFE.

    Attributes:
        seeds: is the range over seeds drawn as a band?
        teacher: is the teacher's own value drawn?
        twin: does the page's script draw it too?
    """

    column: str
    label: str
    title: str
    seeds: bool = False
    teacher: bool = False
    twin: bool = False


LOSS = Measure(
    "valid_loss",
    "held-out distance to the teacher",
    "Distance to the teacher against NFE",
    seeds=True,
    twin=True,
)
FRECHET = Measure(
    "fid",
    "Fréchet distance to the data",
    "Fréchet distance against NFE",
    teacher=True,
    twin=True,
)


def distance_plot(data: FigureData) -> Plot | None:
    """Held-out distance to the teacher: learned schedules against hand-made grids."""
    return against_nfe(data, LOSS, data.name("distance"))


def frechet_plot(data: FigureData) -> Plot | None:
    """Fréchet distance to the data: learned schedules, hand-made grids and the teacher."""
    return against_nfe(data, FRECHET, data.name("frechet"))


def against_nfe(data: FigureData, measure: Measure, name: str) -> Plot | None:
    """One measure against NFE, one panel per solver; None where it was not measured."""
    frame = data.frame
    nothing = best_only(frame).empty and baselines(frame).empty
    if nothing or not column(frame, measure.column).notna().any():
        return None
    shown, note = legible(families(frame), "solvers")
    colours = baseline_colours(distinct(of_kind(frame, "baseline"), "start"))
    figure, axes = panels(len(shown), height=2.9)
    for axis, (label, rows) in zip(axes, shown, strict=True):
        axis.set_title(plain(label))
        ends = _grids(axis, rows, measure, colours) + _best(axis, rows, measure)
        ends += _teacher(axis, rows, measure, data.teachers)
        _scales(axis, sorted(set(column(rows, "nfe").astype(int))))
        label_ends(axis, ends)
    for axis in axes[:: columns_of(len(shown))]:
        axis.set_ylabel(measure.label)
    band = ", with the range over seeds of its settings as a band" if measure.seeds else ""
    dashed = " Dashed: the teacher." if measure.teacher and data.teachers else ""
    caption = f"Lower is better. Orange: the best learned schedule of each cell{band}."
    caption += f" Blue: hand-made grids.{dashed}{note}"
    return Plot(name, measure.title, caption, _alt(shown, measure), figure, twin=measure.twin)


Ends = list[tuple[float, str, str]]
"""(value, text, colour) of each line's end, to be labelled."""


def _grids(axis: Axes, rows: pd.DataFrame, measure: Measure, colours: Mapping[str, str]) -> Ends:
    ends: Ends = []
    for i, (grid, inside) in enumerate(groups(baselines(rows), "start")):
        line = where(inside, column(inside, measure.column).notna()).sort_values("nfe")
        if len(line):
            x, y = column(line, "nfe").astype(int).tolist(), numbers(line, measure.column).tolist()
            colour = colours[str(grid)]
            axis.plot(x, y, color=colour, marker=MARKERS[i % len(MARKERS)], lw=1.1, ms=4)
            ends.append((y[-1], str(grid), colour))
    return ends


def _best(axis: Axes, rows: pd.DataFrame, measure: Measure) -> Ends:
    points = _learned(rows, measure.column)
    if not points:
        return []
    x, y, low, high = (list(values) for values in zip(*points, strict=True))
    axis.fill_between(x, low, high, color=LEARNED, alpha=0.18, lw=0)
    if len(x) == 1:
        axis.vlines(x, low, high, color=LEARNED, alpha=0.35, lw=5)
    axis.plot(x, y, color=LEARNED, marker="o", lw=2.2, ms=5.5)
    return [(y[-1], "learned", LEARNED)]


def _teacher(axis: Axes, rows: pd.DataFrame, measure: Measure, teachers: Scores) -> Ends:
    scores: Mapping[str, Any] = teachers.get(str(column(rows, "teacher").iloc[0]), {})
    value = scores.get(measure.column)
    if not measure.teacher or missing(value):
        return []
    axis.axhline(float(scores[measure.column]), color=TEACHER, ls=(0, (4, 3)), lw=1.2)
    return [(float(scores[measure.column]), "teacher", TEACHER)]


def _learned(rows: pd.DataFrame, name: str) -> list[tuple[int, float, float, float]]:
    """(NFE, value of the best schedule, smallest and largest over its seeds)."""
    found = []
    for nfe, inside in groups(rows, "nfe"):
        best = best_row(inside)
        if best is None or missing(best[name]):
            continue
        value = float(best[name])
        group = numbers(seed_group(inside, best), name).dropna()
        found.append((int(nfe), value, min([value, *group]), max([value, *group])))
    return found


def _scales(axis: Axes, nfes: list[int]) -> None:
    axis.set_yscale("log")
    plain_log(axis)
    axis.set_xlim(nfes[0] - 0.4, nfes[-1] + 0.4)
    axis.xaxis.set_major_locator(FixedLocator(nfes))
    axis.set_xlabel("network evaluations (NFE)")


def plain_log(axis: Axes, which: Literal["x", "y"] = "y") -> None:
    """Ticks of a logarithmic axis as plain numbers, at 1, 2 and 5 on a short one."""
    low, high = axis.get_xlim() if which == "x" else axis.get_ylim()
    ticks = axis.xaxis if which == "x" else axis.yaxis
    if high / low < 40:
        ticks.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ticks.set_major_formatter(FuncFormatter(lambda value, _: number(value, 1)))
    ticks.set_minor_formatter(NullFormatter())


def _alt(shown: Named, measure: Measure) -> str:
    parts = []
    for label, rows in shown:
        points = _learned(rows, measure.column)
        if points:
            values = ", ".join(f"{number(value)} at {nfe} NFE" for nfe, value, _, _ in points)
            parts.append(f"{label}: learned {values}")
    return f"Line chart, {measure.label} against NFE on a logarithmic axis. " + "; ".join(
        parts or ["no learned schedule"]
    )
