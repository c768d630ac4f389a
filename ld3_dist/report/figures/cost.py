"""The cost of learning a schedule, against its loss on fresh samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from ...store.frames import (
    column,
    distinct,
    groups,
    numbers,
    of_kind,
    varies,
    where,
)
from ..formats import kinds
from . import FigureData, Plot
from .cells import families, legible
from .quality import plain_log
from .style import MARKERS, MUTED, SHADES, columns_of, legend_below, panels, plain

COSTS = (
    ("device_seconds", "device seconds of learning"),
    ("network_evals", "network evaluations of learning"),
)
"""Columns of cost, the first that was measured is drawn."""

LOSSES = (
    ("eval_loss", "loss on fresh samples"),
    ("valid_loss", "held-out loss"),
)

WAYS = ("procedure", "coefficients", "start_time")
"""Columns that say how a schedule was learned."""

WAY = "_way"
LOOK = {"ms": 3.5, "alpha": 0.7, "mec": "none", "ls": ""}


def cost_plot(data: FigureData) -> Plot | None:
    """Loss against the cost of learning, a dot per learned schedule, one panel per solver.

    None where all schedules cost the same.
    """
    rows = of_kind(data.frame, "learned", "ok")
    cost = _first(rows, COSTS)
    loss = _first(rows, LOSSES)
    if cost is None or loss is None:
        return None
    rows = where(rows, numbers(rows, cost[0]).gt(0) & numbers(rows, loss[0]).gt(0))
    if numbers(rows, cost[0]).nunique() < 2:
        return None
    differ = any(varies(rows, name) for name in WAYS)
    rows = rows.assign(**{WAY: kinds(rows, WAYS) if differ else ""})
    ways = distinct(rows, WAY)
    shown, note = legible(families(rows), "solvers")
    evaluations = sorted({int(nfe) for _, inside in shown for nfe in distinct(inside, "nfe")})
    last = max(len(evaluations) - 1, 1)
    shades = {nfe: SHADES[round(i * (len(SHADES) - 1) / last)] for i, nfe in enumerate(evaluations)}
    figure, axes = panels(len(shown), height=3.0)
    for axis, (label, inside) in zip(axes, shown, strict=True):
        axis.set_title(plain(label))
        _marks(axis, inside, cost[0], loss[0], ways, shades)
        axis.set_xlabel(cost[1])
    for axis in axes[:: columns_of(len(shown))]:
        axis.set_ylabel(loss[1])
    legend = [Line2D([], [], color=shades[nfe], lw=4, label=f"{nfe} NFE") for nfe in evaluations]
    if len(ways) > 1:
        legend += [
            Line2D([], [], color=MUTED, marker=MARKERS[i % len(MARKERS)], label=way, **LOOK)
            for i, way in enumerate(ways)
        ]
    legend_below(figure, legend)
    caption = (
        "Every learned schedule that was measured is a mark; darker means more evaluations per "
        f"sample{', and its shape says how it was learned' if len(ways) > 1 else ''}.{note}"
    )
    alt = f"{loss[1]} against {cost[1]} for {', '.join(label for label, _ in shown)}"
    return Plot(data.name("cost"), "Loss against the cost of learning", caption, alt, figure)


def _first(rows: pd.DataFrame, named: tuple[tuple[str, str], ...]) -> tuple[str, str] | None:
    """The first of some columns that holds anything."""
    known = [one for one in named if one[0] in rows and column(rows, one[0]).notna().any()]
    return known[0] if known else None


def _marks(
    axis: Axes,
    rows: pd.DataFrame,
    cost: str,
    loss: str,
    ways: Sequence[str],
    shades: Mapping[int, str],
) -> None:
    for nfe, inside in groups(rows, "nfe"):
        for way, part in groups(inside, WAY):
            marker = MARKERS[ways.index(way) % len(MARKERS)]
            colour = shades[int(nfe)]
            axis.plot(numbers(part, cost), numbers(part, loss), marker, color=colour, **LOOK)
    axis.set_xscale("log")
    axis.set_yscale("log")
    plain_log(axis, "x")
    plain_log(axis)
