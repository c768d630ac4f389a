"""Quality against the number of network evaluations, one panel a solver: what a reader looks at
first.
"""

from __future__ import annotations

# A selection from a frame is a union of types to pandas' own annotations:
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false
from dataclasses import dataclass

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter

from ..summary import best_row, seed_group
from ..text import number
from .cells import baselines, families, legible
from .style import LEARNED, MARKERS, TEACHER, Plot, baseline_colours, columns_of, label_ends, panels


@dataclass(frozen=True)
class Measure:
    """A column that is drawn against NFE."""

    column: str
    label: str
    title: str


LOSS = Measure(
    "valid_loss", "held-out distance to the teacher", "Distance to the teacher against NFE"
)
FRECHET = Measure("fid", "Fréchet distance to the data", "Fréchet distance against NFE")


def quality_plot(
    frame: pd.DataFrame, measure: Measure, name: str, teachers: dict[str, dict[str, object]]
) -> Plot | None:
    """Learned schedules against hand-made grids, one panel a solver; None where nothing was
    measured.
    """
    learned = frame[frame["best"].astype(bool)]
    if frame[measure.column].notna().sum() == 0 or (learned.empty and baselines(frame).empty):
        return None
    shown, note = legible(families(frame), "solvers")
    colours = baseline_colours(
        frame.loc[frame["kind"] == "baseline", "start"].dropna().unique().tolist()
    )
    figure, axes = panels(len(shown), height=2.9)
    for axis, (label, rows) in zip(axes, shown, strict=True):
        _panel(axis, label, rows, measure, colours, teachers)
    for axis in axes[:: columns_of(len(shown))]:
        axis.set_ylabel(measure.label)
    caption = "Lower is better. Orange: the best learned schedule of each cell"
    caption += ", with the range over seeds of its settings as a band" if measure is LOSS else ""
    caption += (
        ". Blue: hand-made grids."
        + (" Dashed: the teacher." if measure is FRECHET and teachers else "")
        + note
    )
    return Plot(name, measure.title, caption, _alt(shown, measure), figure)


def _panel(axis: Axes, label: str, rows: pd.DataFrame, measure: Measure, colours, teachers) -> None:
    axis.set_title(label)
    ends: list[tuple[float, str, str]] = []
    for i, (grid, inside) in enumerate(baselines(rows).groupby("start", sort=True)):
        line = inside.dropna(subset=[measure.column]).sort_values("nfe")
        if len(line):
            x, y = line["nfe"].astype(int).tolist(), line[measure.column].astype(float).tolist()
            axis.plot(
                x, y, color=colours[str(grid)], marker=MARKERS[i % len(MARKERS)], lw=1.1, ms=4
            )
            ends.append((y[-1], str(grid), colours[str(grid)]))
    points = _learned(rows, measure.column)
    if points:
        x, y, low, high = (list(values) for values in zip(*points, strict=True))
        axis.fill_between(x, low, high, color=LEARNED, alpha=0.18, lw=0)
        if len(x) == 1:
            axis.vlines(x, low, high, color=LEARNED, alpha=0.35, lw=5)
        axis.plot(x, y, color=LEARNED, marker="o", lw=2.2, ms=5.5)
        ends.append((y[-1], "learned", LEARNED))
    scores = teachers.get(str(rows["teacher"].iloc[0]), {})
    if measure.column == "fid" and not pd.isna(scores.get("fid", float("nan"))):
        axis.axhline(float(scores["fid"]), color=TEACHER, ls=(0, (4, 3)), lw=1.2)
        ends.append((float(scores["fid"]), "teacher", TEACHER))
    _scales(axis, sorted(set(rows["nfe"].astype(int))))
    label_ends(axis, ends)


def _learned(rows: pd.DataFrame, column: str) -> list[tuple[int, float, float, float]]:
    """(NFE, value of the best schedule, smallest and largest over its seeds)."""
    found = []
    for nfe, inside in rows.groupby("nfe", sort=True):
        best = best_row(inside)
        if best is None or pd.isna(best[column]):
            continue
        value = float(best[column])
        group = seed_group(inside, best)[column].dropna().astype(float)
        found.append((int(nfe), value, min([value, *group]), max([value, *group])))
    return found


def _scales(axis: Axes, nfes: list[int]) -> None:
    axis.set_yscale("log")
    plain_log(axis)
    axis.set_xlim(nfes[0] - 0.4, nfes[-1] + 0.4)
    axis.xaxis.set_major_locator(FixedLocator(nfes))
    axis.set_xlabel("network evaluations (NFE)")


def plain_log(axis: Axes) -> None:
    """Ticks of a logarithmic y axis as plain numbers: 1, 2 and 5 where there is less than a decade
    and a half.
    """
    low, high = axis.get_ylim()
    if high / low < 40:
        axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.yaxis.set_minor_formatter(NullFormatter())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value, 1)))
    axis.yaxis.set_minor_formatter(NullFormatter())


def _alt(shown: list[tuple[str, pd.DataFrame]], measure: Measure) -> str:
    parts = []
    for label, rows in shown:
        points = _learned(rows, measure.column)
        if points:
            values = ", ".join(f"{number(value)} at {nfe} NFE" for nfe, value, _, _ in points)
            parts.append(f"{label}: learned {values}")
    return f"Line chart, {measure.label} against NFE on a logarithmic axis. " + "; ".join(
        parts or ["no learned schedule"]
    )
